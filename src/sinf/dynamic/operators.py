"""Operators of an ONNX graph that is being written. Values go by their names; every name is given once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx


class Operators:
    """Nodes in the order in which they run, and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray | Tensor) -> str:
        """The name of a constant; tensors become float32."""
        from onnx import numpy_helper

        array = value.detach().cpu().float().contiguous().numpy() if isinstance(value, Tensor) else value
        name = f"dynamic/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        """The name of a constant (n,) of int64: axes, sizes, shapes."""
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return the name of its first output."""
        from onnx import helper

        names = [f"dynamic/{kind}{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names[0]

    def linear(self, layer: nn.Linear, x: str, there: str | None = None) -> str:
        """``(1, C) -> (1, O)`` by a linear layer. With ``there`` (k,), the channels that ``x`` (1, k) holds, only their
        weights are read."""
        weight = self.constant(layer.weight.t())
        if there is not None:
            weight = self.op("Gather", [weight, there], axis=0)
        value = self.op("MatMul", [x, weight])
        return value if layer.bias is None else self.op("Add", [value, self.constant(layer.bias)])
