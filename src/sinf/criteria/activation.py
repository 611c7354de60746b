"""Mean activation (Molchanov et al., arXiv 1611.06440, section 2.2).

``s_j = E|x_j|`` over images and positions of the feature map, which after a ReLU is the mean itself.
"""

from __future__ import annotations

from torch import Tensor

from sinf.criteria.base import SiteCriterion, share
from sinf.statistics import Magnitude, SiteStatistics


class ActivationMean(SiteCriterion):
    """Relative to the sum over all channels of the site, so that layers compare."""

    name = "activation"
    needs = (Magnitude,)

    def score_channels(self, site: SiteStatistics) -> Tensor:
        return share(site[Magnitude].total)
