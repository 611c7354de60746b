"""From a traced network to the data that :mod:`sinf.models.plain` makes it from again."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from sinf.errors import ModelError
from sinf.graph.trace import EXAMPLES, ShapeTracer, Tracer, attribute, without_unused_reads
from sinf.models.plain import FUNCTIONS, LAYERS, METHODS, Plain, checked

_PLACEMENT = ("self", "device", "dtype")


def to_plain(graph: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description of a traced network (JSON), and its tensors by the names that they had in the model.

    Layers of other libraries are opened, so that nothing but torch is needed to make it again.

    Raises:
        ModelError: it has something that the description cannot hold; the message names it.
    """
    shape = next(tuple(node.meta["shape"]) for node in graph.graph.nodes if node.op == "placeholder")
    graph = _without_identities(_opened(graph, shape), shape)
    layers: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    steps: list[dict[str, Any]] = []
    state: dict[str, Tensor] = {}
    constants: dict[fx.Node, Any] = {}  # arguments with defaults, which stay as they are
    for node in graph.graph.nodes:
        target = str(node.target)
        if node.op == "placeholder" and any(step["do"] == "input" for step in steps):
            constants[node] = node.args[0] if node.args else None
            continue
        step: dict[str, Any] = {"name": node.name}
        if node.op == "placeholder":
            steps.append(step | {"do": "input"})
            continue
        if node.op == "call_module":
            module = graph.get_submodule(target)
            if type(module).__name__ not in LAYERS:
                raise _unknown("layers", f"{type(module).__name__} at {target}")
            layers[target] = {"type": type(module).__name__, "args": _arguments(module, target)}
            state |= {f"{target}.{name}": value for name, value in module.state_dict().items()}
            step |= {"do": "layer", "of": target}
        elif node.op == "get_attr":
            value = attribute(graph, target)
            kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
            tensors[target] = {"kind": kind, "shape": list(value.shape), "dtype": _short(value.dtype)}
            state[target] = value
            step |= {"do": "tensor", "of": target}
        elif node.op == "call_function":
            step |= {"do": "function", "of": _name_of(node.target)}
        elif node.op == "call_method":
            if target not in METHODS:
                raise _unknown("methods of tensors", f"{target} at {node.name}")
            step |= {"do": "method", "of": target}
        else:
            step |= {"do": "output"}
        step["args"] = [_encode(a, node, constants) for a in node.args]
        if node.kwargs:
            step["kwargs"] = {name: _encode(a, node, constants) for name, a in node.kwargs.items()}
        steps.append(step)
    description = {"layers": layers, "tensors": tensors, "steps": steps}
    _checked(description, shape[1:], "replace this step before pruning, or make a bundle (sinf build)")
    return description, {name: value.detach().clone() for name, value in state.items()}


def make_plain(description: dict[str, Any], size: tuple[int, ...], classes: int | None = None) -> Plain:
    """The network that a description holds, in eval mode, for images of ``size`` (channels, height, width).

    Raises:
        ModelError: the description is damaged, or names what is not allowed.
    """
    _checked(description, size, None, classes)
    return Plain(description).eval()


def _checked(
    description: dict[str, Any], size: tuple[int, ...], remedy: str | None, classes: int | None = None
) -> None:
    try:
        checked(description, size, classes)
    except ValueError as error:
        raise ModelError("the network must be described by known layers and steps", got=error, remedy=remedy) from error


def _is_plain(module: nn.Module) -> bool:
    return type(module) is getattr(nn, type(module).__name__, None)


