"""What a pass can add up, by name. C channels read, O channels written, D = C p^2 pooled features.

Where a sum is computed follows from where it is looked at: what a site reads, the feature maps behind it (see
:mod:`sinf.statistics.maps`), the gradient of what it writes, or the gradients of all that read a unit together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sinf.graph.coupling import positions_of
from sinf.statistics.kernel_rows import kernel_rows_of
from sinf.statistics.positions import outer, outer_of_maps, rows_at, some_positions
from sinf.statistics.site import Sample

#: Costly sums of single images (ranks, independence) look at so many of each class: they change little from image to
#: image, and classes that come one after the other count alike.
LOOKED_AT = 10

# Matrices whose eigenvalues are computed at once: at most so many numbers.
_CHUNK = 1 << 21


@dataclass
class Batch:
    """What is known of a batch of B images besides the images: ``ranks`` (B,) are the numbers that they drew for
    samples, ``early`` (B,) bool says which are among the first ``LOOKED_AT`` of their class."""

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
        """``(images, D)``: channels pooled to p x p; to one number where there is no map."""
        x, pool = self.x, self.batch.pool
        if isinstance(self.module, nn.Linear):
            features = x.unflatten(-1, (-1, self.repeat)).mean(-1) if self.repeat > 1 else x
            return features.flatten(1, -2).mean(1) if features.ndim > 2 else features
        return x.flatten(2).mean(2) if pool == 1 else nn.functional.adaptive_avg_pool2d(x, pool).flatten(1)


def _gram(visit: Visit) -> Tensor:
    """``(C, C)`` sum over images and positions of x x', as far as the positions looked at tell."""
    return outer(visit.rows) * (visit.positions / max(1, len(visit.rows)))


def _class_sums(visit: Visit) -> Tensor:
    """``(classes, D)`` float64: sum of f by class."""
    total = torch.zeros(visit.batch.classes, visit.features.shape[1], dtype=torch.float64)
    return total.index_add_(0, visit.batch.labels, visit.features.double())


def _pooled_gram(visit: Visit) -> Tensor:
    """``(D, D)`` float64: sum over images of f f'; a nearly constant feature's variance is a small difference of it."""
    features = visit.features.double()
    return features.T @ features


def _class_moments(visit: Visit) -> Tensor:
    """``(2, classes, D)`` float64: sums of f and f^2 by class, precise enough for variances of nearly constant f."""
    f = visit.features.double()
    total = torch.zeros(2, visit.batch.classes, f.shape[1], dtype=torch.float64)
    return total.index_add_(1, visit.batch.labels, torch.stack([f, f.square()]))


def _sample(visit: Visit) -> Sample:
    """Pooled features of at most ``SAMPLE`` images, with their classes."""
    none = Sample(visit.features[:0], visit.batch.labels[:0], visit.batch.ranks[:0])
    return none + Sample(visit.features, visit.batch.labels, visit.batch.ranks)


def _independence(maps: Tensor, batch: Batch) -> Tensor:
    """``(C,)``: sum over images of what the nuclear norm of the maps, side by side as rows, loses when one is zero."""
    return sum((independence(image) for image in maps[batch.early].double()), torch.zeros(maps.shape[1]).double())


def independence(maps: Tensor) -> Tensor:
    """``(C,)`` of one image's maps ``(C, H, W)``: ``||A||_* - ||A without row j||_*``.

    From eigenvalues of A A' or A'A, whichever is smaller: a channel that goes clears a row and column of the first,
    and is a square of rank one less in the second.
    """
    rows = maps.flatten(1)
    channels, size = rows.shape
    gram = rows @ rows.T if channels <= size else rows.T @ rows
    parts = []
    for gone in torch.arange(channels).split(max(1, _CHUNK // gram.numel())):
        if channels <= size:
            stay = torch.ones(len(gone), channels, dtype=gram.dtype)
            stay[torch.arange(len(gone)), gone] = 0
            parts.append(_nuclear(gram * stay[:, :, None] * stay[:, None, :]))
        else:
            parts.append(_nuclear(gram - rows[gone][:, :, None] * rows[gone][:, None, :]))
    return (_nuclear(gram) - torch.cat(parts)).clamp(min=0)


def _nuclear(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum(-1)


def _ranks(maps: Tensor, batch: Batch) -> Tensor:
    """``(C,)``: sum over images of the rank of the map, a matrix of height x width."""
    return torch.linalg.matrix_rank(maps[batch.early]).sum(0).double()


#: From what a site reads.
READ: dict[str, Callable[[Visit], Any]] = {
    "gram": _gram,
    "positions": lambda v: torch.tensor(v.positions),  # how many (image, position) pairs that sum has
    "pooled_gram": _pooled_gram,
    "class_sums": _class_sums,
    "class_counts": lambda v: torch.bincount(v.batch.labels, minlength=v.batch.classes).float(),  # (classes,) images
    "class_moments": _class_moments,
    "sample": _sample,
    "kernel_rows": lambda v: kernel_rows_of(v.module, v.x),  # KernelRows of what rows of the kernel read
}

#: From the feature maps (B, C, H, W) of a site.
MAPS: dict[str, Callable[[Tensor, Batch], Tensor]] = {
    "magnitude": lambda m, _: m.abs().sum((0, 2, 3)).double(),  # (C,) sum over images and positions of |x|
    "active": lambda m, _: (m > 0).sum((0, 2, 3)).double(),  # (C,) how often x is above zero
    "map_positions": lambda m, _: torch.tensor(m[:, 0].numel()),  # how many (image, position) pairs these have
    "ranks": _ranks,
    "independence": _independence,
}

#: From what a site writes, as (images * positions, O) float64 at some positions of a large map, and how many there are.
MADE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "output_sum": lambda y, count: y.sum(0) * (count / max(1, len(y))),  # (O,)
    "output_gram": lambda y, count: outer(y) * (count / max(1, len(y))),  # (O, O)
    "output_count": lambda y, count: torch.tensor(count),  # how many (image, position) pairs these add up
}

#: From the gradient of the softened answer by what a site writes, as (images, O, positions).
WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "sensitivity": lambda g: g.square().sum((0, 2)),  # (O,)
    "fisher": outer_of_maps,  # (O, O), whose diagonal is that
}

#: From the first-order change of every image's loss when a unit goes from all that read it, (B, units).
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "change": lambda d: d.abs().sum(0),  # (units,)
    "squared_change": lambda d: d.square().sum(0),  # (units,)
}

#: What depends on the labels of images; ranks of maps and their like are added up over the first images of every class.
BY_LABEL = frozenset(
    ["class_sums", "class_counts", "class_moments", "sample", "change", "squared_change", "ranks", "independence"]
)
SUMS: tuple[str, ...] = (*READ, *MAPS, *MADE, *WRITTEN, *CHANGES)
