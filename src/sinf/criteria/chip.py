"""Channel independence (Sui et al., CHIP, arXiv 2110.13981).

With A the (C, H * W) matrix of one image's maps, ``s_j = E(||A||_* - ||A with row j zero||_*)``: what the nuclear norm
loses with the channel is what the other channels cannot stand for. No more than a few images of each class are looked
at (:data:`sinf.statistics.of_maps.LOOKED_AT`).
"""

from __future__ import annotations

from torch import Tensor

from sinf.criteria.base import SiteCriterion, share
from sinf.statistics import Independence, SiteStatistics


class CHIP(SiteCriterion):
    """Relative to the sum over all channels of the site, so that layers compare."""

    name = "chip"
    needs = (Independence,)

    def score_channels(self, site: SiteStatistics) -> Tensor:
        return share(site[Independence].total)