class _Opener(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_plain(m)


class _ShapeOpener(ShapeTracer, _Opener):
    """For layers that compute with the size of what they read: the model is then for images of one size."""


def _opened(graph: fx.GraphModule, shape: tuple[int, ...]) -> fx.GraphModule:
    """The same network with layers of ``torch.nn`` alone."""
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    foreign = {type(m).__name__ for m in map(graph.get_submodule, called) if not _is_plain(m)}
    if not foreign:
        return graph
    try:
        try:
            return fx.GraphModule(graph, _Opener().trace(graph))
        except Exception:  # as below
            example = torch.zeros(EXAMPLES, *shape[1:])
            return fx.GraphModule(graph, without_unused_reads(_ShapeOpener(example).trace(graph)))
    except Exception as error:  # a layer's own Python may raise anything when it is traced
        raise ModelError(
            "a plain model consists of layers of torch.nn, and what can be traced into them",
            got=f"{', '.join(sorted(foreign))}: {type(error).__name__}",
            remedy="replace this layer before pruning, or make a bundle (sinf build)",
        ) from error


class _Identities(fx.Interpreter):
    """Finds the functions that return what they are given, such as a stochastic depth in eval mode."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.identities: set[str] = set()
        self.now = ""

    def run_node(self, n: fx.Node) -> Any:
        self.now = n.name
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = _version(args)
        value = super().call_function(target, args, kwargs)
        if args and value is args[0] and _version(args) == before:
            self.identities.add(self.now)
        return value


def _version(args: tuple[Any, ...]) -> int | None:
    """How often the first tensor was written to: a function in place returns what it is given, too."""
    return args[0]._version if args and isinstance(args[0], Tensor) else None


@torch.no_grad()
def _without_identities(graph: fx.GraphModule, shape: tuple[int, ...]) -> fx.GraphModule:
    finder = _Identities(graph)
    extra = [n.args[0] if n.args else None for n in graph.graph.nodes if n.op == "placeholder"][1:]
    finder.run(torch.zeros(1, *shape[1:]), *extra)
    new = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    new.output(new.graph_copy(graph.graph, twins))
    for node, twin in twins.items():
        if node.name in finder.identities and _known_name(node.target) is None:
            twin.replace_all_uses_with(twin.args[0])
            new.erase_node(twin)
    return fx.GraphModule(graph, new)


def _arguments(module: nn.Module, target: str) -> dict[str, Any]:
    """What a layer was made with: its constructor's arguments, which layers of torch keep by the same names."""
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if name in _PLACEMENT or variable or not hasattr(module, name):
            continue
        value = getattr(module, name)
        if name == "bias":
            value = value is not None if not isinstance(value, bool) else value
        if value is parameter.default or (value == parameter.default and type(value) is type(parameter.default)):
            continue
        arguments[name] = _encode(value, target, {})
    return arguments


def _name_of(target: Callable[..., Any]) -> str:
    name = _known_name(target)
    if name is None:
        raise _unknown("functions of tensors", getattr(target, "__qualname__", target))
    return name


def _unknown(what: str, got: object) -> ModelError:
    return ModelError(
        f"a plain model consists of torch's own {what}, those that sinf/models/plain.py lists",
        got=got,
        remedy="replace it before pruning, or make a bundle (sinf build)",
    )


def _known_name(target: Callable[..., Any]) -> str | None:
    """The name by which a plain model finds a function, often not the function's own."""
    if target is getattr:
        return "builtins.getattr"
    for home, (library, names) in FUNCTIONS.items():
        for name in (getattr(target, "__name__", ""), *sorted(names)):
            if name in names and getattr(library, name, None) is target:
                return f"{home}.{name}"
    return None


def _encode(value: Any, where: fx.Node | str, constants: dict[fx.Node, Any]) -> Any:
    """Arguments to JSON, as ``sinf.models.plain`` reads them."""

    def inner(items: Any) -> list[Any]:
        return [_encode(item, where, constants) for item in items]

    if isinstance(value, fx.Node):
        return _encode(constants[value], where, {}) if value in constants else {"$step": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$number": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return {"$tuple": inner(value)}
    if isinstance(value, list):
        return inner(value)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _encode(item, where, constants) for key, item in value.items()}
    if isinstance(value, slice):
        return {"$slice": inner((value.start, value.stop, value.step))}
    if value is ...:
        return {"$ellipsis": True}
    if isinstance(value, torch.dtype):
        return {"$dtype": _short(value)}
    if isinstance(value, torch.device):
        return {"$device": str(value)}
    raise ModelError(
        f"a plain model's arguments are numbers, words and tensors of the network, and {where} has another",
        got=type(value).__name__,
        remedy="make a bundle instead (sinf build)",
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
