"""What stands in the place of layers in a compressed part of a network.

A :class:`LayerDelta` replaces one layer, in the coordinates of the channels that stay. Compressors make them, bundles
store them, engines apply them:

    Mix       the weight ``W M``: kept channels stand for all that the base layer read
    Weights   a weight and a bias of their own
    Factors   two layers, through fewer channels or with separable kernels
    Constant  nothing: the same value everywhere; what only this layer needed is not run

A new kind is one class here; bundles, engines and exports take it from :data:`KINDS`.
"""

from __future__ import annotations

import copy
import operator
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, fx, nn

from sinf.graph.branches import alone_for, may_go, to_sum
from sinf.graph.coupling import Coupling, Slot, unfolds
from sinf.graph.slice import copy_graph, slice_graph
from sinf.graph.trace import layer as layer_of


class LayerDelta(ABC):
    """What stands in the place of one layer, a convolution or a linear layer whose weight is ``(O, C, ...)``."""

    kind: ClassVar[str]

    @abstractmethod
    def apply(self, base: nn.Module, sliced: nn.Module, out: Tensor, read: Slot) -> nn.Module:
        """The layer that runs.

        ``base`` is the base model's layer, ``sliced`` the same with the channels that stay, ``out`` (O',) the rows of
        the weight that stay, ``read`` what the base model's layer reads.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by the name of their field."""

    @abstractmethod
    def fits(self, base: nn.Module, shape: tuple[int, ...], read: Slot) -> bool:
        """Whether the tensors have shapes that may stand for ``base``, whose weight has the ``shape`` (O', C', ...)
        when the channels stay that do; see :meth:`apply` for the others."""


