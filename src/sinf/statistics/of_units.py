"""Statistics of units: how the loss of an image changes to first order when a unit goes from all that read it."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from sinf.statistics.statistic import OfUnits


class Change(OfUnits):
    """Sums of absolute changes."""

    @classmethod
    def of(cls, changes: Tensor) -> Self:
        return cls(changes.abs().sum(0))


class SquaredChange(OfUnits):
    """Sums of squared changes."""

    @classmethod
    def of(cls, changes: Tensor) -> Self:
        return cls(changes.square().sum(0))
