"""Kinds of layers, and the small networks in which their times are measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_STEM = 8  # channels before the layer that is timed, which so reads what another layer wrote


@dataclass(frozen=True)
class Kind:
    """Layers that differ in their widths alone. ``size`` is that of the map that they read; linear layers have no
    kernel, and as size how many vectors they read of an image, where it is not one."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    size: tuple[int, ...]
    alone: bool = False  # every channel of its own: as many outputs as inputs

    @staticmethod
    def of(module: nn.Module, shape: tuple[int, ...]) -> Kind | None:
        """None of a layer that is not timed: grouped, in one dimension or three, or padded otherwise than by zeros."""
        if isinstance(module, nn.Linear):
            return Kind((), (), (), (), (math.prod(shape[1:-1]),) if len(shape) > 2 else ())
        if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str) or module.padding_mode != "zeros":
            return None
        alone = module.groups == module.in_channels == module.out_channels
        if module.groups > 1 and not alone:
            return None
        return Kind(
            module.kernel_size, module.stride, module.padding, module.dilation, tuple(shape[2:]), alone
        )  # fmt: skip

    @property
    def separable(self) -> bool:
        """Whether rows and columns of the kernel can be layers of their own."""
        return len(self.kernel) == 2 and min(self.kernel) > 1

    def made(self, out: int, into: int) -> nn.Module:
        if not self.kernel:
            return nn.Linear(into, out)
        return nn.Conv2d(
            into, out, self.kernel, self.stride, self.padding, self.dilation, groups=into if self.alone else 1
        )  # fmt: skip

    def written(self) -> tuple[int, ...]:
        """The size of what such layers write."""
        return tuple(self.made(1, 1)(torch.zeros(1, 1, *self.size)).shape[2:])

    def halves(self) -> tuple[Kind, Kind, Kind, Kind]:
        """The two layers through channels, and the two separable ones (the same twice where there are none such)."""
        if not self.kernel:
            return self, self, self, self
        (rows, columns), (down, across), (top, left), (deep, wide) = (
            self.kernel, self.stride, self.padding, self.dilation,
        )  # fmt: skip
        expand = Kind((1, 1), (1, 1), (0, 0), (1, 1), self.written())
        first = Kind((1, columns), (1, across), (0, left), (1, wide), self.size)
        second = Kind((rows, 1), (down, 1), (top, 0), (deep, 1), first.written())
        return self, expand, first, second


@dataclass(frozen=True)
class Probe:
    """A network of one layer of a kind between a stem and a head, or of the stem and head alone."""

    kind: Kind
    out: int
    into: int
    bare: bool = False

    def network(self) -> nn.Module:
        before = nn.Conv2d(_STEM, self.into, 1) if len(self.kind.size) == 2 else nn.Linear(_STEM, self.into)
        layers = [before] if self.bare else [before, nn.ReLU(), self.kind.made(self.out, self.into)]
        return _Between(layers, len(self.kind.size), self.into if self.bare else self.out).eval()

    @property
    def stem(self) -> Probe:
        return Probe(Kind((), (), (), (), self.kind.size), 0, self.into, bare=True)

    @property
    def input_size(self) -> tuple[int, int, int]:
        down, across = (*self.kind.size, 1, 1)[:2]
        return _STEM, down, across


class _Between(nn.Module):
    """``(B, C, H, W)`` as maps, as vectors of an image or as one, through layers and a rectifier to two logits."""

    def __init__(self, layers: list[nn.Module], dimensions: int, width: int) -> None:
        super().__init__()
        self.layers, self.head, self.dimensions = nn.Sequential(*layers, nn.ReLU()), nn.Linear(width, 2), dimensions

    def forward(self, x: Tensor) -> Tensor:
        if self.dimensions == 1:
            x = x.flatten(2).transpose(1, 2)
        x = self.layers(x if self.dimensions else x.flatten(1))
        return self.head(x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x)
