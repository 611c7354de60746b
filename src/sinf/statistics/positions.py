"""Which positions of a map sums look at, and second moments of what is there.

Neighbours of a large map say nearly the same, and a sum over it has far more positions than unknowns. So sums of second
moments look at some positions, the same of every image, and are scaled to all of them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

MOST = 128  # positions of a map that are looked at
_BLOCK = 128  # a product with itself is symmetric: so many of its columns are computed at once, up to the diagonal


@lru_cache(maxsize=64)
def some_positions(positions: int, most: int = MOST) -> Tensor | None:
    """``(most,)`` positions of ``positions``, the same at every call and in order; None for all, where these are no
    more than ``most``."""
    if positions <= most:
        return None
    return torch.randperm(positions, generator=torch.Generator().manual_seed(0))[:most].sort().values


def by_image(x: Tensor, images: int) -> Tensor:
    """``(images, windows, ...)`` of what has all windows of an image, one after the other, in its first dimension."""
    return x.unflatten(0, (images, -1))


def rows_at(x: Tensor, positions: Tensor) -> Tensor:
    """``(B * positions, C)`` of maps ``(B, C, ...)``."""
    return x.flatten(2).transpose(1, 2)[:, positions].flatten(0, 1)


def outer(rows: Tensor) -> Tensor:
    """``(k, k)``: sum over rows (n, k) of x x'."""
    size = rows.shape[1]
    if size <= _BLOCK:
        return rows.T @ rows
    gram = rows.new_empty(size, size)
    for first in range(0, size, _BLOCK):
        last = min(first + _BLOCK, size)
        gram[first:last, :last] = rows[:, first:last].T @ rows[:, :last]
        gram[:first, first:last] = gram[first:last, :first].T
    return gram


def outer_of_maps(maps: Tensor) -> Tensor:
    """``(O, O)``: sum over images and positions of x x', of maps (B, O, positions)."""
    if maps.shape[2] >= maps.shape[1]:  # small products of each image spare a copy in another order
        return torch.bmm(maps, maps.mT).sum(0)
    return outer(maps.transpose(1, 2).flatten(0, 1))
