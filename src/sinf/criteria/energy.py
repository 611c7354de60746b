"""Energy that reaches the consumer: what a channel alone contributes to the outputs of the layers that read it.

``E[x_j^2] * sum_o ||w_oj||^2``, as in the reconstruction-driven pruning of He et al. (ICCV 2017) without its search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinf.criteria.base import SiteCriterion, share
from sinf.statistics import SecondMoments, SiteStatistics


class Energy(SiteCriterion):
    """Relative to the energy of all channels at the site, so that layers compare."""

    name = "energy"
    needs = (SecondMoments,)

    def score_channels(self, site: SiteStatistics) -> Tensor:
        moments = site[SecondMoments]
        return share(torch.diagonal(moments.gram) / moments.positions * site.weight.square().sum((0, 2)))
