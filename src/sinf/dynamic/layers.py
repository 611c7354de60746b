"""Layers of sparse execution: each takes a feature map that holds the kept channels alone, and the selections that say
which they are."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinf.dynamic.gates import Gate
from sinf.graph.coupling import Slot

_LONG_RUN = 64  # numbers in a row, from which slices are taken in one step


class Selection(NamedTuple):
    """What a gate decided. For one image: ``kept`` (k,) of the entries that stay, sorted, and their ``scale`` (k,);
    for a batch, which is masked: no ``kept``, and ``scale`` (B, entries). ``fixed`` is the same for every image."""

    kept: Tensor | None
    scale: Tensor
    fixed: bool = False


@dataclass(frozen=True)
class Reads:
    """How a dimension of a layer holds the units of sites.

    ``block`` > 0: position p is in entry p // block of the only site. Otherwise ``where`` and ``entry`` list, for every
    site, positions and the entries they belong to; positions of no site always stay. ``repeat`` as in coupling.
    """

    size: int
    block: int
    where: list[Tensor]
    entry: list[Tensor]
    repeat: int

    @staticmethod
    def of(slot: Slot, units: list[Tensor], blocks: list[Tensor]) -> Reads:
        where, entry = [], []
        for own, block in zip(units, blocks, strict=True):
            at = torch.nonzero(torch.isin(slot.units, own)).flatten()
            place = torch.full((int(own.max()) + 1,), -1)
            place[own] = torch.arange(len(own))
            where.append(at)
            entry.append(block[place[slot.units[at]]])
        plain = 0
        if len(units) == 1 and torch.equal(slot.units, units[0]):
            plain = int(torch.bincount(blocks[0])[0])
        return Reads(len(slot.units), plain, where, entry, slot.repeat)

    def positions(self, selections: tuple[Selection, ...]) -> Tensor:
        """Positions that stay, sorted, counting repeats."""
        if self.block == 1 and self.repeat == 1 and selections[0].kept is not None:
            return selections[0].kept
        keep = torch.ones(self.size, dtype=torch.bool)
        for where, entry, selection in zip(self.where, self.entry, selections, strict=True):
            keep[where] = torch.isin(entry, selection.kept)  # type: ignore[arg-type]
        return torch.nonzero(keep.repeat_interleave(self.repeat) if self.repeat > 1 else keep).flatten()

    def factors(self, selections: tuple[Selection, ...]) -> Tensor:
        """What multiplies the positions that are there: (k,) of one image, (B, size) of a batch; repeats counted."""
        first = selections[0]
        if first.kept is not None and self.block:
            scale = first.scale
            each = self.block * self.repeat
            return scale if each == 1 else scale.repeat_interleave(each)
        rows = 1 if first.kept is not None else len(first.scale)
        whole = first.scale.new_ones(rows, self.size)
        for where, entry, selection in zip(self.where, self.entry, selections, strict=True):
            if selection.kept is None:
                whole[:, where] = selection.scale[:, entry]
            else:
                table = selection.scale.new_zeros(int(max(entry.max(), selection.kept.max())) + 1)
                table[selection.kept] = selection.scale
                whole[:, where] = table[entry]
        whole = whole.repeat_interleave(self.repeat, 1) if self.repeat > 1 else whole
        return whole if first.kept is None else whole[0, self.positions(selections)]


class Scale(nn.Module):
    """Multiplies what a layer reads by the masks of the channels that are there."""

    def __init__(self, reads: Reads, last: bool) -> None:
        super().__init__()
        self.reads, self.last = reads, last

    def forward(self, x: Tensor, *selections: Selection) -> Tensor:
        factors = self.reads.factors(selections)
        if self.last:
            return x * (factors if factors.ndim == 1 or x.ndim == 2 else factors[:, None])
        return x * factors.view(-1, factors.shape[-1], *([1] * (x.ndim - 2)))


class BranchSum(nn.Module):
    """A residual branch's end and the sum after it: kept channels are scaled and added to what they are summed with,
    the others leave it as it is."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def forward(self, x: Tensor, shortcut: Tensor, selection: Selection) -> Tensor:
        factors = self.reads.factors((selection,))
        scaled = x * factors.view(-1, factors.shape[-1], 1, 1)
        if selection.kept is None:
            return shortcut + scaled
        # as matrices of positions and channels: index_add of maps takes two to four times as long
        last, rows = shortcut.permute(0, 2, 3, 1), scaled.permute(0, 2, 3, 1).flatten(0, 2)
        whole = last.flatten(0, 2).index_add(1, self.reads.positions((selection,)), rows)
        return whole.view(last.shape).permute(0, 3, 1, 2)


