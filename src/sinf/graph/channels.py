"""What every operation of a traced model does to channels: abstract interpretation.

Every value of the graph gets a :class:`Channels`: which of its dimensions holds channels, and one *atom* for each of
them. A convolution or linear layer makes fresh atoms; elementwise operations of two values unite theirs; concatenation
joins them; flattening repeats them. An operation that is not known here blocks the channels it touches, by name:
nothing is guessed, so nothing is cut wrongly (a channel shuffle, for instance, blocks what it moves). The next layer
that mixes all channels into new ones is followed again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from sinf.graph.trace import layer

# Layers and functions that treat every number alone, so that it does not matter which dimension holds the channels.
_ELEMENTWISE_LAYERS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity, nn.modules.dropout._DropoutNd,
)  # fmt: skip
_ELEMENTWISE_NAMES = {
    "relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "sigmoid", "tanh", "softplus", "dropout", "dropout2d", "contiguous", "clone", "detach", "float", "to",
    "stochastic_depth", "drop_path", "clamp", "neg", "abs", "exp", "sqrt",
}  # fmt: skip
# Those that work on height and width: channels must come right after the batch.
_SPATIAL_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.pooling._AvgPoolNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
_SPATIAL_NAMES = {"adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d", "interpolate"}
_COMBINING_NAMES = {"add", "iadd", "add_", "sub", "isub", "mul", "imul", "mul_", "truediv", "div", "itruediv"}
_NOT_TENSOR_NAMES = {"size", "getattr", "dim", "_assert", "eq", "ne", "floordiv"}
# Layers of other libraries whose own forward does what that of their base does, after padding or a cast.
_AS_THEIR_BASE = {"timm.layers.conv2d_same.Conv2dSame", "timm.layers.linear.Linear"}

IS_INPUT, IS_OUTPUT = "the network's input", "the network's output"


@dataclass(frozen=True)
class Channels:
    """``dim`` holds the channels; ``atoms`` is one atom a channel; each is ``repeat`` neighbours (after flattening)."""

    dim: int
    atoms: list[int]
    repeat: int = 1

    @property
    def size(self) -> int:
        return len(self.atoms) * self.repeat


class _Unknown(Exception):
    """An operation that the analysis does not follow."""


class Propagation:
    """Follows the channels through a graph, from its input to its output, and holds what was found.

    ``values`` is by node, ``reads`` and ``writes`` by target; ``blocked`` are atoms that must stay, with the reason;
    a value of None has no channels that can go. :meth:`root` tells the set of united atoms that an atom is in.
    ``mixers`` and ``grouped`` are those of :class:`sinf.graph.coupling.Coupling`.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.parent: list[int] = []
        self.blocked: dict[int, str] = {}
        self.values: dict[fx.Node, Channels | None] = {}
        self.reads: dict[str, Channels] = {}
        self.writes: dict[str, Channels] = {}
        self.mixers: dict[str, str] = {}
        self.grouped: dict[str, str] = {}
        self.source: Channels | None = None
        self.sink: Channels | None = None
        self._pinned: dict[str, str] = {}

    def run(self, free_input: bool, free_output: bool) -> Propagation:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                shape = node.meta.get("shape")
                value = None if shape is None or len(shape) < 2 else Channels(1, self.fresh(shape[1]))
                if self.source is None and value is not None:
                    self.source = value
                    if not free_input:
                        self.block(value, IS_INPUT)
                self.values[node] = value
            elif node.op == "output":
                self.finish(node, free_output)
            else:
                self.values[node] = self.follow(node)
        for target, reason in self._pinned.items():
            for table in (self.reads, self.writes):
                for name in (target, target.rpartition(".")[0]):  # the layer, or the layer that the tensor belongs to
                    if name in table:
                        self.block(table[name], reason)
        return self

    def finish(self, node: fx.Node, free_output: bool) -> None:
        self.sink = self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        if self.sink is None:
            self.block_inputs(node, "the network must return one tensor")
        elif not free_output:
            self.block(self.sink, IS_OUTPUT)

    # ---- one operation

    def follow(self, node: fx.Node) -> Channels | None:
        if node.op == "get_attr":
            return None  # a parameter: it takes the channels of what it meets
        shape = node.meta.get("shape")
        if shape is None:  # a number, or several tensors
            if _name(node) not in _NOT_TENSOR_NAMES:
                self.block_inputs(node, _operation(node, self.graph))
            return None
        try:
            value = self.follow_layer(node) if node.op == "call_module" else self.follow_function(node)
            if value is not None and (value.dim >= len(shape) or value.size != shape[value.dim]):
                raise _Unknown
            return value
        except _Unknown as error:
            reason = str(error) or _operation(node, self.graph)
            if node.op == "call_module":  # another call of this layer may have been followed
                self._pinned.setdefault(str(node.target), reason)
            self.block_inputs(node, reason)
            return self.opaque(node)

    def opaque(self, node: fx.Node) -> Channels | None:
        """The value of an operation that is not followed: channels that must all stay."""
        shape = node.meta["shape"]
        if len(shape) < 2:
            return None
        dim = 1 if len(shape) in (2, 4) else len(shape) - 1
        for source in node.all_input_nodes:
            value = self.values.get(source)
            if value is not None and 0 < value.dim < len(shape) == len(source.meta["shape"]):
                dim = value.dim
                break
        return self.staying(dim, shape[dim], _operation(node, self.graph))

    def staying(self, dim: int, count: int, reason: str) -> Channels:
        value = Channels(dim, self.fresh(count))
        self.block(value, reason)
        return value

    def follow_layer(self, node: fx.Node) -> Channels:
        module, target = layer(self.graph, node), str(node.target)
        rank = len(node.meta["shape"])
        if not node.args or not _has_forward_of_torch(module):
            raise _Unknown
        if isinstance(module, nn.modules.conv._ConvNd):
            if module.transposed or rank != len(module.kernel_size) + 2:
                raise _Unknown
            return self.follow_conv(node, module, target)
        if isinstance(module, nn.Linear):
            if rank < 2:
                raise _Unknown
            return self.mix(
                node, target, self.mixed_input(node, rank - 1), Channels(rank - 1, self.fresh(module.out_features))
            )
        x = self.one_input(node)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if x.dim != 1 or x.repeat != 1:
                raise _Unknown
            return self.write(target, x)
        if isinstance(module, nn.PReLU):
            if module.num_parameters == 1:
                return x
            if x.dim != 1:
                raise _Unknown
            return self.write(target, x)
        if isinstance(module, nn.Flatten):
            return self.flatten(node, x, module.start_dim)
        if isinstance(module, _SPATIAL_LAYERS):
            return self.spatial(node, x, type(module).__name__)
        if isinstance(module, _ELEMENTWISE_LAYERS):
            return x
        raise _Unknown

    def follow_conv(self, node: fx.Node, module: nn.modules.conv._ConvNd, target: str) -> Channels:
        x, out = self.mixed_input(node, 1), self.fresh(module.out_channels)
        if x.repeat != 1:
            raise _Unknown
        if module.groups == 1:
            return self.mix(node, target, x, Channels(1, out))
        # Channels of one convolution group can only go together, inputs as well as outputs.
        per_in, per_out = module.in_channels // module.groups, module.out_channels // module.groups
        for group in range(module.groups):
            members = x.atoms[group * per_in : (group + 1) * per_in] + out[group * per_out : (group + 1) * per_out]
            for atom in members[1:]:
                self.unite(members[0], atom)
        self.remember(self.reads, target, x)
        if per_out > 1:
            self.grouped[node.name] = target
        return self.write(target, Channels(1, out))

    def mixed_input(self, node: fx.Node, dim: int) -> Channels:
        """What a layer reads along ``dim`` and mixes into new channels. Where the channels that are known lie elsewhere
        they must stay, and all of ``dim`` stays too."""
        source = node.all_input_nodes[0]
        value = self.values.get(source)
        if value is None or value.dim != dim:
            reason = _operation(node, self.graph)
            self.block_inputs(node, reason)
            return self.staying(dim, source.meta["shape"][dim], reason)
        return value

    def follow_function(self, node: fx.Node) -> Channels | None:
        name = _name(node)
        if name in _COMBINING_NAMES:
            return self.combine(node)
        if name == "cat":
            return self.concatenate(node)
        if name == "batch_norm":  # opened layers of other libraries call the function
            return self.normalise(node)
        x = self.one_input(node)
        rank_in, rank_out = len(node.all_input_nodes[0].meta["shape"]), len(node.meta["shape"])
        if name in _ELEMENTWISE_NAMES:
            return x
        if name in _SPATIAL_NAMES:
            return self.spatial(node, x, name)
        if name == "flatten":
            return self.flatten(node, x, _argument(node, 1, "start_dim", 0))
        if name in ("view", "reshape"):
            size = _several(node, "size" if name == "view" else "shape")
            if rank_out != 2 or size[-1] != -1:  # a number of features written into the code cannot shrink
                raise _Unknown
            return self.flatten(node, x, 1)
        if name in ("mean", "squeeze"):
            given = _argument(node, 1, "dim", None)
            dims = _whole(given if isinstance(given, (tuple, list)) else [given], rank_in)
            if x.dim in dims or (name == "squeeze" and 0 in dims):
                raise _Unknown
            sizes = node.all_input_nodes[0].meta["shape"]
            lost = 0 if rank_in == rank_out else sum(d < x.dim for d in dims if name == "mean" or sizes[d] == 1)
            return Channels(x.dim - lost, x.atoms, x.repeat)
        if name == "permute":
            return Channels(_whole(_several(node, "dims"), rank_in).index(x.dim), x.atoms, x.repeat)
        if name == "transpose":
            a, b = _whole((_argument(node, 1, "dim0", None), _argument(node, 2, "dim1", None)), rank_in)
            return Channels({a: b, b: a}.get(x.dim, x.dim), x.atoms, x.repeat)
        raise _Unknown

    def spatial(self, node: fx.Node, x: Channels, name: str) -> Channels:
        rank = len(node.all_input_nodes[0].meta["shape"])
        if x.dim != 1 or rank != {"1d": 3, "2d": 4, "3d": 5}.get(name[-2:], max(rank, 3)):
            raise _Unknown
        return x

    def combine(self, node: fx.Node) -> Channels | None:
        """Elementwise operation of two values, or of a value and a parameter, with broadcasting."""
        shape = node.meta["shape"]
        rank = len(shape)
        operands = list(node.all_input_nodes)
        if any(operand.meta.get("shape") is None for operand in operands):
            raise _Unknown  # a number that was read from a tensor
        ranked = [(value, len(o.meta["shape"])) for o in operands if (value := self.values.get(o)) is not None]
        if not ranked:  # of parameters alone
            self.block_inputs(node, _operation(node, self.graph))
            return None
        main, main_rank = max(ranked, key=lambda pair: pair[0].size)
        dim = main.dim + rank - main_rank
        if shape[dim] != main.size:
            raise _Unknown
        for operand in operands:
            value, sizes = self.values.get(operand), operand.meta["shape"]
            own = dim - (rank - len(sizes))
            spread = own < 0 or sizes[own] != shape[dim]  # along the channels: it ties nothing
            if value is not None and value.dim != own:
                raise _Unknown
            if spread:
                if value is not None:
                    self.block(value, _operation(node, self.graph))
                elif operand.op == "get_attr":
                    self._pinned.setdefault(str(operand.target), _operation(node, self.graph))
            elif value is not None:
                if value.repeat != main.repeat:
                    raise _Unknown
                for a, b in zip(main.atoms, value.atoms, strict=True):
                    self.unite(a, b)
            elif operand.op == "get_attr":
                self.write(str(operand.target), Channels(own, main.atoms, main.repeat))
            else:
                raise _Unknown  # a tensor of unknown origin
        return Channels(dim, main.atoms, main.repeat)

    def normalise(self, node: fx.Node) -> Channels:
        x = self.values.get(node.all_input_nodes[0])
        if x is None or x.dim != 1 or x.repeat != 1:
            raise _Unknown
        for source in node.all_input_nodes[1:]:
            if source.op != "get_attr":
                raise _Unknown
            self.write(str(source.target), Channels(0, x.atoms))
        return x

    def concatenate(self, node: fx.Node) -> Channels:
        parts = _argument(node, 0, "tensors", None)
        (dim,) = _whole([_argument(node, 1, "dim", node.kwargs.get("axis", 0))], len(node.meta["shape"]))
        if not isinstance(parts, (tuple, list)):
            raise _Unknown
        atoms: list[int] = []
        for part in (self.values.get(source) for source in parts):
            if part is None or part.dim != dim or part.repeat != 1:
                raise _Unknown
            atoms += part.atoms
        return Channels(dim, atoms)

    def flatten(self, node: fx.Node, x: Channels, start: int) -> Channels:
        shape = node.all_input_nodes[0].meta["shape"]
        if x.dim != 1 or _whole([start], len(shape)) != [1] or len(node.meta["shape"]) != 2:
            raise _Unknown
        return Channels(1, x.atoms, x.repeat * math.prod(shape[2:]))

    def mix(self, node: fx.Node, target: str, x: Channels, out: Channels) -> Channels:
        self.remember(self.reads, target, x)
        self.mixers[node.name] = target
        return self.write(target, out)

    def one_input(self, node: fx.Node) -> Channels:
        inputs = [n for n in node.all_input_nodes if n.meta.get("shape") is not None]
        value = self.values.get(inputs[0]) if len(inputs) == 1 else None
        if value is None or inputs[0] is not node.all_input_nodes[0]:
            raise _Unknown
        return value

    # ---- atoms

    def fresh(self, count: int) -> list[int]:
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return list(range(first, first + count))

    def root(self, atom: int) -> int:
        while self.parent[atom] != atom:
            self.parent[atom] = self.parent[self.parent[atom]]
            atom = self.parent[atom]
        return atom

    def unite(self, a: int, b: int) -> None:
        self.parent[self.root(b)] = self.root(a)

    def write(self, target: str, value: Channels) -> Channels:
        self.remember(self.writes, target, value)
        return value

    def remember(self, table: dict[str, Channels], target: str, value: Channels) -> None:
        """A layer that is called twice has the same channels both times."""
        if target in table:
            if table[target].repeat != value.repeat or len(table[target].atoms) != len(value.atoms):
                raise _Unknown(f"{target} is called with different shapes")
            for a, b in zip(table[target].atoms, value.atoms, strict=True):
                self.unite(a, b)
        table[target] = value

    def block(self, value: Channels, reason: str) -> None:
        for atom in value.atoms:
            self.blocked.setdefault(atom, reason)

    def block_inputs(self, node: fx.Node, reason: str) -> None:
        for source in node.all_input_nodes:
            value = self.values.get(source)
            if value is not None:
                self.block(value, reason)
            elif source.op == "get_attr":
                self._pinned.setdefault(str(source.target), reason)


