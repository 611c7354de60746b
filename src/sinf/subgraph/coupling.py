"""Which channels must go together: abstract interpretation of a traced model.

Every value of the graph gets a :class:`Channels`: which of its dimensions holds channels, and one *atom* for each of
them. A convolution or linear layer makes fresh atoms; elementwise operations of two values unite theirs; concatenation
joins them; flattening repeats them. What is united at the end is a *unit*, the smallest thing that can be removed, and
units that meet in one tensor form a *coupled group*. An operation that is not known here blocks the groups it touches, by
name: nothing is guessed, so nothing is cut wrongly (a channel shuffle, for instance, blocks what it moves).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sinf.errors import CutError
from sinf.models.trace import attribute, layer

# Layers and functions that treat every channel alone and keep the dimensions' order.
_CHANNELWISE_LAYERS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity, nn.modules.dropout._DropoutNd,
    nn.modules.pooling._AvgPoolNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
_CHANNELWISE_NAMES = {
    "relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh",
    "sigmoid", "tanh", "softplus", "dropout", "dropout2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d",
    "max_pool2d", "boolean_dispatch", "contiguous", "clone", "detach", "float", "to", "stochastic_depth", "drop_path",
    "clamp", "interpolate", "neg", "abs", "exp", "sqrt",
}  # fmt: skip
_COMBINING_NAMES = {"add", "iadd", "add_", "sub", "isub", "mul", "imul", "mul_", "truediv", "div", "itruediv"}
_NOT_TENSOR_NAMES = {"size", "getattr", "dim", "_assert", "eq", "ne", "floordiv"}

_IS_INPUT, _IS_OUTPUT = "the network's input", "the network's output"


@dataclass(frozen=True)
class Channels:
    """``dim`` holds the channels; ``atoms`` is one atom a channel; each is ``repeat`` neighbours (after flattening)."""

    dim: int
    atoms: list[int]
    repeat: int = 1


@dataclass(frozen=True)
class Slot:
    """A dimension of a layer or parameter and the unit of each of its channels; ``repeat`` as in :class:`Channels`."""

    dim: int
    units: Tensor
    repeat: int = 1

    def index(self, keep: Tensor) -> Tensor:
        """Positions along the dimension that stay when ``keep`` (units,) bool does."""
        return torch.nonzero(keep[self.units].repeat_interleave(self.repeat)).flatten()


@dataclass(frozen=True)
class CoupledGroup:
    """Channels of several layers that must be removed together. ``units`` (size,) are numbers of units."""

    name: str
    units: Tensor
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    blocked: str | None

    @property
    def size(self) -> int:
        return len(self.units)


@dataclass
class Coupling:
    """The result. ``reads`` and ``writes`` hold, by target, what layers read and write; ``mixers`` are the nodes of
    convolutions (not depthwise) and linear layers in graph order, where channels meet."""

    units: int
    groups: dict[str, CoupledGroup]
    reads: dict[str, Slot]
    writes: dict[str, Slot]
    values: dict[str, Slot]
    mixers: dict[str, str] = field(default_factory=dict)
    input: Slot | None = None
    output: Slot | None = None

    def keep_all(self) -> Tensor:
        return torch.ones(self.units, dtype=torch.bool)

    def free_groups(self) -> list[CoupledGroup]:
        """Groups that may lose channels, in graph order; an error names what blocks them when there is none."""
        free = [group for group in self.groups.values() if group.blocked is None and group.size > 1]
        if not free:
            reasons = list(dict.fromkeys(g.blocked for g in self.groups.values() if g.blocked))
            reasons = [reason for reason in reasons if reason not in (_IS_INPUT, _IS_OUTPUT)] or reasons
            raise CutError(
                "no channels of this network can be removed",
                got="blocked by " + "; ".join(reasons[:4]) + (f"; and {len(reasons) - 4} more" if reasons[4:] else ""),
                remedy="cut elsewhere, or replace the operation that stands in the way",
            )
        return free


def couple(graph: fx.GraphModule, *, free_input: bool = False, free_output: bool = False) -> Coupling:
    """Find the coupled groups of a traced model or a part of one.

    ``free_input`` and ``free_output`` say that the channels of the graph's input or output may be removed too (the
    features between extractor and tail; the classes of a head).
    """
    return _Analysis(graph).run(free_input, free_output)


class _Unknown(Exception):
    """An operation that the analysis does not follow."""


class _Analysis:
    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.parent: list[int] = []
        self.blocked: dict[int, str] = {}
        self.values: dict[fx.Node, Channels | None] = {}
        self.reads: dict[str, Channels] = {}
        self.writes: dict[str, Channels] = {}
        self.mixers: dict[str, str] = {}

    def run(self, free_input: bool, free_output: bool) -> Coupling:
        source: Channels | None = None
        sink: Channels | None = None
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                shape = node.meta.get("shape")
                value = None if shape is None else Channels(1, self.fresh(shape[1]))
                if source is None and value is not None:
                    source = value
                    if not free_input:
                        self.block(value, _IS_INPUT)
            elif node.op == "output":
                sink = self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
                if sink is None:
                    self.block_inputs(node, "the network must return one tensor")
                elif not free_output:
                    self.block(sink, _IS_OUTPUT)
                continue
            else:
                value = self.follow(node)
            self.values[node] = value
        return self.result(source, sink)

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
            return self.follow_layer(node) if node.op == "call_module" else self.follow_function(node)
        except _Unknown as reason:
            self.block_inputs(node, str(reason) or _operation(node, self.graph))
            return self.opaque(node)

    def opaque(self, node: fx.Node) -> Channels | None:
        """The value of an operation that is not followed: channels that must all stay, so that the next layer that makes
        fresh ones is followed again."""
        shape = node.meta["shape"]
        if len(shape) < 2:
            return None
        known = [self.values[n] for n in node.all_input_nodes if self.values.get(n) is not None]
        dim = known[0].dim if known and known[0].dim < len(shape) else (1 if len(shape) in (2, 4) else len(shape) - 1)
        value = Channels(dim, self.fresh(shape[dim]))
        self.block(value, _operation(node, self.graph))
        return value

    def follow_layer(self, node: fx.Node) -> Channels:
        module, target = layer(self.graph, node), str(node.target)
        x = self.one_input(node)
        if isinstance(module, nn.modules.conv._ConvNd):
            if module.transposed or x.dim != 1 or x.repeat != 1:
                raise _Unknown
            return self.follow_conv(node, module, target, x)
        if isinstance(module, nn.Linear):
            if x.dim != len(node.meta["shape"]) - 1:
                raise _Unknown
            return self.mix(node, target, x, Channels(x.dim, self.fresh(module.out_features)))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if x.dim != 1 or x.repeat != 1:
                raise _Unknown
            return self.write(target, x)
        if isinstance(module, nn.PReLU):
            return self.write(target, x) if module.num_parameters > 1 else x
        if isinstance(module, nn.Flatten):
            return self.flatten(node, x, module.start_dim)
        if isinstance(module, _CHANNELWISE_LAYERS):
            return x
        raise _Unknown

    def follow_conv(self, node: fx.Node, module: nn.modules.conv._ConvNd, target: str, x: Channels) -> Channels:
        out = self.fresh(module.out_channels)
        if module.groups == 1:
            return self.mix(node, target, x, Channels(1, out))
        # Channels of one convolution group can only go together, inputs and outputs alike.
        per_in, per_out = module.in_channels // module.groups, module.out_channels // module.groups
        for group in range(module.groups):
            members = x.atoms[group * per_in : (group + 1) * per_in] + out[group * per_out : (group + 1) * per_out]
            for atom in members[1:]:
                self.unite(members[0], atom)
        self.remember(self.reads, target, x)
        return self.write(target, Channels(1, out))

    def follow_function(self, node: fx.Node) -> Channels:
        name = _name(node)
        if name in _COMBINING_NAMES:
            return self.combine(node)
        if name == "cat":
            return self.concatenate(node)
        if name == "batch_norm":  # opened layers of other libraries call the function
            return self.normalise(node)
        x = self.one_input(node)
        rank_in, rank_out = len(node.all_input_nodes[0].meta["shape"]), len(node.meta["shape"])
        if name in _CHANNELWISE_NAMES:
            return x
        if name == "flatten":
            return self.flatten(node, x, _argument(node, 1, "start_dim", 0))
        if name in ("view", "reshape"):
            size = node.args[1:] if not isinstance(node.args[1], (tuple, list)) else tuple(node.args[1])
            if rank_out != 2 or size[-1] != -1:  # a number of features written into the code cannot shrink
                raise _Unknown
            return self.flatten(node, x, 1)
        if name == "mean":
            dims = _argument(node, 1, "dim", None)
            if dims is None:
                raise _Unknown
            dims = [d % rank_in for d in (dims if isinstance(dims, (tuple, list)) else [dims])]
            if x.dim in dims:
                raise _Unknown
            lost = 0 if rank_in == rank_out else sum(d < x.dim for d in dims)
            return Channels(x.dim - lost, x.atoms, x.repeat)
        if name == "permute":
            order = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
            return Channels([d % rank_in for d in order].index(x.dim), x.atoms, x.repeat)
        if name == "transpose":
            a, b = (d % rank_in for d in node.args[1:3])
            return Channels({a: b, b: a}.get(x.dim, x.dim), x.atoms, x.repeat)
        if name == "squeeze" and rank_in - rank_out == 2 and x.dim == 1:
            return x
        raise _Unknown

    def combine(self, node: fx.Node) -> Channels:
        """Elementwise operation of two values, or of a value and a parameter, with broadcasting."""
        rank = len(node.meta["shape"])
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        known = [(self.values[a], len(a.meta["shape"])) for a in operands if self.values.get(a) is not None]
        main, main_rank = max((k for k in known if k[0] is not None), key=lambda k: len(k[0].atoms))
        dim = main.dim + rank - main_rank
        for other, other_rank in known:
            if other is main or len(other.atoms) == 1 < len(main.atoms):
                continue  # a single channel is spread over all: it stays and ties nothing
            if other.dim + rank - other_rank != dim or other.repeat != main.repeat:
                raise _Unknown
            for a, b in zip(main.atoms, other.atoms, strict=True):
                self.unite(a, b)
        for operand in operands:
            if operand.op == "get_attr":
                shape = operand.meta["shape"]
                own = dim - (rank - len(shape))
                if own >= 0 and shape[own] == len(main.atoms) * main.repeat:
                    self.write(str(operand.target), Channels(own, main.atoms, main.repeat))
                elif own >= 0 and shape[own] != 1:
                    raise _Unknown
            elif self.values.get(operand) is None and operand.meta.get("shape"):
                raise _Unknown  # a tensor of unknown origin
        return Channels(dim, main.atoms, main.repeat)

    def normalise(self, node: fx.Node) -> Channels:
        x = self.values.get(node.args[0])
        if x is None or x.dim != 1 or x.repeat != 1:
            raise _Unknown
        for source in node.all_input_nodes[1:]:
            if source.op != "get_attr":
                raise _Unknown
            self.write(str(source.target), Channels(0, x.atoms))
        return x

    def concatenate(self, node: fx.Node) -> Channels:
        parts = [self.values.get(n) for n in node.args[0]]
        dim = _argument(node, 1, "dim", 0) % len(node.meta["shape"])
        atoms: list[int] = []
        for part in parts:
            if part is None or part.dim != dim or part.repeat != 1:
                raise _Unknown
            atoms += part.atoms
        return Channels(dim, atoms)

    def flatten(self, node: fx.Node, x: Channels, start: int) -> Channels:
        shape = node.all_input_nodes[0].meta["shape"]
        if x.dim != 1 or start != 1 or len(node.meta["shape"]) != 2:
            raise _Unknown
        return Channels(1, x.atoms, x.repeat * math.prod(shape[2:]))

    def mix(self, node: fx.Node, target: str, x: Channels, out: Channels) -> Channels:
        self.mixers[node.name] = target
        self.remember(self.reads, target, x)
        return self.write(target, out)

    def one_input(self, node: fx.Node) -> Channels:
        inputs = [n for n in node.all_input_nodes if n.meta.get("shape") is not None]
        value = self.values.get(inputs[0]) if len(inputs) == 1 else None
        if value is None:
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

    # ---- the result

    def result(self, source: Channels | None, sink: Channels | None) -> Coupling:
        roots = [self.root(atom) for atom in range(len(self.parent))]
        numbers = {root: number for number, root in enumerate(dict.fromkeys(roots))}
        unit_of = torch.tensor([numbers[root] for root in roots], dtype=torch.int64)

        def slot(value: Channels) -> Slot:
            return Slot(value.dim, unit_of[value.atoms], value.repeat)

        reasons: dict[int, str] = {}
        for atom, reason in self.blocked.items():
            reasons.setdefault(int(unit_of[atom]), reason)
        reads = {target: slot(value) for target, value in self.reads.items()}
        writes = {target: slot(value) for target, value in self.writes.items()}
        coupling = Coupling(
            units=len(numbers),
            groups={},
            reads=reads,
            writes=writes,
            values={node.name: slot(value) for node, value in self.values.items() if value is not None},
            mixers=self.mixers,
            input=None if source is None else slot(source),
            output=None if sink is None else slot(sink),
        )
        producers = {t: s for t, s in writes.items() if t in reads}
        for name, units in _join(len(numbers), _named(coupling.input, producers)):
            members = set(units.tolist())
            coupling.groups[name] = CoupledGroup(
                name=name,
                units=units,
                producers=tuple(t for t, s in producers.items() if not members.isdisjoint(s.units.tolist())),
                consumers=tuple(
                    t for t in self.mixers.values() if not members.isdisjoint(reads[t].units.tolist())
                ),
                blocked=next((reasons[u] for u in units.tolist() if u in reasons), None),
            )
        return coupling


def _named(source: Slot | None, producers: dict[str, Slot]) -> Iterable[tuple[str, Tensor]]:
    if source is not None:
        yield "input", source.units
    for target, slot in producers.items():
        yield target, slot.units


def _join(count: int, tensors: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Units that meet in one produced tensor form a group, named after the first tensor."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    order: list[tuple[str, list[int]]] = []
    for name, units in tensors:
        order.append((name, units.tolist()))
        for unit in order[-1][1][1:]:
            parent[root(unit)] = root(order[-1][1][0])
    groups: dict[int, tuple[str, dict[int, None]]] = {}
    for name, members in order:
        groups.setdefault(root(members[0]), (name, {}))[1].update(dict.fromkeys(members))
    return [(name, torch.tensor(list(members), dtype=torch.int64)) for name, members in groups.values()]


def _name(node: fx.Node) -> str:
    """``add`` for ``operator.add``, ``torch.add`` and ``tensor.add``."""
    if node.op == "call_method":
        return str(node.target)
    target: Callable[..., Any] | str = node.target
    if target is F.max_pool2d or target is F.adaptive_max_pool2d:
        return "max_pool2d"
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


__all__ = ["Channels", "CoupledGroup", "Coupling", "Slot", "attribute", "couple"]
