"""Factories of a user: each is called once for a command, for real, whatever it does."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sinf.errors import ModelError

#: What factories returned, by name and options, with weights that have a shape and no values.
_SHAPES: dict[str, nn.Module] = {}


def call_factory(name: str, options: Mapping[str, Any]) -> nn.Module:
    """What ``package.module:factory`` returns. It is made on the processor also where a caller makes models on the
    device meta: a factory may load weights, which would be lost there with a warning for each.

    Raises:
        ModelError: there is no such factory, or it returns no module.
    """
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"no factory {name}", got=error, remedy="check the module's path: the current folder, or PYTHONPATH"
        ) from error
    with torch.device("cpu"):
        module = factory(**options)
    if not isinstance(module, nn.Module):
        raise ModelError("a factory must return an nn.Module", got=type(module).__name__, remedy=f"correct {name}")
    _remember(_key(name, options), module)
    return module


def made_before(name: str, options: Mapping[str, Any]) -> nn.Module | None:
    """What the factory returned when it was called, for weights that are loaded from elsewhere, or None where it was
    not. Its weights are zeros; on the device meta, where a caller makes models there."""
    shapes = _SHAPES.get(_key(name, options))
    if shapes is None:
        return None
    module = copy.deepcopy(shapes)
    if torch.empty(0).is_meta:
        return module
    with torch.device("cpu"):
        zeros = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in module.state_dict().items()}
    module.load_state_dict(zeros, assign=True)
    return module


def _key(name: str, options: Mapping[str, Any]) -> str:
    return f"{name} {sorted(options.items())!r}"


def _remember(key: str, module: nn.Module) -> None:
    """A copy without the values of its weights; what is no weight is copied as it is."""
    memo: dict[int, Any] = {}
    for value in module.state_dict(keep_vars=True).values():
        if isinstance(value, Tensor):
            empty = torch.empty_like(value, device="meta")
            memo[id(value)] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
    try:
        _SHAPES[key] = copy.deepcopy(module, memo)
    except Exception:  # a module may hold what cannot be copied: its factory is then called again
        _SHAPES.pop(key, None)