@dataclass(frozen=True)
class Mix(LayerDelta):
    """The weight ``W M`` for a matrix ``(C, k)``: how the k channels that stay stand for all that the base layer
    reads."""

    matrix: Tensor
    kind = "mix"

    def apply(self, base: nn.Module, sliced: nn.Module, out: Tensor, read: Slot) -> nn.Module:
        weight = base.weight.detach()
        rows = weight.index_select(0, out) if len(out) < len(weight) else weight
        return with_weights(sliced, weight=mixed(rows, self.matrix, read))

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def fits(self, base: nn.Module, shape: tuple[int, ...], read: Slot) -> bool:
        return groups_of(base) == 1 and self.matrix.shape == (len(read.units), shape[1] // read.repeat)


@dataclass(frozen=True)
class Weights(LayerDelta):
    """A weight ``(O', C', ...)`` and, unless the layer has none, a bias ``(O',)``."""

    weight: Tensor
    bias: Tensor | None = None
    kind = "weights"

    def apply(self, base: nn.Module, sliced: nn.Module, out: Tensor, read: Slot) -> nn.Module:
        return with_weights(sliced, **self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def fits(self, base: nn.Module, shape: tuple[int, ...], read: Slot) -> bool:
        if self.bias is not None and (base.bias is None or self.bias.shape != shape[:1]):
            return False
        return self.weight.shape == shape


@dataclass(frozen=True)
class Factors(LayerDelta):
    """Two layers: ``reduce`` to r channels without a bias, then ``expand`` with one.

    Through channels ``reduce`` is ``(r, C', kh, kw)`` and ``expand`` ``(O', r, 1, 1)``; separable, they are
    ``(r, C', 1, kw)`` and ``(O', r, kh, 1)``; of a linear layer ``(r, C')`` and ``(O', r)``. Those of a convolution in
    G groups are in the same groups: ``(r, C'/G, kh, kw)`` and ``(O', r/G, 1, 1)``.
    """

    reduce: Tensor
    expand: Tensor
    bias: Tensor
    kind = "factors"

    def apply(self, base: nn.Module, sliced: nn.Module, out: Tensor, read: Slot) -> nn.Module:
        first, second = self._linear() if isinstance(sliced, nn.Linear) else self._convolutions(sliced)
        dtype = sliced.weight.dtype
        first.weight = _frozen(self.reduce.to(dtype))
        second.weight, second.bias = _frozen(self.expand.to(dtype)), _frozen(self.bias.to(dtype))
        return nn.Sequential(OrderedDict(reduce=first, expand=second)).eval()

    def tensors(self) -> dict[str, Tensor]:
        return {"reduce": self.reduce, "expand": self.expand, "bias": self.bias}

    def fits(self, base: nn.Module, shape: tuple[int, ...], read: Slot) -> bool:
        if not can_factor(base):
            return False
        out, into, *kernel = shape
        rank, ones, groups = len(self.reduce), [1] * len(kernel), groups_of(base) * out // len(base.weight)
        forms = [(kernel, ones)] + ([([1, kernel[1]], [kernel[0], 1])] if len(kernel) == 2 and groups == 1 else [])
        shapes = [((rank, into, *one), (out, rank // groups, *two)) for one, two in forms]
        whole = rank > 0 and rank % groups == 0  # as many of every group
        return whole and self.bias.shape == (out,) and (self.reduce.shape, self.expand.shape) in shapes

    def _linear(self) -> tuple[nn.Module, nn.Module]:
        rank, into = self.reduce.shape
        with torch.device("meta"):
            return nn.Linear(into, rank, bias=False), nn.Linear(rank, len(self.expand))

    def _convolutions(self, sliced: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Each walks in the directions in which it has a kernel; the first, where neither has one. Both have the
        groups of ``sliced``."""
        own = cast(nn.Conv2d, sliced)
        second = [size > 1 for size in self.expand.shape[2:]]

        def convolution(weight: Tensor, mine: list[bool], bias: bool) -> nn.Conv2d:
            options = {
                name: tuple(value if here else none for value, here in zip(getattr(own, name), mine, strict=True))
                for name, none in (("stride", 1), ("padding", 0), ("dilation", 1))
            }
            out, into, *kernel = weight.shape
            with torch.device("meta"):
                return nn.Conv2d(into * own.groups, out, tuple(kernel), groups=own.groups, **options, bias=bias)

        return convolution(self.reduce, [not here for here in second], False), convolution(self.expand, second, True)


@dataclass(frozen=True)
class Constant(LayerDelta):
    """One value ``(O',)`` for every channel, whatever is read."""

    value: Tensor
    kind = "constant"

    def apply(self, base: nn.Module, sliced: nn.Module, out: Tensor, read: Slot) -> nn.Module:
        return ConstantMap(self.value.to(sliced.weight.dtype), sliced)

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def fits(self, base: nn.Module, shape: tuple[int, ...], read: Slot) -> bool:
        return self.value.shape == shape[:1]


class ConstantMap(nn.Module):
    """A value for every channel, in the shape of what ``layer`` makes."""

    def __init__(self, value: Tensor, layer: nn.Module) -> None:
        super().__init__()
        self.value = _frozen(value)
        names = ("kernel_size", "stride", "padding", "dilation")
        self.walk = tuple(getattr(layer, name) for name in names) if isinstance(layer, nn.Conv2d) else None

    def forward(self, x: Tensor) -> Tensor:
        if self.walk is None:
            return self.value.expand(*x.shape[:-1], -1).clone()
        return self.value[:, None, None].expand(x.shape[0], -1, *walked(x.shape[2:], *self.walk)).clone()


KINDS: dict[str, type[LayerDelta]] = {each.kind: each for each in (Mix, Weights, Factors, Constant)}
#: By target, what stands in the place of layers.
LayerDeltas = dict[str, LayerDelta]


def can_factor(module: nn.Module) -> bool:
    """Whether a layer can be written as two: a convolution in two dimensions, in groups of several outputs where it is
    in groups, or a linear layer."""
    return why_one(module) is None


def why_one(module: nn.Module) -> str | None:
    """Why a layer cannot be written as two; None where it can."""
    if isinstance(module, nn.Linear):
        return None
    if not isinstance(module, nn.Conv2d):
        return "no convolution in two dimensions"
    if module.groups > 1 and module.groups == module.out_channels:
        return "one output a group"
    return None if unfolds(module) else "padded otherwise than by zeros"


def groups_of(module: nn.Module) -> int:
    """Of a convolution; every other layer is one."""
    return int(getattr(module, "groups", 1))


def mixed(weight: Tensor, mix: Tensor, read: Slot) -> Tensor:
    """``W M`` for a weight ``(O, C, ...)``, or ``(O, C * repeat)`` after a flattening."""
    mix = mix.to(weight.dtype)
    if weight.ndim == 2:
        return (weight.unflatten(1, (-1, read.repeat)).transpose(1, 2) @ mix).transpose(1, 2).flatten(1)
    return (weight.movedim(1, -1) @ mix).movedim(-1, 1).contiguous()


def with_weights(layer: nn.Module, **tensors: Tensor) -> nn.Module:
    """A copy of a layer with other tensors in the type of its own; what is not given is shared."""
    new = copy.copy(layer)
    new._parameters = dict(layer._parameters)
    for name, tensor in tensors.items():
        setattr(new, name, _frozen(tensor.to(layer.weight.dtype)))
    return new


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def to_tensors(layers: Mapping[str, LayerDelta]) -> dict[str, Tensor]:
    """All tensors by ``KIND.FIELD.TARGET``."""
    return {
        f"{delta.kind}.{field}.{target}": tensor
        for target, delta in layers.items()
        for field, tensor in delta.tensors().items()
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> LayerDeltas:
    """The inverse of :func:`to_tensors`.

    Raises:
        ValueError: a name is no ``KIND.FIELD.TARGET``, fields are missing, or two kinds stand for one layer.
    """
    fields: dict[str, tuple[str, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        kind, field, target = [*name.split(".", 2), "", ""][:3]
        first, mine = fields.setdefault(target, (kind, {}))
        if kind not in KINDS or first != kind or not target:
            raise ValueError(f"no part of a layer: {name[:100]}")
        mine[field] = tensor
    try:
        return {target: KINDS[kind](**mine) for target, (kind, mine) in fields.items()}
    except TypeError as error:
        raise ValueError(f"fields of a layer: {error}") from error


def apply(graph: fx.GraphModule, coupling: Coupling, keep: Tensor, layers: Mapping[str, LayerDelta]) -> fx.GraphModule:
    """``graph`` with the units that stay (units,) bool and with the given layers; what did not change is shared.

    Layers that become two are two calls, ``TARGET.reduce`` and ``TARGET.expand``; a residual branch that became a
    constant is not run. Layers of another part of the network are left out.
    """
    return without_constants(unrolled(replaced(graph, coupling, keep, layers)))


def replaced(
    graph: fx.GraphModule, coupling: Coupling, keep: Tensor, layers: Mapping[str, LayerDelta]
) -> fx.GraphModule:
    """The same with the same nodes as ``graph``: layers that become two are called as one."""
    smaller = slice_graph(graph, coupling, keep)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    for target, delta in layers.items():
        if target in called:
            sliced = smaller.get_submodule(target)
            out, read = coupling.writes[target].index(keep), coupling.reads[target]
            smaller.set_submodule(target, delta.apply(graph.get_submodule(target), sliced, out, read))
    return smaller


def unrolled(graph: fx.GraphModule) -> fx.GraphModule:
    """``graph`` with two calls where a layer became two."""
    pairs = {
        str(node.target)
        for node in graph.graph.nodes
        if node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.Sequential)
    }
    if not pairs:
        return graph
    new = fx.GraphModule(graph, copy_graph(graph.graph), class_name=type(graph).__name__)
    for node in list(new.graph.nodes):
        if node.op == "call_module" and node.target in pairs:
            with new.graph.inserting_before(node):
                reduced = new.graph.call_module(f"{node.target}.reduce", node.args, node.kwargs)
            reduced.meta = dict(node.meta)
            node.target, node.args, node.kwargs = f"{node.target}.expand", (reduced,), {}
            reduced.meta["shape"] = _shape_after(layer_of(new, reduced), _source(reduced).meta.get("shape"))
    new.recompile()
    return new.train(graph.training)


def without_constants(graph: fx.GraphModule) -> fx.GraphModule:
    """``graph`` where a residual branch whose last layer is a constant is one value a channel, which is added; what
    only the branch needed is gone. A constant elsewhere is left as a layer."""
    ends = [
        node for node in graph.graph.nodes
        if node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), ConstantMap)
    ]  # fmt: skip
    if not ends:
        return graph
    new = fx.GraphModule(graph, copy_graph(graph.graph), class_name=type(graph).__name__)
    names = {node.name for node in ends}
    for node in [node for node in new.graph.nodes if node.name in names]:
        chain = to_sum(new, node)
        if chain is None:
            continue
        (total,) = chain[-1].users
        (other,) = [source for source in total.all_input_nodes if source is not chain[-1]]
        if not may_go(total, other):
            continue
        module = new.get_submodule(str(node.target))
        value = module.value.detach()[None, :, None, None]
        for between in chain[1:]:
            value = new.get_submodule(str(between.target))(value)
        name = f"{str(node.target).replace('.', '_')}_constant"
        new.register_buffer(name, value)
        with new.graph.inserting_before(total):
            constant = new.graph.get_attr(name)
            constant.meta["shape"] = tuple(value.shape)
            added = new.graph.call_function(operator.add, (other, constant))
        added.meta = dict(total.meta)
        total.replace_all_uses_with(added)
        dead = alone_for(node) | {total, *chain}
        for gone in [each for each in reversed(new.graph.nodes) if each in dead]:
            new.graph.erase_node(gone)
    new.delete_all_unused_submodules()
    new.recompile()
    return new.train(graph.training)


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _shape_after(layer: nn.Module, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The shape that a convolution or linear layer makes of one."""
    if shape is None:
        return None
    if not isinstance(layer, nn.Conv2d):
        return (*shape[:-1], layer.weight.shape[0])
    sides = walked(shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return (shape[0], layer.weight.shape[0], *sides)


def walked(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The sides of what a convolution makes of a map of these sides."""
    each = zip(sizes, kernel, stride, padding, dilation, strict=True)
    return [(n + 2 * int(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each]