def _has_forward_of_torch(module: nn.Module) -> bool:
    """Whether a layer computes what its class in torch says, and has its own weight (not one computed from others)."""
    kind = type(module)
    if f"{kind.__module__}.{kind.__qualname__}" not in _AS_THEIR_BASE:
        own = [getattr(kind, name, None) for name in ("forward", "_conv_forward")]
        if "forward" in vars(module) or not all((f.__module__ or "").startswith("torch.") for f in own if f):
            return False
    return "weight" not in vars(module)


def _name(node: fx.Node) -> str:
    """``add`` for ``operator.add``, ``torch.add`` and ``tensor.add``."""
    if node.op == "call_method":
        return str(node.target)
    target: Callable[..., Any] | str = node.target
    if target is F.max_pool2d:
        return "max_pool2d"
    if target is F.adaptive_max_pool2d:
        return "adaptive_max_pool2d"
    if target in (operator.add, torch.add):
        return "add"
    return getattr(target, "__name__", str(target))


def _operation(node: fx.Node, graph: fx.GraphModule) -> str:
    """An operation as a person would name it, with the place where it stands."""
    if node.op == "call_module":
        return f"{type(layer(graph, node)).__name__} at {node.target}"
    path = node.meta.get("module_path")
    return f"{_name(node)} ({node.name})" + (f" in {path}" if path else "")


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _several(node: fx.Node, name: str) -> tuple[Any, ...]:
    """Numbers given one by one, in a tuple or by keyword: ``x.permute(0, 1)``, ``torch.permute(x, dims=(0, 1))``."""
    given = node.kwargs.get(name) if len(node.args) < 2 else node.args[1] if len(node.args) == 2 else node.args[1:]
    values = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if not values or values[0] is None:
        raise _Unknown
    return values


def _whole(dims: Any, rank: int) -> list[int]:
    """Dimensions counted from the front; those that are not written as numbers are not followed."""
    if not all(isinstance(dim, int) for dim in dims):
        raise _Unknown
    return [dim % rank for dim in dims]
