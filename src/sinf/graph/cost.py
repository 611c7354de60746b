"""What a network costs: multiply-accumulates of one input, and what a weight counts beside them."""

from __future__ import annotations

import copy
import math
import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from sinf.graph.coupling import Coupling
from sinf.graph.trace import layer
from sinf.graph.weight_cost import WEIGHT_COST as WEIGHT_COST


class MacCount:
    """MACs of one input, of a graph or a part of it, for any choice of units.

    ``products`` are those of functions that multiply values by values (attention): no compressor makes them smaller.
    """

    def __init__(self, graph: fx.GraphModule, coupling: Coupling) -> None:
        self.coupling = coupling
        self.nodes: list[tuple[str, nn.Module, int]] = []
        self.products = sum(_product(node) for node in graph.graph.nodes)
        for node in graph.graph.nodes:
            if node.op != "call_module" or node.meta.get("shape") is None:
                continue
            module, shape = layer(graph, node), node.meta["shape"]
            if isinstance(module, nn.modules.conv._ConvNd):
                self.nodes.append((str(node.target), module, math.prod(shape[2:]) * math.prod(module.kernel_size)))
            elif isinstance(module, nn.Linear):
                self.nodes.append((str(node.target), module, math.prod(shape[1:-1])))

    def of(self, targets: set[str], products: int = 0) -> MacCount:
        """Those of some layers alone, and of ``products``."""
        few = copy.copy(self)
        few.nodes, few.products = [node for node in self.nodes if node[0] in targets], products
        return few

    def by_layer(self, keep: Tensor | None = None, weight_cost: float = 0) -> dict[str, int]:
        """MACs by target, with ``weight_cost`` more for every weight; a layer that is called twice counts twice."""
        counts: dict[str, int] = {}
        for target, module, positions in self.nodes:
            weight = module.weight
            out, into = weight.shape[0], weight.shape[1]
            written, read = self.coupling.writes.get(target), self.coupling.reads.get(target)
            if keep is not None and written is not None and read is not None:
                out = int(keep[written.units].sum())
                if getattr(module, "groups", 1) == 1:
                    into = int(keep[read.units].sum()) * read.repeat
            kernel = weight[0, 0].numel()
            counts[target] = counts.get(target, 0) + int((positions + weight_cost * kernel) * out * into)
        return counts

    def total(self, keep: Tensor | None = None, weight_cost: float = 0) -> int:
        """Those of all layers, and of products."""
        return self.products + sum(self.by_layer(keep, weight_cost).values())


_PRODUCTS = {torch.matmul, torch.bmm, operator.matmul, torch.Tensor.matmul, "matmul", "bmm", "__matmul__"}


def _product(node: fx.Node) -> int:
    """MACs of one input of a call that multiplies values by values, else 0."""
    shapes = [n.meta["shape"] for n in node.all_input_nodes if n.meta.get("shape") is not None]
    if node.op not in ("call_function", "call_method") or len(shapes) < 2 or node.meta.get("shape") is None:
        return 0
    if node.target is functional.scaled_dot_product_attention and len(shapes) >= 3:
        (*heads, queries, width), keys, values = shapes[0][1:], shapes[1], shapes[2]
        return math.prod(heads) * queries * keys[-2] * (width + values[-1])
    return math.prod(node.meta["shape"][1:]) * shapes[0][-1] if node.target in _PRODUCTS else 0
