"""What a statistic is: sums over images, with a type of their own, that add up.

A statistic is a dataclass of tensors. What it is a sum of follows from its base: what a site reads
(:class:`OfReads`), the feature maps behind that (:class:`OfMaps`), what a site writes (:class:`OfOutputs`), the
gradient of the answer by it (:class:`OfGradients`), or what happens at all sites together when a unit goes
(:class:`OfUnits`).
C channels read, O channels written, D = C p^2 pooled features.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, Self

from torch import Tensor, nn

from sinf.graph.coupling import positions_of
from sinf.statistics.positions import by_image, rows_at, some_positions


@dataclass
class Batch:
    """What is known of a batch of B images besides the images: ``ranks`` (B,) are the numbers that they drew for
    samples, ``early`` (B,) bool says which are among the first few of their class."""

    labels: Tensor
    classes: int
    pool: int
    ranks: Tensor
    early: Tensor

    def part(self, rows: slice) -> Batch:
        """Some of its images."""
        return Batch(self.labels[rows], self.classes, self.pool, self.ranks[rows], self.early[rows])


@dataclass
class Visit:
    """One call of a site: the layer, what it reads, and how often a channel repeats there (see ``Slot``)."""

    module: nn.Module
    x: Tensor
    repeat: int
    batch: Batch

    @cached_property
    def positions(self) -> int:
        """How many (image, position) pairs were read."""
        return self.x.numel() // (self.x.shape[self._dim] // self.repeat)

    @cached_property
    def rows(self) -> Tensor:
        """``(images * positions, C)``, at some positions of a large map."""
        positions = None if self._dim == -1 else some_positions(self.x[0, 0].numel())
        return positions_of(self.module, self.x, self.repeat) if positions is None else rows_at(self.x, positions)

    @property
    def _dim(self) -> int:
        """Of channels."""
        return -1 if isinstance(self.module, nn.Linear) else 1

    @cached_property
    def features(self) -> Tensor:
        """``(images, D)``: channels pooled to p x p; to one number where there is no map. Those of an image's windows
        are averaged."""
        return by_image(self._features(), len(self.batch.labels)).mean(1)

    def _features(self) -> Tensor:
        x, pool = self.x, self.batch.pool
        if isinstance(self.module, nn.Linear):
            features = x.unflatten(-1, (-1, self.repeat)).mean(-1) if self.repeat > 1 else x
            return features.flatten(1, -2).mean(1) if features.ndim > 2 else features
        return x.flatten(2).mean(2) if pool == 1 else nn.functional.adaptive_avg_pool2d(x, pool).flatten(1)


@dataclass(frozen=True)
class Place:
    """A site, as far as the size of its statistics depends on it: ``channels`` is C."""

    module: nn.Module
    channels: int
    classes: int
    pool: int

    @property
    def outputs(self) -> int:
        """O."""
        return len(self.module.weight)

    @property
    def features(self) -> int:
        """D."""
        return self.channels * self.pool**2


@dataclass(eq=False)
class Statistic:
    """Sums over images. All fields are tensors, and those of two sets of images are added."""

    #: Whether it depends on the labels of images.
    by_label: ClassVar[bool] = False

    @classmethod
    def bytes_at(cls, place: Place) -> int:
        """Bytes at one site; those of a few numbers are none."""
        return 0

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(field.name for field in fields(cls))

    def tensors(self) -> dict[str, Tensor]:
        """By the name of the field."""
        return {name: getattr(self, name) for name in self.fields()}

    def __add__(self, other: Self) -> Self:
        theirs = other.tensors()
        return type(self)(**{name: value + theirs[name] for name, value in self.tensors().items()})

    def __iadd__(self, other: Self) -> Self:
        theirs = other.tensors()
        for name, value in self.tensors().items():
            value += theirs[name]
        return self


class OfReads(Statistic):
    """From what a site reads."""

    @classmethod
    def of(cls, visit: Visit) -> Self:
        raise NotImplementedError


class OfMaps(Statistic):
    """From the feature maps (B, C, H, W) of a site (:mod:`sinf.statistics.maps`)."""

    @classmethod
    def of(cls, maps: Tensor, batch: Batch) -> Self:
        raise NotImplementedError


class OfOutputs(Statistic):
    """From what a site writes: (images * positions, O) float64 at some positions of a large map, and how many (image,
    position) pairs there are."""

    @classmethod
    def of(cls, rows: Tensor, count: int) -> Self:
        raise NotImplementedError


class OfGradients(Statistic):
    """From the gradient (images, O, positions) of the softened answer by what a site writes."""

    @classmethod
    def of(cls, gradient: Tensor) -> Self:
        raise NotImplementedError


@dataclass(eq=False)
class OfUnits(Statistic):
    """``total`` (units,), from the first-order change (B, units) of every image's loss when a unit goes from all that
    read it."""

    by_label = True
    total: Tensor

    @classmethod
    def of(cls, changes: Tensor) -> Self:
        raise NotImplementedError
