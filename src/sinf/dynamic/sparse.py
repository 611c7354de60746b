"""Exact sparse execution: what a gate removes is not computed.

One image at a time, the kept channels select slices of the weights of the layers that make them and of the layers that
read them, so the answer is that of masking within rounding. A batch either goes through image by image or is masked,
whichever is measured faster. Batch norms are folded first, as in the base model that is measured beside it.
"""

from __future__ import annotations

import math
import operator
import time

import torch
from torch import Tensor, fx, nn

from sinf.dynamic.layers import BranchSum, GateLayer, Pick, Reads, Scale, make_layer
from sinf.dynamic.network import GatedNetwork
from sinf.errors import ConfigError
from sinf.graph.coupling import Slot
from sinf.graph.prepare import prepare
from sinf.graph.slice import copy_graph
from sinf.graph.trace import attribute

BATCHES = ("auto", "each", "mask")
_TURNS = 2  # of a batch, after which the faster way is known
_MANY_POSITIONS = 64  # of a map, from which odd widths cost more than rounding them up


class SparseNetwork(nn.Module):
    """``(B, C, H, W) -> (B, classes)``: a gated network in eval mode as it runs, its weights copied.

    ``batches`` says what happens to more than one image: ``each`` runs on its own; with ``mask`` all channels are
    computed, and multiplied; ``auto`` times both on the first batches of a size. Widths of slices of large maps are
    rounded up to a multiple of ``round_to`` with channels that are multiplied by 0. Maps and weights lie with channels
    last, as in the base model that is measured beside it.
    """

    def __init__(
        self,
        network: GatedNetwork,
        *,
        batches: str = "auto",
        round_to: int = 8,
    ) -> None:
        super().__init__()
        if batches not in BATCHES:
            raise ConfigError(f"batches must be one of {', '.join(BATCHES)}", got=batches)
        if round_to < 1:
            raise ConfigError("round_to must be at least 1", got=round_to, remedy="take 8")
        self.batches = batches
        self._seconds: dict[int, dict[str, list[float]]] = {}  # by number of images
        self.graph = _Builder(network, round_to).build()
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if len(images) < 2:
            return self.graph(images)
        if self.batches != "auto":
            return self._run(self.batches, images)
        taken = self._seconds.setdefault(len(images), {"mask": [], "each": []})
        # Each way in turn at first; a first run may still allocate, so the least time counts. Threads may take a turn
        # more than there are: which way is taken changes no answer.
        way = min(taken, key=lambda name: (min(len(taken[name]), _TURNS), min(taken[name], default=0.0)))
        start = time.perf_counter()
        logits = self._run(way, images)
        if len(taken[way]) < _TURNS:
            taken[way].append(time.perf_counter() - start)
        return logits

    def _run(self, way: str, images: Tensor) -> Tensor:
        return self.graph(images) if way == "mask" else torch.cat([self.graph(image[None]) for image in images])


