"""What a network costs: multiply-accumulates of one input, and what a weight counts beside them."""

from __future__ import annotations

import copy
import math

from torch import Tensor, fx, nn

from sinf.graph.coupling import Coupling
from sinf.graph.trace import layer

WEIGHT_COST = 32.0  # what a weight costs beside a MAC on one thread of a server processor, measured on VGG16 at batch 1


class MacCount:
    """MACs of one input, of a graph or a part of it, for any choice of units."""

    def __init__(self, graph: fx.GraphModule, coupling: Coupling) -> None:
        self.coupling = coupling
        self.nodes: list[tuple[str, nn.Module, int]] = []
        for node in graph.graph.nodes:
            if node.op != "call_module" or node.meta.get("shape") is None:
                continue
            module, shape = layer(graph, node), node.meta["shape"]
            if isinstance(module, nn.modules.conv._ConvNd):
                self.nodes.append((str(node.target), module, math.prod(shape[2:]) * math.prod(module.kernel_size)))
            elif isinstance(module, nn.Linear):
                self.nodes.append((str(node.target), module, math.prod(shape[1:-1])))

    def of(self, targets: set[str]) -> MacCount:
        """Those of some layers alone."""
        few = copy.copy(self)
        few.nodes = [node for node in self.nodes if node[0] in targets]
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
        return sum(self.by_layer(keep, weight_cost).values())
