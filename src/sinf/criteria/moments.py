"""Moments of pooled channels by class, for the criteria that compare classes channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinf.statistics import MomentsByClass, SiteStatistics


@dataclass(frozen=True)
class ClassMoments:
    """Of K classes: ``counts`` (K, 1), ``means`` and ``variances`` (K, C), all float64.

    ``alive`` (C,) bool: channels that vary at all, beyond rounding.
    """

    counts: Tensor
    means: Tensor
    variances: Tensor
    alive: Tensor

    @staticmethod
    def of(site: SiteStatistics) -> ClassMoments:
        """From a site's :class:`MomentsByClass`; classes with a single image are left out."""
        by_class = site[MomentsByClass]
        enough = by_class.counts > 1
        counts = by_class.counts[enough].double()[:, None]
        sums, squares = by_class.sums[enough], by_class.squares[enough]
        means = sums / counts
        variances = (squares / counts - means.square()).clamp(min=0)
        images = counts.sum().clamp(min=1)
        second = squares.sum(0) / images
        total = second - (sums.sum(0) / images).square()
        return ClassMoments(counts, means, variances, total > 1e-12 * second.clamp(min=1e-30))

    def both_sides(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Means and variances (K, C) of every class, and of all other classes together."""
        rest = (self.counts.sum() - self.counts).clamp(min=1)
        sums, squares = self.counts * self.means, self.counts * (self.variances + self.means.square())
        means = (sums.sum(0) - sums) / rest
        variances = ((squares.sum(0) - squares) / rest - means.square()).clamp(min=0)
        return (self.means, self.variances), (means, variances)

    def alone(self) -> Tensor:
        """``(C,)`` zeros, in the type of scores: what a channel is worth when there is nothing to tell apart."""
        return torch.zeros(self.means.shape[1], dtype=torch.float64)
