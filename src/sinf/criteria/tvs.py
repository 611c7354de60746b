"""Total-variation separation (Murti, Narshana & Bhattacharyya, TVSPrune, ICLR 2023).

A filter is worth what it tells a class from all others: with Gaussians for the channel's mean over positions in class
c and in the other classes, the total variation between the two is at least the squared Hellinger distance

    H_c^2 = 1 - (2 a b / (a^2 + b^2))^(1/2) exp(-(m - m')^2 / (4 (a^2 + b^2))),   a, b their standard deviations,

and ``s_j = min_c H_c^2``: every class must be told apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sinf.criteria.base import SiteCriterion
from sinf.criteria.moments import ClassMoments
from sinf.errors import ConfigError
from sinf.statistics import MomentsByClass, SiteStatistics

_OVER: dict[str, Callable[..., Tensor]] = {"min": torch.amin, "mean": torch.mean, "max": torch.amax}

# A variance from a few images is not exactly zero: this part of the channel's own is added.
_FLOOR = 1e-6


class TVSeparation(SiteCriterion):
    """In [0, 1]; 0 where there is but one class. Classes of one image are left out.

    ``over`` says how classes are taken together: "min" (a filter must serve all), "mean" or "max" (one is enough).
    """

    name = "tvs"
    needs = (MomentsByClass,)

    def __init__(self, over: str = "min") -> None:
        if over not in _OVER:
            raise ConfigError("over must be min, mean or max", got=over, remedy="take min")
        self.over = over

    def score_channels(self, site: SiteStatistics) -> Tensor:
        moments = ClassMoments.of(site)
        if len(moments.counts) < 2:
            return moments.alone()
        (mean, variance), (other_mean, other_variance) = moments.both_sides()
        floor = _FLOOR * (variance + other_variance).amax(0).clamp(min=1e-300)
        variance, other_variance = variance + floor, other_variance + floor
        both = variance + other_variance
        overlap = (2 * (variance * other_variance).sqrt() / both).sqrt()
        affinity = overlap * torch.exp(-(mean - other_mean).square() / (4 * both))
        return torch.where(moments.alive, _OVER[self.over](1 - affinity, dim=0).clamp(min=0), 0.0)