class _Builder:
    """The prepared graph of the base model, with gates, scales and sliced layers put in."""

    def __init__(self, network: GatedNetwork, round_to: int) -> None:
        self.network, self.round_to = network, round_to
        with torch.no_grad():
            self.prepared = prepare(network.graph)
        calls = [node for node in network.graph.graph.nodes if node.op == "call_module"]
        self.shapes = {str(node.target): node.meta["shape"] for node in calls}
        self.site_of = {site.name: index for index, site in enumerate(network.sites)}
        there = {str(node.target) for node in self.prepared.graph.nodes}  # norms may have been folded
        branches = ((i, site.branch) for i, site in enumerate(network.sites) if site.branch)
        self.branch_of = {[name for name in branch if name in there][-1]: i for i, branch in branches}
        self.root: dict[str, nn.Module | Tensor] = {}
        self.selections: dict[int, fx.Node] = {}

    def build(self) -> fx.GraphModule:
        graph = copy_graph(self.prepared.graph)
        for node in list(graph.nodes):
            target = str(node.target)
            if node.op == "call_module":
                self._layer(graph, node, target)
                if target in self.branch_of:
                    self._branch(graph, node, target)
            elif node.op == "get_attr":
                self.root[target] = attribute(self.prepared, target).detach()
                slot = self.network.coupling.writes.get(target)
                if slot is not None and self._touching(slot):
                    self._pick(graph, node, target, slot)
        graph.lint()
        return fx.GraphModule(self.root, graph, class_name="SparseGraph")

    def _layer(self, graph: fx.Graph, node: fx.Node, target: str) -> None:
        coupling = self.network.coupling
        module = self.prepared.get_submodule(target)
        read, written = coupling.reads.get(target), coupling.writes.get(target)
        into = [] if read is None else self._touching(read)
        if into and read is not None and isinstance(node.args[0], fx.Node) and target in coupling.mixers.values():
            with graph.inserting_before(node):
                node.args = (self._scaled(graph, node.args[0], target, read, into, module), *node.args[1:])
        if target in self.site_of:
            with graph.inserting_before(node):
                self._gate(graph, node.args[0], target, read, into)
        out = [] if written is None else self._touching(written)
        made = make_layer(
            module,
            None if read is None else self._reads(read, into),
            None if written is None else self._reads(written, out),
        )
        if made is None:
            self.root[target] = module
            return
        self.root[target] = made
        used = list(dict.fromkeys([*into, *out]))
        node.args = (*node.args, *(self.selections[index] for index in used))
        made.set_order(into, out, used)

    def _branch(self, graph: fx.Graph, node: fx.Node, target: str) -> None:
        """The sum that the branch ends in adds what was kept alone."""
        index = self.branch_of[target]
        name = _name("sum", target)
        self.root[name] = BranchSum(self._reads(self.network.coupling.writes[self.network.sites[index].name], [index]))
        (total,) = node.users
        (shortcut,) = (source for source in total.all_input_nodes if source is not node)
        with graph.inserting_after(total):
            kept_sum = graph.call_module(name, (node, shortcut, self.selections[index]))
        total.replace_all_uses_with(kept_sum)
        if total.target in (operator.iadd, "add_") and total.args[0] is shortcut:  # it holds the sum from there on
            shortcut.replace_all_uses_with(kept_sum, delete_user_cb=lambda user: user > kept_sum)
        graph.erase_node(total)

    def _touching(self, slot: Slot) -> list[int]:
        """Sites whose units are in a slot."""
        return [i for i, site in enumerate(self.network.sites) if bool(torch.isin(slot.units, site.units).any())]

    def _reads(self, slot: Slot, sites: list[int]) -> Reads:
        return Reads.of(slot, [self.network.sites[i].units for i in sites], [self.network.blocks[i] for i in sites])

    def _scaled(
        self, graph: fx.Graph, source: fx.Node, target: str, slot: Slot, sites: list[int], module: nn.Module
    ) -> fx.Node:
        name = _name("scale", target)
        self.root[name] = Scale(self._reads(slot, sites), isinstance(module, nn.Linear))
        return graph.call_module(name, (source, *(self.selections[i] for i in sites)))

    def _gate(self, graph: fx.Graph, source: fx.Node, target: str, slot: Slot | None, sites: list[int]) -> None:
        index = self.site_of[target]
        name = _name("gate", target)
        reads = None if slot is None or not sites else self._reads(slot, sites)
        block = int(torch.bincount(self.network.blocks[index])[0])
        shape = self.shapes.get(target)
        large = shape is None or math.prod(shape[2:]) >= _MANY_POSITIONS
        step = max(1, self.round_to // block) if large else 1
        self.root[name] = GateLayer(self.network.gate(index), self.network.sites[index].channels, reads, step)
        self.selections[index] = graph.call_module(name, (source, *(self.selections[i] for i in sites)))

    def _pick(self, graph: fx.Graph, node: fx.Node, target: str, slot: Slot) -> None:
        sites = self._touching(slot)
        name = _name("pick", target)
        self.root[name] = Pick(self._reads(slot, sites), slot.dim)
        # where it is used, because gates come after attributes are read
        for user in list(node.users):
            with graph.inserting_before(user):
                picked = graph.call_module(name, (node, *(self.selections[i] for i in sites)))
            user.replace_input_with(node, picked)


def _name(kind: str, target: str) -> str:
    return f"{kind}_{target.replace('.', '_')}"
