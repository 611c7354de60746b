"""Statistics of what a site writes, and of how the answer feels it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sinf.statistics.positions import outer, outer_of_maps
from sinf.statistics.statistic import OfGradients, OfOutputs, Place


@dataclass(eq=False)
class OutputMoments(OfOutputs):
    """Over images and positions: ``total`` (O,) of y, ``gram`` (O, O) of y y', ``count`` how many pairs these are."""

    total: Tensor
    gram: Tensor
    count: Tensor

    @classmethod
    def of(cls, rows: Tensor, count: int) -> Self:
        scale = count / max(1, len(rows))
        return cls(rows.sum(0) * scale, outer(rows) * scale, torch.tensor(count))

    @classmethod
    def bytes_at(cls, place: Place) -> int:
        return 8 * place.outputs**2

    @property
    def mean(self) -> Tensor:
        """``(O,)``."""
        return self.total / float(self.count)

    def covariance(self) -> Tensor:
        """``(O, O)``."""
        return self.gram / float(self.count) - torch.outer(self.mean, self.mean)


@dataclass(eq=False)
class Sensitivity(OfGradients):
    """``total`` (O,): sum of squared gradients over images and positions; the diagonal of :class:`Fisher`."""

    total: Tensor

    @classmethod
    def of(cls, gradient: Tensor) -> Self:
        return cls(gradient.square().sum((0, 2)))


@dataclass(eq=False)
class Fisher(OfGradients):
    """``total`` (O, O): sum of g g' over images and positions, the Fisher information of the layer's output."""

    total: Tensor

    @classmethod
    def of(cls, gradient: Tensor) -> Self:
        return cls(outer_of_maps(gradient))

    @classmethod
    def bytes_at(cls, place: Place) -> int:
        return 4 * place.outputs**2
