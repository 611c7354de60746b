"""The network that a scope starts from: what is smaller already, or limited to classes, is applied to the base model's.

Its channels are numbered anew, and a layer that became two is two layers, ``TARGET.reduce`` and ``TARGET.expand``. What
a compressor makes of it is written as a part of the base model again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from sinf.compress.budget import Budget
from sinf.errors import ConfigError
from sinf.graph.apply import apply
from sinf.graph.cost import MacCount
from sinf.graph.coupling import Coupling, Slot, couple
from sinf.graph.delta import HALVES, Factors, LayerDelta, LayerDeltas
from sinf.graph.network import Part
from sinf.graph.trace import note_shapes


@dataclass(frozen=True, eq=False)
class Started:
    """``graph``, inputs (B, ...) -> logits of the classes that stay, its ``coupling``, and the ``start`` that was
    applied."""

    graph: fx.GraphModule
    coupling: Coupling
    start: Part

    @staticmethod
    def of(graph: fx.GraphModule, coupling: Coupling, start: Part, slot: Slot | None) -> Started:
        """``start`` applied to a network, or to a part of one whose inputs have the units of ``slot``.

        Raises:
            ConfigError: it reads fewer features than the base model's.
        """
        if not start.changes:
            return Started(graph, coupling, start)
        if slot is not None and not bool(start.keep[slot.units].all()):
            raise ConfigError(
                "only where channels are removed may the tail read fewer features than the base model's",
                got=f"{int(start.keep[slot.units].sum())} of {len(slot.units)} channels",
                remedy="make the extractor smaller by the method of the tail",
            )
        smaller = note_shapes(apply(graph, coupling, start.keep, start.layers))
        return Started(smaller, couple(smaller, free_input=slot is not None, free_output=True), start)

    def count(self, macs: MacCount, budget: Budget) -> MacCount:
        """The MACs of the layers in ``macs``, which counts those of the base model, as they are to begin with.

        Raises:
            ConfigError: the budget is of time, and a layer became two, which were not timed.
        """
        if not self.start.changes:
            return macs
        targets = {target for target, _, _ in macs.nodes}
        pairs = {target for target, delta in self.start.layers.items() if isinstance(delta, Factors)} & targets
        if pairs and budget.times is not None:
            raise ConfigError(
                "a budget of time takes layers that were timed",
                got=f"{len(pairs)} layers that became two",
                remedy="give a budget of MACs",
            )
        halves = {f"{target}.{half}" for target in pairs for half in HALVES}
        return MacCount(self.graph, self.coupling).of(targets | halves, macs.products)

    def part(self, layers: Mapping[str, LayerDelta]) -> Part:
        """What stands for ``layers`` of the network, by target, as a part of the base model.

        Raises:
            ConfigError: of a layer that became two, one is to be more than other weights or a constant.
        """
        merged = LayerDeltas(self.start.layers)
        for target, delta in layers.items():
            whole, _, half = target.rpartition(".")
            pair = merged.get(whole)
            if isinstance(pair, Factors):
                merged[whole] = pair.with_half(half, delta)
            else:
                merged[target] = delta
        return Part(self.start.keep, merged)
