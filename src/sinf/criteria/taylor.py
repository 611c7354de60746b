"""First-order change of the loss when a unit goes (Molchanov et al., arXiv 1906.10771).

With L the cross entropy of one image and x_s what the sites s that read the unit read of it,

    d_j = sum over s and positions of x_s dL/dx_s,

the change of L to first order when the unit is zero. ``s_j = E|d_j|``, or ``E d_j^2`` squared. The sum comes before the
absolute value, as the unit goes from everywhere at once. What a layer reads times its gradient, summed over positions,
is the same as its weights for that channel times theirs: gates on activations and on weights give one criterion.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sinf.criteria.base import Criterion, GroupStatistics
from sinf.statistics import Change, OfUnits, SquaredChange, Statistic


class Taylor(Criterion):
    """Mean over images of the absolute change. For a cluster, L is of its classes alone."""

    name = "taylor"
    needs: tuple[type[Statistic], ...] = (Change,)
    summed: ClassVar[type[OfUnits]] = Change

    def score(self, statistics: GroupStatistics) -> Tensor:
        return (statistics.units[self.summed] / max(1, statistics.images)).float()


class SquaredTaylor(Taylor):
    """Mean over images of the squared change, the paper's own choice."""

    name = "taylor-squared"
    needs = (SquaredChange,)
    summed = SquaredChange
