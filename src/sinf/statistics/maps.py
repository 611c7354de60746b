"""The feature maps of a site: what it reads, before it was pooled or flattened.

Criteria that look at a single map (its rank, its zeros) are meant for the maps that a convolution and its activation
make. Where a pooling stands between those and the layer that reads them, little of a map is left: nothing at all after
a global one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from sinf.graph.coupling import Coupling
from sinf.statistics.positions import by_image

_SAME_IN_EVAL = (nn.Identity, nn.modules.dropout._DropoutNd)
_PASSED_FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "pool1d", "pool2d", "pool3d")  # or max_pool2d


@dataclass(frozen=True)
class MapSource:
    """A node whose value holds a site's maps, the dimension of its channels, and how often each repeats there."""

    node: fx.Node
    dim: int
    repeat: int

    def maps(self, value: Tensor, images: int) -> Tensor:
        """``(images, C, H, W)``; lower dimensions are rows of one, higher ones, and windows, are flattened into the
        last."""
        x = value.detach().movedim(self.dim, 1)
        if len(x) != images:
            x = by_image(x, images).movedim(1, -1)
        if self.repeat > 1:
            x = x.unflatten(1, (-1, self.repeat)).movedim(2, -1)
        while x.ndim < 4:
            x = x.unsqueeze(2)
        return x.flatten(3)


def map_source(graph: fx.GraphModule, coupling: Coupling, site: fx.Node) -> MapSource:
    """Walk back from what a site reads over what only pools, flattens or moves, as long as its channels stay these."""
    read = coupling.reads[str(site.target)]
    source = site.all_input_nodes[0]
    dim = len(source.meta["shape"]) - 1 if isinstance(graph.get_submodule(str(site.target)), nn.Linear) else 1
    origin = MapSource(source, dim, read.repeat)
    while _keeps_values(graph, origin.node):
        before = origin.node.all_input_nodes[0]
        slot = coupling.values.get(before.name)
        if slot is None or not torch.equal(slot.units, read.units):
            break
        origin = MapSource(before, slot.dim, slot.repeat)
    return origin


def _keeps_values(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node has one input, and only pools it, changes its shape or passes it on."""
    if node.op in ("placeholder", "get_attr", "output") or len(node.all_input_nodes) != 1:
        return False
    before = node.all_input_nodes[0].meta.get("shape")
    if before is None:
        return False
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if any(True for _ in module.parameters()):
            return False
        # pooling may keep the shape: an adaptive one of a map that has it already
        if isinstance(module, _SAME_IN_EVAL) or type(module).__module__ == nn.modules.pooling.__name__:
            return True
    elif str(getattr(node.target, "__name__", node.target)).rpartition("_")[2] in _PASSED_FUNCTIONS:
        return True
    return tuple(before) != tuple(node.meta["shape"])
