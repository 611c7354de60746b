"""Kinds of layers, and the small networks in which their times are measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor, nn

from sinf.graph.delta import walked

_STEM = 8  # channels before the layer that is timed, which so reads what another layer wrote


@dataclass(frozen=True)
class Kind:
    """Layers that differ in their widths alone: outputs, and inputs of a group. ``size`` is that of the map that they
    read; linear layers have no kernel, and as size how many vectors they read of an image, where it is not one.

    Of convolutions in groups, a kind has two of three: the number of ``groups``, the ``outputs`` and the ``inputs`` of
    each; None is what differs. As they are, whole groups go: there are as many as the outputs say. The two layers in
    their place keep the number of groups, and channels of each that are multiples of a ``block``, which is computed
    together.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    size: tuple[int, ...]
    groups: int | None = 1
    outputs: int | None = None
    inputs: int | None = None
    block: int = 1

    @staticmethod
    def of(module: nn.Module, shape: tuple[int, ...]) -> Kind | None:
        """Of a layer that reads values of this ``shape`` for one image, whose windows are in the first dimension. None
        of one that is not timed: in one dimension or three, on windows, or padded otherwise than by zeros."""
        if isinstance(module, nn.Linear):
            return Kind((), (), (), (), (math.prod(shape[:-1]),) if len(shape) > 2 or shape[0] > 1 else ())
        padded_by_zeros = isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
        if not padded_by_zeros or isinstance(module.padding, str) or shape[0] > 1:
            return None
        kind = Kind(module.kernel_size, module.stride, module.padding, module.dilation, tuple(shape[2:]))
        if module.groups == 1:
            return kind
        out, into = (channels // module.groups for channels in (module.out_channels, module.in_channels))
        return replace(kind, groups=None, outputs=out, inputs=into)

    @property
    def separable(self) -> bool:
        """Whether rows and columns of the kernel can be layers of their own."""
        return len(self.kernel) == 2 and min(self.kernel) > 1 and self.groups == 1

    @property
    def factored(self) -> bool:
        """Whether these are layers of which two are in the place of one in groups."""
        return self.groups is not None and self.groups > 1

    def groups_at(self, out: int) -> int:
        """Of a layer with so many outputs."""
        return self.groups or out // (self.outputs or 1)

    def made(self, out: int, into: int) -> nn.Module:
        if not self.kernel:
            return nn.Linear(into, out)
        groups = self.groups_at(out)
        return nn.Conv2d(
            into * groups, out, self.kernel, self.stride, self.padding, self.dilation, groups=groups
        )  # fmt: skip

    def written(self) -> tuple[int, ...]:
        """The size of what such layers write."""
        return tuple(walked(self.size, self.kernel, self.stride, self.padding, self.dilation))

    def halves(self, groups: int = 1, block: int = 1) -> tuple[Kind, Kind]:
        """The two layers through channels, in so many groups."""
        if not self.kernel:
            return self, self
        reduce = replace(self, groups=groups, outputs=None, block=block)
        expand = Kind((1, 1), (1, 1), (0, 0), (1, 1), self.written())
        return reduce, replace(expand, groups=groups, outputs=self.outputs, block=block)

    def separated(self) -> tuple[Kind, Kind]:
        """The two layers of one that is :attr:`separable`."""
        (rows, columns), (down, across), (top, left), (deep, wide) = (
            self.kernel, self.stride, self.padding, self.dilation,
        )  # fmt: skip
        first = Kind((1, columns), (1, across), (0, left), (1, wide), self.size)
        return first, Kind((rows, 1), (down, 1), (top, 0), (deep, 1), first.written())


@dataclass(frozen=True)
class Probe:
    """A network of one layer of a kind between a stem and a head, or of the stem and head alone. ``into`` is of a
    group."""

    kind: Kind
    out: int
    into: int
    bare: bool = False

    def network(self) -> nn.Module:
        before = nn.Conv2d(_STEM, self.read, 1) if len(self.kind.size) == 2 else nn.Linear(_STEM, self.read)
        layers = [before] if self.bare else [before, nn.ReLU(), self.kind.made(self.out, self.into)]
        return _Between(layers, len(self.kind.size), self.read if self.bare else self.out).eval()

    @property
    def read(self) -> int:
        """Channels that the layer reads, of all groups."""
        return self.into * self.kind.groups_at(self.out)

    @property
    def stem(self) -> Probe:
        return Probe(Kind((), (), (), (), self.kind.size), 0, self.read, bare=True)

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