class GateLayer(nn.Module):
    """A gate on an input that may hold only some of its ``channels`` (C). The number of entries that stay is rounded up
    to a multiple of ``step`` by entries of scale 0, and is never 0."""

    def __init__(self, gate: Gate, channels: int, reads: Reads | None, step: int) -> None:
        super().__init__()
        self.gate, self.reads, self.step = copy.deepcopy(gate).requires_grad_(False), reads, step
        saliency = self.gate.fixed()
        self.fixed = None if saliency is None else self._kept(self.gate.mask(saliency[None])[0], fixed=True)
        self.decide = self.gate.for_one_image(channels)

    def forward(self, x: Tensor, *selections: Selection) -> Selection:
        if len(x) > 1:
            return Selection(None, self.gate.mask(self.gate(x)))
        if self.fixed is not None:
            return self.fixed
        there = None if self.reads is None else self.reads.positions(selections)
        return self._kept(self.decide(self.gate.pool(x), there))

    def _kept(self, mask: Tensor, fixed: bool = False) -> Selection:
        numbers = mask.numpy(force=True)  # a few hundred: what torch takes to begin is more than numpy takes
        stays = numbers > 0
        index = stays.nonzero()[0]
        missing = min(len(mask), max(1, -(-len(index) // self.step)) * self.step) - len(index)
        if missing:
            stays[(~stays).nonzero()[0][:missing]] = True
            index = stays.nonzero()[0]
        kept, scale = torch.from_numpy(index), torch.from_numpy(numbers[index])
        return Selection(kept.to(mask.device), scale.to(mask.device), fixed)


class Pick(nn.Module):
    """The entries of a parameter that belong to kept channels."""

    def __init__(self, reads: Reads, dim: int) -> None:
        super().__init__()
        self.reads, self.dim = reads, dim

    def forward(self, tensor: Tensor, *selections: Selection) -> Tensor:
        if selections[0].kept is None:
            return tensor
        return tensor.index_select(self.dim, self.reads.positions(selections))


class Sliced(nn.Module):
    """Base of layers that take slices of their weights: ``forward(x, *selections)``, those that it reads and those
    that it writes, each once."""

    def __init__(self, read: Reads | None, written: Reads | None) -> None:
        super().__init__()
        self.read, self.written = read, written
        self._into: list[int] = []
        self._out: list[int] = []

    def set_order(self, into: list[int], out: list[int], given: list[int]) -> None:
        """Where among the given selections those of sites that are read and written stand."""
        self._into, self._out = [given.index(i) for i in into], [given.index(i) for i in out]

    def into(self, selections: tuple[Selection, ...]) -> tuple[Selection, ...]:
        return tuple(selections[i] for i in self._into)

    def out(self, selections: tuple[Selection, ...]) -> tuple[Selection, ...]:
        return tuple(selections[i] for i in self._out)


class BlockConv(Sliced):
    """A convolution whose channels are those of one site or of none, in blocks of neighbours, on either side: the
    weight lies (O, H, W, C), as the map does, so that slices are copied in runs as long as can be."""

    def __init__(self, conv: nn.Conv2d, read: Reads | None, written: Reads | None) -> None:
        super().__init__(read, written)
        weight = conv.weight.detach().permute(0, 2, 3, 1)
        out, self.height, self.width, into = weight.shape
        self.options = (conv.stride, conv.padding, conv.dilation)
        bo = written.block if written is not None and written.where else out
        bi = read.block if read is not None and read.where else into
        shape = (out // bo, bo * self.height * self.width, into // bi, bi)
        self.register_buffer("blocks", weight.contiguous().view(shape), persistent=False)
        self.register_buffer("inner", torch.arange(shape[1]), persistent=False)
        bias = torch.zeros(out) if conv.bias is None else conv.bias.detach()
        self.register_buffer("bias", bias.clone().view(-1, bo), persistent=False)
        self._fixed: tuple[Tensor, Tensor] | None = None  # slices that are the same for every image

    def _slice(self, selections: tuple[Selection, ...]) -> tuple[Tensor, Tensor]:
        """The weight, in its order in memory but of any shape, and the bias."""
        if not all(selection.fixed for selection in selections):
            return self._cut(selections)
        if self._fixed is None:
            self._fixed = self._cut(selections)
        return self._fixed

    def _cut(self, selections: tuple[Selection, ...]) -> tuple[Tensor, Tensor]:
        weight, bias = self.blocks, self.bias
        rows = selections[self._out[0]].kept if self._out else None
        columns = selections[self._into[0]].kept if self._into else None
        if rows is not None:
            bias = bias.index_select(0, rows)
        if rows is not None and columns is not None and weight.shape[3] >= _LONG_RUN:  # at once: less to read
            _, inner, across, run = weight.shape
            lines = (rows[:, None] * inner + self.inner).view(-1, 1) * across + columns
            return weight.view(-1, run).index_select(0, lines.view(-1)), bias.view(-1)
        if rows is not None:
            weight = weight.index_select(0, rows)
        if columns is not None:
            weight = weight.flatten(0, 1).index_select(1, columns)
        return weight, bias.view(-1)

    def forward(self, x: Tensor, *selections: Selection) -> Tensor:
        weight, bias = self._slice(selections)
        stride, padding, dilation = self.options
        weight = weight.view(len(bias), self.height, self.width, -1).permute(0, 3, 1, 2)
        return F.conv2d(x, weight, bias, stride, padding, dilation)


class WideLinear(Sliced):
    """A linear layer that reads kept channels: zeros where the others were cost less than a copy of its columns."""

    def __init__(self, linear: nn.Linear, read: Reads, written: Reads | None) -> None:
        super().__init__(read, written)
        self.linear = _own(linear)

    def forward(self, x: Tensor, *selections: Selection) -> Tensor:
        if selections[0].kept is not None and self.read is not None:
            at = self.read.positions(self.into(selections))
            x = x.new_zeros(*x.shape[:-1], self.linear.in_features).index_copy_(-1, at, x)
        return self.linear(x)


class AnyLayer(Sliced):
    """Convolutions of any kind (depthwise, grouped, after a concatenation), linear layers, norms and PReLUs."""

    def __init__(self, module: nn.Module, read: Reads | None, written: Reads | None) -> None:
        super().__init__(read, written)
        self.module = _own(module)

    def forward(self, x: Tensor, *selections: Selection) -> Tensor:
        if selections[0].kept is None:
            return self.module(x)
        smaller = copy.copy(self.module)
        smaller._parameters, smaller._buffers = dict(self.module._parameters), dict(self.module._buffers)
        if self._out and self.written is not None:
            at = self.written.positions(self.out(selections))
            for table in (smaller._parameters, smaller._buffers):
                for name, tensor in table.items():
                    if tensor is not None and tensor.ndim:
                        table[name] = tensor.index_select(0, at)
        groups = getattr(smaller, "groups", 1)
        if self._into and self.read is not None and "weight" in smaller._parameters:
            at = self.read.positions(self.into(selections))
            if groups > 1:
                smaller.groups = groups * len(at) // smaller.in_channels
            elif isinstance(smaller, (nn.Conv2d, nn.Linear)):
                smaller._parameters["weight"] = smaller.weight.index_select(1, at)
        if isinstance(smaller, nn.PReLU):
            return F.prelu(x, smaller.weight)
        return smaller(x)


def make_layer(module: nn.Module, read: Reads | None, written: Reads | None) -> Sliced | None:
    """The sparse version of a layer, None where nothing that it reads or writes is gated."""
    gated = [reads for reads in (read, written) if reads is not None and reads.where]
    if not gated:
        return None
    plain = all(reads.block and reads.repeat == 1 for reads in gated)
    if type(module) is nn.Conv2d and module.groups == 1 and plain and _is_simple(module):
        return BlockConv(module, read, written)
    if type(module) is nn.Linear and gated == [read]:
        return WideLinear(module, gated[0], written)
    return AnyLayer(module, read, written)


def _own(module: nn.Module) -> nn.Module:
    """A copy with the same tensors, without the hooks of the gated network."""
    own = copy.copy(module)
    own._parameters, own._buffers = dict(module._parameters), dict(module._buffers)
    own._forward_pre_hooks = OrderedDict()
    return own


def _is_simple(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
