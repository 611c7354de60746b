"""Average percentage of zeros (Hu et al., Network Trimming, arXiv 1607.03250).

``APoZ_j`` is the share of images and positions where the feature map is zero after the ReLU; ``s_j = 1 - APoZ_j``.
Other activations are hardly ever exactly zero: whatever is not positive counts as zero.
"""

from __future__ import annotations

from torch import Tensor

from sinf.criteria.base import SiteCriterion
from sinf.statistics import Active, SiteStatistics


class APoZ(SiteCriterion):
    """In [0, 1] for every site."""

    name = "apoz"
    needs = (Active,)

    def score_channels(self, site: SiteStatistics) -> Tensor:
        return site[Active].total / site[Active].count
