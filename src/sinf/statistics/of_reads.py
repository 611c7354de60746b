"""Statistics of what a site reads: second moments over positions, and pooled features by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sinf.statistics.positions import outer
from sinf.statistics.statistic import OfReads, Place, Visit

#: How many images a sample keeps at most: enough for a linear classifier, little beside the network.
SAMPLE = 4096


@dataclass(eq=False)
class SecondMoments(OfReads):
    """``gram`` (C, C): sum over images and positions of x x', as far as the positions looked at tell; ``count``: how
    many (image, position) pairs these are."""

    gram: Tensor
    count: Tensor

    @property
    def positions(self) -> int:
        return int(self.count)

    @classmethod
    def of(cls, visit: Visit) -> Self:
        gram = outer(visit.rows) * (visit.positions / max(1, len(visit.rows)))
        return cls(gram, torch.tensor(visit.positions))

    @classmethod
    def bytes_at(cls, place: Place) -> int:
        return 4 * place.channels**2


@dataclass(eq=False)
class PooledGram(OfReads):
    """``gram`` (D, D) float64: sum over images of f f'; a nearly constant feature's variance is a small difference of
    it."""

    gram: Tensor

    @classmethod
    def of(cls, visit: Visit) -> Self:
        features = visit.features.double()
        return cls(features.T @ features)

    @classmethod
    def bytes_at(cls, place: Place) -> int:
        return 8 * place.features**2


@dataclass(eq=False)
class SumsByClass(OfReads):
    """``sums`` (classes, D) float64 of f; ``counts`` (classes,) of images."""

    by_label = True
    sums: Tensor
    counts: Tensor

    @classmethod
    def of(cls, visit: Visit) -> Self:
        return cls(_by_class(visit, visit.features.double()), _counts(visit))

    @classmethod
    def bytes_at(cls, place: Place) -> int:
        return 8 * place.classes * place.features


@dataclass(eq=False)
class MomentsByClass(OfReads):
    """``sums`` and ``squares`` (classes, D) float64 of f and f^2, precise enough for variances of nearly constant f;
    ``counts`` (classes,) of images."""

    by_label = True
    sums: Tensor
    squares: Tensor
    counts: Tensor

    @classmethod
    def of(cls, visit: Visit) -> Self:
        f = visit.features.double()
        return cls(_by_class(visit, f), _by_class(visit, f.square()), _counts(visit))

    @classmethod
    def bytes_at(cls, place: Place) -> int:
        return 16 * place.classes * place.features


@dataclass(eq=False)
class Sample(OfReads):
    """Pooled features of some images, all of them if there are few, for what has no sums (logistic regression).

    ``features`` (n, D), ``labels`` (n,), and ``ranks`` (n,): every image draws a number, and the ``SAMPLE`` images
    with the smallest stay, so that it does not matter how the images came in batches.
    """

    by_label = True
    features: Tensor
    labels: Tensor
    ranks: Tensor

    @classmethod
    def of(cls, visit: Visit) -> Self:
        labels, ranks = visit.batch.labels, visit.batch.ranks
        return cls(visit.features[:0], labels[:0], ranks[:0]) + cls(visit.features, labels, ranks)

    @classmethod
    def bytes_at(cls, place: Place) -> int:
        return 4 * SAMPLE * place.features

    def __add__(self, other: Self) -> Self:
        theirs = other.tensors()
        both = {name: torch.cat([value, theirs[name]]) for name, value in self.tensors().items()}
        kept = torch.argsort(both["ranks"], stable=True)[:SAMPLE].sort().values
        return type(self)(**{name: value[kept] for name, value in both.items()})

    def __iadd__(self, other: Self) -> Self:
        return self + other


def _by_class(visit: Visit, f: Tensor) -> Tensor:
    """``(classes, D)``: sums of f (B, D)."""
    total = torch.zeros(visit.batch.classes, f.shape[1], dtype=f.dtype)
    return total.index_add_(0, visit.batch.labels, f)


def _counts(visit: Visit) -> Tensor:
    """``(classes,)`` images."""
    return torch.bincount(visit.batch.labels, minlength=visit.batch.classes).float()
