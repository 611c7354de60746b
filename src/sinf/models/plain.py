"""A network as data: ``config.json`` names layers and steps, ``model.safetensors`` holds the tensors.

This file stands alone. It needs torch and safetensors, nothing of sinf and nothing of the library that the network came
from, and lies in every folder that ``sinf prune`` writes:

    from load import load

    model = load("folder")  # an nn.Module in eval mode, (B, C, H, W) -> (B, classes)

No code is read from the folder's data: a layer is a class of ``torch.nn`` with plain arguments, a step calls a layer, a
function of tensors or a method of a tensor, and whatever else is named is refused.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FORMAT = "sinf-plain-1"

_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_METHOD = re.compile(r"[a-z][a-z0-9_]*")
_OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "matmul", "getitem"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "invert", "iadd", "isub", "imul", "itruediv"),
)
_MATH = ("ceil", "floor", "sqrt")
_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "T", "mT")


def load(folder: str | Path) -> Plain:
    """The network in a folder, in eval mode.

    Raises:
        ValueError: the folder holds no such network, or a damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no readable config.json and model.safetensors: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{folder}/config.json must have the format {FORMAT}")
    model = Plain(config["network"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{folder}: the tensors must be those of the config: {error}") from error
    return model.eval()


class Plain(nn.Module):
    """``{"layers": {path: {"type", "args"}}, "tensors": {path: {"kind", "shape", "dtype"}}, "steps": [...]}``.

    A step is ``{"name", "do", "of", "args", "kwargs"}``: ``do`` is input, tensor, layer, function, method or output,
    ``of`` what it calls.
    """

    def __init__(self, network: dict[str, Any]) -> None:
        super().__init__()
        try:
            for path, layer in network["layers"].items():
                _place(self, path, _layer(layer))
            for path, tensor in network["tensors"].items():
                _place(self, path, _tensor(tensor))
            self._steps = [_Step(step) for step in network["steps"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the description of the network is damaged: {error!r}") from error
        for step in self._steps:
            known = network["layers"] if step.do == "layer" else network["tensors"]
            if step.do in ("layer", "tensor") and step.of not in known:
                raise ValueError(f"no such {step.do} in the description: {step.of!r}")
        names = [step.name for step in self._steps]
        if len(set(names)) != len(names) or [step.do for step in self._steps].count("output") != 1:
            raise ValueError("the description of the network is damaged: steps need names of their own and one output")
        self._last = _last_uses(self._steps)

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = {}
        for step in self._steps:
            if step.do == "input":
                values[step.name] = x
                continue
            args, kwargs = _resolve(step.args, values), _resolve(step.kwargs, values)
            if step.do == "output":
                return args[0]
            if step.do == "layer":
                values[step.name] = self.get_submodule(step.of)(*args, **kwargs)
            elif step.do == "tensor":
                path, _, name = step.of.rpartition(".")
                values[step.name] = getattr(self.get_submodule(path), name)
            elif step.do == "method":
                values[step.name] = getattr(args[0], step.of)(*args[1:], **kwargs)
            else:
                values[step.name] = step.function(*args, **kwargs)
            for name in self._last.get(step.name, ()):
                del values[name]
        raise ValueError("the description of the network has no output")


class _Step:
    def __init__(self, step: dict[str, Any]) -> None:
        self.name, self.do, self.of = str(step["name"]), step["do"], str(step.get("of", ""))
        self.args, self.kwargs = step.get("args", []), step.get("kwargs", {})
        self.function: Callable[..., Any] = operator.pos
        if self.do == "function":
            self.function = function(self.of)
        elif self.do == "method":
            if not _METHOD.fullmatch(self.of) or not callable(getattr(Tensor, self.of, None)):
                raise ValueError(f"no method of tensors: {self.of!r}")
        elif self.do not in ("input", "output", "layer", "tensor"):
            raise ValueError(f"a step must be input, tensor, layer, function, method or output, not {self.do!r}")


@cache
def function(name: str) -> Callable[..., Any]:
    """The function of this name, if it is one of tensors: ``torch.flatten``, ``torch.nn.functional.relu``,
    ``operator.add``, ``getattr`` of a shape."""
    home, _, own = name.rpartition(".")
    found: Any = None
    if home == "operator" and own in _OPERATORS:
        found = getattr(operator, own)
    elif home == "math" and own in _MATH:
        found = getattr(math, own)
    elif name == "builtins.getattr":
        found = _attribute
    elif home in ("torch", "torch.nn.functional"):
        library = torch if home == "torch" else nn.functional
        found = getattr(library, own, None)
        if own not in ("_assert",) and found not in torch.overrides.get_overridable_functions()[library]:
            found = None
    if found is None:
        raise ValueError(f"no function of tensors: {name!r}")
    return found


def _attribute(value: Any, name: str) -> Any:
    if name not in _ATTRIBUTES:
        raise ValueError(f"no attribute of tensors that a network may read: {name!r}")
    return getattr(value, name)


def _layer(layer: dict[str, Any]) -> nn.Module:
    kind = getattr(nn, str(layer["type"]), None)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ValueError(f"no layer of torch.nn: {layer['type']!r}")
    return kind(**{str(name): _resolve(value, {}) for name, value in layer["args"].items()})


def _tensor(tensor: dict[str, Any]) -> Tensor:
    value = torch.zeros(tensor["shape"], dtype=_dtype(tensor["dtype"]))
    return nn.Parameter(value) if tensor["kind"] == "parameter" else value


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"no type of tensors: {name!r}")
    return found


def _place(root: nn.Module, path: str, value: nn.Module | Tensor) -> None:
    """Put a layer or tensor where its path says, in plain modules that are made on the way."""
    if not _PATH.fullmatch(path):
        raise ValueError(f"no path of a layer or tensor: {path!r}")
    *above, name = path.split(".")
    for part in above:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(value, nn.Module):
        root.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(name, value)
    else:
        root.register_buffer(name, value)


def _resolve(value: Any, values: dict[str, Any]) -> Any:
    """JSON to arguments: lists stay lists, and what JSON lacks is a dictionary with one special key."""
    if isinstance(value, list):
        return [_resolve(item, values) for item in value]
    if isinstance(value, dict):
        if len(value) == 1:
            ((key, inner),) = value.items()
            if key == "$step":
                return values[inner]
            if key == "$tuple":
                return tuple(_resolve(item, values) for item in inner)
            if key == "$slice":
                return slice(*(_resolve(item, values) for item in inner))
            if key == "$number":
                return float(inner)
            if key == "$ellipsis":
                return ...
            if key == "$dtype":
                return _dtype(inner)
            if key == "$device":
                return torch.device(inner)
        return {name: _resolve(item, values) for name, item in value.items()}
    return value


def _sources(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_sources, value)) if value else set()
    if isinstance(value, dict):
        return {value["$step"]} if "$step" in value else _sources(list(value.values()))
    return set()


def _last_uses(steps: list[_Step]) -> dict[str, list[str]]:
    """By step, the values that nobody reads after it."""
    last: dict[str, str] = {}
    known: set[str] = set()
    for step in steps:
        sources = _sources([step.args, step.kwargs])
        if not sources <= known:
            raise ValueError(f"step {step.name!r} reads what is not there: {sorted(sources - known)}")
        last |= dict.fromkeys([*sources, step.name], step.name)
        known.add(step.name)
    result: dict[str, list[str]] = {}
    for name, step_name in last.items():
        result.setdefault(step_name, []).append(name)
    return result
