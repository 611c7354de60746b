"""What outputs of a convolution read, at some of their positions: all patches of a large map at once are many times the
map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Window:
    """What one output reads of a map (H, W): sizes are (down, across), ``zeros`` stand (top, bottom, left, right)."""

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    zeros: tuple[int, int, int, int] = (0, 0, 0, 0)

    @staticmethod
    def of(layer: nn.Conv2d) -> Window:
        """Of one that is padded by zeros, as many on either side."""
        down, across = (int(each) for each in layer.padding)
        return Window(_two(layer.kernel_size), _two(layer.stride), _two(layer.dilation), (down, down, across, across))

    @property
    def reach(self) -> tuple[int, int]:
        """From the first to the last row, and column, that an output reads."""
        return self._reach(0), self._reach(1)

    def outputs(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of what is made of a map."""
        before, after = self.zeros[::2], self.zeros[1::2]
        sizes = (
            (size + before[dim] + after[dim] - self._reach(dim)) // self.strides[dim] + 1
            for dim, size in enumerate((height, width))
        )
        return next(sizes), next(sizes)

    def patches_at(self, maps: Tensor, chosen: Tensor) -> Tensor:
        """``(N, chosen, C kh kw)`` of maps (N, C, H, W): what the ``chosen`` outputs read, which are numbered row by
        row, in the order of a kernel."""
        height, width = maps.shape[2:]
        _, columns = self.outputs(height, width)
        down, here_down = self._reached(0, chosen // columns, height)
        across, here_across = self._reached(1, chosen % columns, width)
        at = down[:, :, None] * width + across[:, None, :]  # (chosen, kh, kw)
        outside = ~(here_down[:, :, None] & here_across[:, None, :])
        values = maps.flatten(2)[:, :, at.flatten()].unflatten(2, (len(chosen), -1))
        return values.masked_fill_(outside.flatten(1), 0.0).transpose(1, 2).flatten(2)

    def _reach(self, dim: int) -> int:
        return self.dilations[dim] * (self.kernel[dim] - 1) + 1

    def _reached(self, dim: int, outputs: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """``(outputs, k)`` inputs along a dimension that outputs read, and whether they are there, not zeros."""
        first = outputs * self.strides[dim] - self.zeros[2 * dim]
        reached = first[:, None] + self.dilations[dim] * torch.arange(self.kernel[dim])
        return reached.clamp(0, size - 1), (reached >= 0) & (reached < size)


def _two(sizes: tuple[int, ...]) -> tuple[int, int]:
    down, across = sizes
    return down, across
