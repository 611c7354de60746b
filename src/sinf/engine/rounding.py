"""Weights on the steps of 8 bits, each rounding made up for by the weights that are not rounded yet.

Rounded to the nearest step, each by itself, weights of inputs that vary much are as far off as all others, and what one
rounding adds to what a layer writes the next may add again. Here the inputs of a layer are rounded one after another,
and those that follow take over what that changed, in closed form, by the second moments of what the layer reads in
calibration images (GPTQ: Frantar et al., arXiv 2210.17323). The engine's quantiser then finds every weight on a step.

Images pass one by one, and of what a layer reads only the rows that count are taken. Layers are looked at in groups
whose sums fit into a quarter of a gigabyte; one whose equations alone take more than two keeps the nearest steps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sinf.machine.memory import equation_bytes
from sinf.statistics.patches import Window

if TYPE_CHECKING:
    import onnx

_DAMPING = 0.01  # of the mean second moment
_BLOCK = 128  # inputs; what follows a block takes over its changes at once
_ROWS = 30_000  # that the second moments of a layer are of
_SUMS, _EQUATIONS = 1 << 28, 1 << 31  # bytes of the sums of a group of layers, and of solving for one layer, at most


@dataclass(frozen=True)
class _Layer:
    """A convolution or product: what it reads, its weight, how many inputs an output has, and how patches are read."""

    reads: str
    weight: str
    inputs: int
    groups: int = 1
    window: Window = field(default_factory=Window)

    def rows(self, x: Tensor, first: int, step: int) -> Tensor:
        """``(groups, rows, inputs)`` of what it reads of one image: (1, C, H, W), or (1, C) of a product. Every
        ``step``-th of the rows of all images is taken, ``first`` of which were of others."""
        if x.ndim == 2:
            return x[None] if first % step == 0 else x[None, :0]
        chosen = torch.arange(-first % step, self.positions(x), step)
        return self.window.patches_at(x, chosen).unflatten(2, (self.groups, -1)).permute(2, 0, 1, 3).flatten(1, 2)

    def positions(self, x: Tensor) -> int:
        """How many rows an image has."""
        return 1 if x.ndim == 2 else math.prod(self.window.outputs(*x.shape[2:]))


def rounding_bytes(module: nn.Module) -> int:
    """What rounding the weights of a network takes at most, beside the values of one image."""
    layers = (each for each in module.modules() if isinstance(each, nn.Conv2d | nn.Linear))
    sizes = [(each.weight[0].numel(), getattr(each, "groups", 1)) for each in layers]
    sizes = [size for size in sizes if _equations(*size) <= _EQUATIONS]
    return min(_SUMS, sum(_sums(*size) for size in sizes)) + max((_equations(*size) for size in sizes), default=0)


def round_weights(
    model: onnx.ModelProto, feeds: Sequence[dict[str, Any]], kept: Collection[str], steps: int
) -> onnx.ModelProto:
    """The same graph, for batches of any size, with its convolutions' and products' weights on ``steps`` steps each
    way, a scale for each output.

    ``feeds`` are its inputs by name. Nodes of ``kept``, weights that several nodes read, convolutions over one or three
    dimensions, and layers of more inputs than can be solved for in two gigabytes stay as they are.
    """
    import onnx
    from onnx import numpy_helper

    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    stored = {each.name: each for each in rounded.graph.initializer}
    for layers in _together(_layers(model, kept)):
        moments = _second_moments(model, layers, feeds)
        for layer in layers:
            weight = torch.from_numpy(numpy_helper.to_array(stored[layer.weight]).copy())
            by_group = weight.unflatten(0, (layer.groups, -1)).flatten(2)
            on_steps = rounded_to_steps(by_group, moments.pop(layer.weight), steps).view_as(weight)
            stored[layer.weight].CopyFrom(numpy_helper.from_array(on_steps.numpy(), layer.weight))
    return rounded


def rounded_to_steps(weight: Tensor, moments: Tensor, steps: int) -> Tensor:
    """Weights ``(groups, outputs, inputs)`` on ``steps`` steps each way, by second moments ``(groups, inputs,
    inputs)`` of what the inputs are. The largest weight of an output stays, so that the steps do."""
    left = weight.double()
    scale = (left.abs().amax(2) / steps).clamp(min=torch.finfo(torch.float32).tiny)
    largest = left.abs().argmax(2)
    level = torch.diagonal(moments, dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    damped = moments.double() + _DAMPING * level[:, None, None] * torch.eye(moments.shape[1], dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    spread = torch.linalg.cholesky(inverse, upper=True)  # row i: how inputs from i on take over what i changed
    rounded = torch.zeros_like(left)
    for first in range(0, left.shape[2], _BLOCK):
        last = min(first + _BLOCK, left.shape[2])
        changed = torch.zeros_like(left[:, :, first:last])
        for i in range(first, last):
            value = left[:, :, i]
            step = (value / scale).round().clamp(-steps, steps)
            step = torch.where(largest == i, steps * weight[:, :, i].sign(), step)
            rounded[:, :, i] = step * scale
            off = (value - rounded[:, :, i]) / spread[:, i, i, None]
            left[:, :, i:last] -= off[:, :, None] * spread[:, None, i, i:last]
            changed[:, :, i - first] = off
        left[:, :, last:] -= changed @ spread[:, first:last, last:]
    return rounded.float()


def _sums(inputs: int, groups: int) -> int:
    return 8 * groups * inputs**2


def _equations(inputs: int, groups: int) -> int:
    return groups * equation_bytes(inputs, 0)


def _together(layers: list[_Layer]) -> Iterator[list[_Layer]]:
    """Groups of layers whose sums fit, in order."""
    group: list[_Layer] = []
    taken = 0
    for layer in layers:
        size = _sums(layer.inputs, layer.groups)
        if group and taken + size > _SUMS:
            yield group
            group, taken = [], 0
        group.append(layer)
        taken += size
    if group:
        yield group


def _layers(model: onnx.ModelProto, kept: Collection[str]) -> list[_Layer]:
    """Those whose weight is rounded: nobody else reads it."""
    from onnx import helper

    sizes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    readers: dict[str, int] = {}
    for name in (name for node in model.graph.node for name in node.input):
        readers[name] = readers.get(name, 0) + 1
    layers = []
    for node in model.graph.node:
        if node.name in kept or node.op_type not in ("Conv", "Gemm") or readers[node.input[1]] > 1:
            continue
        reads, weight = node.input[:2]
        said = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Gemm" and weight in sizes and said.get("transB") and not said.get("transA"):
            layers.append(_Layer(reads, weight, sizes[weight][1]))
        if node.op_type == "Conv" and len(sizes.get(weight, ())) == 4 and said.get("auto_pad", b"NOTSET") == b"NOTSET":
            top, left, bottom, right = said.get("pads", (0, 0, 0, 0))
            zeros = (top, bottom, left, right)
            down, across = said.get("strides", (1, 1))
            window = Window(sizes[weight][2:], (down, across), tuple(said.get("dilations", (1, 1))), zeros)
            layers.append(_Layer(reads, weight, math.prod(sizes[weight][1:]), said.get("group", 1), window))
    return [layer for layer in layers if _equations(layer.inputs, layer.groups) <= _EQUATIONS]


def _second_moments(model: onnx.ModelProto, layers: list[_Layer], feeds: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """``(groups, inputs, inputs)`` by weight, of rows from all over the feeds."""
    import onnx
    from onnxruntime import InferenceSession

    reads = list(dict.fromkeys(layer.reads for layer in layers))
    inputs = {each.name for each in model.graph.input}
    inner = [name for name in reads if name not in inputs]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = {each.name for each in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in outputs)
    session = InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    sums: dict[str, Tensor] = {}
    for feed in feeds:
        rows: dict[str, list[Tensor]] = {layer.weight: [] for layer in layers}
        count = len(next(iter(feed.values())))
        for number in range(count):
            image = {name: value[number : number + 1] for name, value in feed.items()}
            values = image | (dict(zip(inner, session.run(inner, image), strict=True)) if inner else {})
            for layer in layers:
                x = torch.as_tensor(values[layer.reads])
                positions = layer.positions(x)
                step = max(1, count * positions * len(feeds) // _ROWS)
                rows[layer.weight].append(layer.rows(x, number * positions, step))
        for name, parts in rows.items():
            taken = torch.cat(parts, 1)
            gram = (taken.transpose(1, 2) @ taken).double()
            sums[name] = sums[name] + gram if name in sums else gram
    return sums
