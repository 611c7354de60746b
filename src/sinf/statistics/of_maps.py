"""Statistics of feature maps, for criteria that look at a single map: how large it is, its zeros, its rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sinf.statistics.statistic import Batch, OfMaps

#: Costly sums of single images (ranks, independence) look at so many of each class: they change little from image to
#: image, and classes that come one after the other count the same.
LOOKED_AT = 10

# Matrices whose eigenvalues are computed at once: at most so many numbers.
_CHUNK = 1 << 21


@dataclass(eq=False)
class Magnitude(OfMaps):
    """``total`` (C,): sum over images and positions of |x|."""

    total: Tensor

    @classmethod
    def of(cls, maps: Tensor, batch: Batch) -> Self:
        return cls(maps.abs().sum((0, 2, 3)).double())


@dataclass(eq=False)
class Active(OfMaps):
    """``total`` (C,): how often x is above zero; ``count``: of how many (image, position) pairs."""

    total: Tensor
    count: Tensor

    @classmethod
    def of(cls, maps: Tensor, batch: Batch) -> Self:
        return cls((maps > 0).sum((0, 2, 3)).double(), torch.tensor(maps[:, 0].numel()))


@dataclass(eq=False)
class MapRanks(OfMaps):
    """``total`` (C,): sum over images, the first of every class, of the rank of the map, a matrix of height x width."""

    by_label = True
    total: Tensor

    @classmethod
    def of(cls, maps: Tensor, batch: Batch) -> Self:
        return cls(torch.linalg.matrix_rank(maps[batch.early]).sum(0).double())


@dataclass(eq=False)
class Independence(OfMaps):
    """``total`` (C,): sum over images, the first of every class, of what the nuclear norm of the maps, side by side as
    rows, loses when one is zero."""

    by_label = True
    total: Tensor

    @classmethod
    def of(cls, maps: Tensor, batch: Batch) -> Self:
        each = (independence(image) for image in maps[batch.early].double())
        return cls(sum(each, torch.zeros(maps.shape[1]).double()))


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
