"""How a part's weights come from the base model's: which channels are kept, and how reconstruction mixes them.

A single file holds the base weights once and these small recipes. Runtimes compute them when they load the file, since
all they read is constant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from sinf.engine.torch_engine import TorchEngine
from sinf.graph.delta import Mix
from sinf.graph.network import Part

_PREFIXES = ("extractor.", "tail.")  # of modules around the base model's layers
_CLOSE = 1e-4  # relative: folding a norm and mixing channels are done in another order


@dataclass
class Recipe:
    """Nodes that end in a weight, with the constants that they need and the value as numpy computes it."""

    name: str
    value: np.ndarray
    last: str
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def constant(self, value: np.ndarray, what: str) -> str:
        name = f"{self.name}/{what}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def then(self, operator: str, value: np.ndarray, *inputs: str, **attributes: Any) -> None:
        """One more node, which makes ``value`` and is the last one now."""
        output = f"{self.name}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        self.last, self.value = output, value


class Weights:
    """The base model's weights, as its ONNX graph has them, and what parts make of them."""

    def __init__(self, engine: TorchEngine, base: onnx.ModelProto) -> None:
        self._network, self._parts = engine.network, engine.bundle.parts
        self._base = {tensor.name: numpy_helper.to_array(tensor) for tensor in base.graph.initializer}
        self.used: set[str] = set()

    def tensors(self) -> list[TensorProto]:
        """The base weights that recipes start from."""
        return [numpy_helper.from_array(self._base[name], f"base/{name}") for name in sorted(self.used)]

    def recipe(self, part: str, tensor: TensorProto, name: str) -> Recipe:
        """How ``tensor``, a weight of ``part``, is made; it is called ``name``, and its last value is what to read.

        What does not come from a base weight of its name is kept as it is.
        """
        wanted = numpy_helper.to_array(tensor)
        source = tensor.name
        for prefix in _PREFIXES:
            source = source.removeprefix(prefix)
        base = self._base.get(source)
        if base is not None and base.ndim == wanted.ndim and wanted.size > 1:
            recipe = Recipe(name, base, f"base/{source}")
            self._select(recipe, self._parts[part], source)
            if recipe.value.shape == wanted.shape and _close(recipe.value, wanted):
                self.used.add(source)
                return recipe
        kept = Recipe(name, wanted, name)
        kept.constants.append(numpy_helper.from_array(wanted, name))
        return kept

    def _select(self, recipe: Recipe, part: Part, source: str) -> None:
        target, _, kind = source.rpartition(".")
        written, read = (table.get(target) for table in (self._network.coupling.writes, self._network.coupling.reads))
        if written is None:
            return
        _gather(recipe, written.index(part.keep).numpy(), 0)
        if kind != "weight" or read is None or recipe.value.ndim < 2 or self._is_grouped(target):
            return
        layer = part.layers.get(target)
        if isinstance(layer, Mix):
            _mix(recipe, layer.matrix.half().numpy())
        else:
            _gather(recipe, read.index(part.keep).numpy(), 1)

    def _is_grouped(self, target: str) -> bool:
        module: nn.Module = self._network.graph.get_submodule(target)
        return getattr(module, "groups", 1) != 1


def _close(value: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(value - wanted).max() <= _CLOSE * max(np.abs(wanted).max(), 1e-12))


def _gather(recipe: Recipe, index: np.ndarray, axis: int) -> None:
    if len(index) < recipe.value.shape[axis]:
        name = recipe.constant(index.astype(np.int32), f"kept{axis}")
        recipe.then("Gather", recipe.value.take(index, axis), recipe.last, name, axis=axis)


def _mix(recipe: Recipe, mix: np.ndarray) -> None:
    """``W M``, as :func:`sinf.graph.delta.mixed` does: ``M^T (k, C)`` times the weight as (O, C, positions).

    The matrix stays in half precision in the file.
    """
    transposed = np.ascontiguousarray(mix.T)
    matrix = f"{recipe.name}/matrix"
    recipe.nodes.append(helper.make_node("Cast", [recipe.constant(transposed, "mix")], [matrix], to=TensorProto.FLOAT))
    out, *rest = recipe.value.shape
    shape = (out, -1) if recipe.value.ndim == 2 else (out, len(transposed), *rest[1:])
    _reshape(recipe, (out, mix.shape[0], -1), "apart")
    recipe.then("MatMul", transposed.astype(np.float32) @ recipe.value, matrix, recipe.last)
    _reshape(recipe, shape, "together")


def _reshape(recipe: Recipe, shape: tuple[int, ...], what: str) -> None:
    recipe.then("Reshape", recipe.value.reshape(shape), recipe.last, recipe.constant(np.array(shape, np.int64), what))
