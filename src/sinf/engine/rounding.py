"""Weights on the steps of 8 bits, each rounding made up for by the weights that are not rounded yet.

Rounded to the nearest step, each by itself, weights of inputs that vary much are as far off as all others, and what one
rounding adds to what a layer writes the next may add again. Here the inputs of a layer are rounded one after another,
and those that follow take over what that changed, in closed form, by the second moments of what the layer reads in
calibration images (GPTQ: Frantar et al., arXiv 2210.17323). The engine's quantiser then finds every weight on a step.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    import onnx

_DAMPING = 0.01  # of the mean second moment
_BLOCK = 128  # inputs; what follows a block takes over its changes at once
_ROWS = 30_000  # that the second moments of a layer are of


@dataclass(frozen=True)
class _Layer:
    """A convolution or product: what it reads, its weight, and how patches are read."""

    reads: str
    weight: str
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom

    def patches(self, x: Tensor) -> Tensor:
        """``(groups, rows, inputs)`` of what it reads: (N, C, H, W), or (N, C) of a product."""
        if x.ndim == 2:
            return x[None]
        x = F.unfold(F.pad(x, self.pads), self.kernel, self.dilations, 0, self.strides)  # (N, C kh kw, positions)
        return x.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def round_weights(
    model: onnx.ModelProto, feeds: Sequence[dict[str, Any]], kept: Collection[str], steps: int
) -> onnx.ModelProto:
    """The same graph with its convolutions' and products' weights on ``steps`` steps each way, a scale for each output.

    ``feeds`` are its inputs by name. Nodes of ``kept``, weights that several nodes read, and convolutions over one or
    three dimensions stay as they are.
    """
    import onnx
    from onnx import numpy_helper

    layers = _layers(model, kept)
    if not layers:
        return model
    moments = _second_moments(model, layers, feeds)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    stored = {each.name: each for each in rounded.graph.initializer}
    for layer in layers:
        weight = torch.from_numpy(numpy_helper.to_array(stored[layer.weight]).copy())
        by_group = weight.unflatten(0, (layer.groups, -1)).flatten(2)
        found = rounded_to_steps(by_group, moments[layer.weight], steps).view_as(weight)
        stored[layer.weight].CopyFrom(numpy_helper.from_array(found.numpy(), layer.weight))
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
    found = torch.zeros_like(left)
    for first in range(0, left.shape[2], _BLOCK):
        last = min(first + _BLOCK, left.shape[2])
        changed = torch.zeros_like(left[:, :, first:last])
        for i in range(first, last):
            value = left[:, :, i]
            step = (value / scale).round().clamp(-steps, steps)
            step = torch.where(largest == i, steps * weight[:, :, i].sign(), step)
            found[:, :, i] = step * scale
            off = (value - found[:, :, i]) / spread[:, i, i, None]
            left[:, :, i:last] -= off[:, :, None] * spread[:, None, i, i:last]
            changed[:, :, i - first] = off
        left[:, :, last:] -= changed @ spread[:, first:last, last:]
    return found.float()


def _layers(model: onnx.ModelProto, kept: Collection[str]) -> list[_Layer]:
    """Those whose weight is rounded: nobody else reads it."""
    from onnx import helper

    sizes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    readers: dict[str, int] = {}
    for name in (name for node in model.graph.node for name in node.input):
        readers[name] = readers.get(name, 0) + 1
    found = []
    for node in model.graph.node:
        if node.name in kept or node.op_type not in ("Conv", "Gemm") or readers[node.input[1]] > 1:
            continue
        reads, weight = node.input[:2]
        said = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Gemm" and weight in sizes and said.get("transB") and not said.get("transA"):
            found.append(_Layer(reads, weight))
        if node.op_type == "Conv" and len(sizes.get(weight, ())) == 4 and said.get("auto_pad", b"NOTSET") == b"NOTSET":
            top, left, bottom, right = said.get("pads", (0, 0, 0, 0))
            down, across = said.get("strides", (1, 1))
            apart = tuple(said.get("dilations", (1, 1)))
            kernel, pads = sizes[weight][2:], (left, right, top, bottom)
            found.append(_Layer(reads, weight, said.get("group", 1), kernel, (down, across), apart, pads))
    return found


def _second_moments(model: onnx.ModelProto, layers: list[_Layer], feeds: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """``(groups, inputs, inputs)`` by weight, of rows from all over the feeds."""
    import onnx
    from onnxruntime import InferenceSession

    reads = list(dict.fromkeys(layer.reads for layer in layers))
    inputs = {each.name for each in model.graph.input}
    inner = [name for name in reads if name not in inputs]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {each.name for each in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in known)
    session = InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    sums: dict[str, Tensor] = {}
    for feed in feeds:
        values = feed | (dict(zip(inner, session.run(inner, feed), strict=True)) if inner else {})
        for layer in layers:
            rows = layer.patches(torch.as_tensor(values[layer.reads]))
            rows = rows[:, :: max(1, rows.shape[1] * len(feeds) // _ROWS)]
            found = (rows.transpose(1, 2) @ rows).double()
            sums[layer.weight] = sums[layer.weight] + found if layer.weight in sums else found
    return sums
