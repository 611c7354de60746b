"""What stands in the place of layers in a compressed part of a network.

A :class:`LayerDelta` replaces one layer, in the coordinates of the channels that stay. Compressors make them, bundles
store them, engines apply them:

    Mix       the weight ``W M``: kept channels stand for all that the base layer read
    Weights   a weight and a bias of their own
    Factors   two layers, through fewer channels or with separable kernels

A new kind is one class here; bundles, engines and exports take it from :data:`KINDS`.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, fx, nn

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
        return self.matrix.shape == (len(read.units), shape[1] // read.repeat)


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
    ``(r, C', 1, kw)`` and ``(O', r, kh, 1)``; of a linear layer ``(r, C')`` and ``(O', r)``.
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
        rank, ones = len(self.reduce), [1] * len(kernel)
        forms = [(kernel, ones)] + ([([1, kernel[1]], [kernel[0], 1])] if len(kernel) == 2 else [])
        shapes = [((rank, into, *one), (out, rank, *two)) for one, two in forms]
        return rank > 0 and self.bias.shape == (out,) and (self.reduce.shape, self.expand.shape) in shapes

    def _linear(self) -> tuple[nn.Module, nn.Module]:
        rank, into = self.reduce.shape
        with torch.device("meta"):
            return nn.Linear(into, rank, bias=False), nn.Linear(rank, len(self.expand))

    def _convolutions(self, sliced: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Each walks in the directions in which it has a kernel; the first, where neither has one."""
        own = cast(nn.Conv2d, sliced)
        second = [size > 1 for size in self.expand.shape[2:]]

        def convolution(weight: Tensor, mine: list[bool], bias: bool) -> nn.Conv2d:
            options = {
                name: tuple(value if here else none for value, here in zip(getattr(own, name), mine, strict=True))
                for name, none in (("stride", 1), ("padding", 0), ("dilation", 1))
            }
            out, into, *kernel = weight.shape
            with torch.device("meta"):
                return nn.Conv2d(into, out, tuple(kernel), **options, bias=bias)

        return convolution(self.reduce, [not here for here in second], False), convolution(self.expand, second, True)


KINDS: dict[str, type[LayerDelta]] = {each.kind: each for each in (Mix, Weights, Factors)}
#: By target, what stands in the place of layers.
LayerDeltas = dict[str, LayerDelta]


def can_factor(module: nn.Module) -> bool:
    """Whether a layer can be written as two: a full convolution in two dimensions, or a linear layer."""
    if isinstance(module, nn.Linear):
        return True
    return unfolds(module) and module.groups == 1


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
        known, mine = fields.setdefault(target, (kind, {}))
        if kind not in KINDS or known != kind or not target:
            raise ValueError(f"no part of a layer: {name[:100]}")
        mine[field] = tensor
    try:
        return {target: KINDS[kind](**mine) for target, (kind, mine) in fields.items()}
    except TypeError as error:
        raise ValueError(f"fields of a layer: {error}") from error


def apply(graph: fx.GraphModule, coupling: Coupling, keep: Tensor, layers: Mapping[str, LayerDelta]) -> fx.GraphModule:
    """``graph`` with the units that stay (units,) bool and with the given layers; what did not change is shared.

    Layers that become two are two calls, ``TARGET.reduce`` and ``TARGET.expand``. Layers of another part of the
    network are left out.
    """
    return unrolled(replaced(graph, coupling, keep, layers))


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


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _shape_after(layer: nn.Module, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The shape that a convolution or linear layer makes of one."""
    if shape is None:
        return None
    if not isinstance(layer, nn.Conv2d):
        return (*shape[:-1], layer.weight.shape[0])
    walks = zip(shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    sides = (math.floor((n + 2 * int(p) - d * (k - 1) - 1) / s) + 1 for n, k, s, p, d in walks)
    return (shape[0], layer.weight.shape[0], *sides)
