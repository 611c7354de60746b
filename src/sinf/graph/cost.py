"""What a network costs: multiply-accumulates of one input, and what a weight counts beside them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

from torch import Tensor, fx, nn

from sinf.graph.coupling import Coupling
from sinf.graph.trace import layer
from sinf.graph.weight_cost import WEIGHT_COST as WEIGHT_COST


def calls_of_layers(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, nn.Module, int]]:
    """Convolutions and linear layers, call by call, and the MACs of each for one output and one input (of a group)."""
    for node in graph.graph.nodes:
        module = layer(graph, node) if node.op == "call_module" else None
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and node.meta.get("shape") is not None:
            yield node, module, _positions(node, module)


class MacCount:
    """MACs of one input, of a graph or a part of it, for any choice of units.

    ``nodes`` are the calls of layers that compressors make smaller: target, layer, and how often an image needs each
    pair of channels, at all positions of the output (a transposed convolution: of the input) and of the kernel.
    ``products`` are all other MACs that torch ran for an image when the graph was traced: attention, layers that are
    kept as a whole such as ``nn.MultiheadAttention``, functions of weights. Nothing makes them smaller.
    """

    def __init__(self, graph: fx.GraphModule, coupling: Coupling) -> None:
        self.coupling = coupling
        layers = {node: (module, positions) for node, module, positions in calls_of_layers(graph)}
        self.nodes = [(str(node.target), module, positions) for node, (module, positions) in layers.items()]
        self.products: int = sum(node.meta.get("macs", 0) for node in graph.graph.nodes if node not in layers)

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


def _positions(node: fx.Node, module: nn.Module) -> int:
    """Of all windows of an image, where the first dimension holds them."""
    kernel = getattr(module, "kernel_size", ())
    shape = (node.all_input_nodes[0] if getattr(module, "transposed", False) else node).meta["shape"]
    return math.prod(shape) // shape[-1 - len(kernel)] * math.prod(kernel)
