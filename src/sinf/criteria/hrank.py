"""Rank of feature maps (Lin et al., HRank, arXiv 2002.10179).

``s_j = E rank(X_j)``, X_j the (H, W) map of channel j; few images tell it, and no more than a few of each class are
looked at (:data:`sinf.statistics.of_maps.LOOKED_AT`).
"""

from __future__ import annotations

from torch import Tensor

from sinf.criteria.base import SiteCriterion, share
from sinf.statistics import MapRanks, SiteStatistics


class HRank(SiteCriterion):
    """Relative to the sum over all channels of the site: the rank itself says how large a layer's maps are."""

    name = "hrank"
    needs = (MapRanks,)

    def score_channels(self, site: SiteStatistics) -> Tensor:
        return share(site[MapRanks].total)
