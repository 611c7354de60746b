"""What one row of a convolution's kernel reads, C x kw inputs side by side, and how rows are correlated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinf.graph.coupling import unfolds
from sinf.statistics.positions import MOST, outer, some_positions
from sinf.statistics.statistic import OfReads, Place, Visit

_CHUNK = 1 << 22  # numbers that are read and are in memory at once
_LEAST_COLUMNS = 4  # of a map that are looked at, however many rows it has


@dataclass(eq=False)
class KernelRows(OfReads):
    """Sums over images and all that rows of the kernel read: every row of the input, every position of an output's
    column. Of a wide map some columns are looked at (:mod:`sinf.statistics.positions`); their sums are scaled to all.

    Attributes:
        gram: ``(C kw, C kw)`` float64, of u u'.
        total: ``(C kw,)`` float64, of u.
        products: ``(kh,)`` float64: sums of u . v of the same column, as many rows apart as those of the kernel are,
            0 to kh - 1 times its dilation.
        counts: ``(kh,)`` how many pairs these are; the first is the number of u.
    """

    gram: Tensor
    total: Tensor
    products: Tensor
    counts: Tensor

    @classmethod
    def of(cls, visit: Visit) -> Self:
        return cls(**kernel_rows_of(visit.module, visit.x).tensors())

    @classmethod
    def bytes_at(cls, place: Place) -> int:
        wide = place.channels * place.module.kernel_size[1] if has_kernel_rows(place.module) else 0
        return 8 * wide**2

    @property
    def present(self) -> bool:
        """Whether the layer has rows: a full convolution with a kernel of more than one row and column."""
        return len(self.counts) > 0

    @property
    def count(self) -> float:
        return float(self.counts[0])

    def covariance(self) -> Tensor:
        """``(C kw, C kw)``: S."""
        mean = self.total / self.count
        return self.gram / self.count - torch.outer(mean, mean)

    def row_correlation(self) -> Tensor:
        """``(kh, kh)``: T, how rows of a patch are correlated, with ones on its diagonal."""
        level = (self.total / self.count).square().sum()
        lags = self.products / self.counts.clamp(min=1) - level
        near = lags / lags[0].clamp(min=1e-30)
        rows = torch.arange(len(lags))
        return near[(rows[:, None] - rows[None, :]).abs()]

    def as_kernel(self, weight: Tensor) -> Tensor:
        """``(O, C, kh, kw)`` from ``(O, C, kh * kw)``."""
        return weight.unflatten(2, (len(self.counts), -1))


def kernel_rows_of(layer: nn.Module, x: Tensor) -> KernelRows:
    """Of what ``layer`` reads; empty for one that has none."""
    if not isinstance(layer, nn.Conv2d) or not has_kernel_rows(layer):
        none = torch.zeros(0, dtype=torch.float64)
        return KernelRows(torch.zeros(0, 0, dtype=torch.float64), none, none, none)
    rows, columns = layer.kernel_size
    size = x.shape[1] * columns
    gram = torch.zeros(size, size, dtype=torch.float64)
    total = torch.zeros(size, dtype=torch.float64)
    products, counts = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
    reach = layer.dilation[1] * (columns - 1) + 1
    width = (x.shape[3] + 2 * int(layer.padding[1]) - reach) // layer.stride[1] + 1  # columns of outputs
    at = some_positions(width, max(_LEAST_COLUMNS, MOST // x.shape[2]))
    at = torch.arange(width) if at is None else at
    scale = width / len(at)
    reads = (at * layer.stride[1])[:, None] + layer.dilation[1] * torch.arange(columns)
    for part in x.split(max(1, _CHUNK // (size * x.shape[2] * len(at)))):
        padded = F.pad(part, (int(layer.padding[1]),) * 2)
        # (C, kw, B, H, columns of outputs)
        rows_read = padded[..., reads].permute(1, 4, 0, 2, 3).reshape(size, len(part), x.shape[2], len(at))
        flat = rows_read.flatten(1)
        gram += outer(flat.T)
        total += flat.sum(1)
        for row in range(rows):
            apart = row * layer.dilation[0]
            above, below = rows_read[:, :, : rows_read.shape[2] - apart], rows_read[:, :, apart:]
            products[row] += (above * below).sum() if apart < rows_read.shape[2] else 0.0
            counts[row] += above[0].numel() if apart < rows_read.shape[2] else 0
    return KernelRows(gram * scale, total * scale, products * scale, counts * scale)


def has_kernel_rows(layer: nn.Module) -> bool:
    """A full convolution in two dimensions, with a kernel of several rows and columns, padded by zeros."""
    return unfolds(layer) and layer.groups == 1 and min(layer.kernel_size) > 1
