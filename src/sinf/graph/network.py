"""The base model taken apart: traced, coupled, parted at a cut point. What building and running a bundle both start
from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from sinf.errors import CutError
from sinf.graph import delta
from sinf.graph.apply import apply
from sinf.graph.cost import MacCount
from sinf.graph.coupling import CoupledGroup, Coupling, Slot, couple
from sinf.graph.cut import CutPoint, cut_points, find_cut, partition
from sinf.graph.delta import LayerDeltas

_KEPT = "kept."

# Numbers of an image's features that are as bad as a cut at the wrong end of the network: ten thousand images of so
# many take 80 GB.
_LARGE_FEATURES = 2_000_000
_SMALL_PREDICTOR = 0.02  # of the MACs


@dataclass(frozen=True)
class Part:
    """A smaller version of extractor or tail: the units that stay (units,) bool, and what stands in the place of
    layers, by target."""

    keep: Tensor
    layers: LayerDeltas = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        """Whether it differs from the base model at all."""
        return bool(self.layers) or not bool(self.keep.all())

    def to_tensors(self, coupling: Coupling, prefix: str, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        """Kept channels by coupled group (only those that lost some), in the base model's coordinates, and the tensors
        of :func:`sinf.graph.delta.to_tensors`."""
        tensors = {f"{prefix}{name}": tensor.to(dtype) for name, tensor in delta.to_tensors(self.layers).items()}
        for group in coupling.groups.values():
            kept = torch.nonzero(self.keep[group.units]).flatten()
            if len(kept) < group.size:
                tensors[f"{prefix}{_KEPT}{group.name}"] = kept.to(torch.int32)
        return tensors

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], coupling: Coupling, prefix: str) -> Part:
        """The inverse of :meth:`to_tensors`; tensors of other prefixes are left alone. In half precision, they stay
        memory-mapped where they were read from a file."""
        keep = coupling.keep_all()
        mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        for name in [name for name in mine if name.startswith(_KEPT)]:
            group = coupling.groups[name.removeprefix(_KEPT)]
            keep[group.units] = False
            keep[group.units[mine.pop(name).long()]] = True
        return Part(keep, delta.from_tensors(mine))


class Network:
    """``graph`` (images -> logits) and its coupled groups."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.coupling = couple(graph, free_output=True)
        self.macs = MacCount(graph, self.coupling)
        if self.coupling.output is None:
            raise CutError(
                "the classes of the head cannot be followed", got="no linear layer", remedy="end in a linear layer"
            )
        self._classes = set(self.coupling.output.units.tolist())

    def groups_free(self) -> list[CoupledGroup]:
        """Coupled groups that may lose channels; the classes are not among them."""
        return [g for g in self.coupling.free_groups() if self._classes.isdisjoint(g.units.tolist())]

    def with_classes(self, keep: Tensor, classes: list[int]) -> Tensor:
        """``keep`` with the head limited to some classes."""
        output = self.coupling.output
        limited = keep.clone()
        if output is not None:
            limited[output.units] = False
            limited[output.units[classes]] = True
        return limited

    def whole(self, part: Part) -> fx.GraphModule:
        """The network made smaller."""
        return self._sliced(self.graph, part)

    def _sliced(self, graph: fx.GraphModule, part: Part) -> fx.GraphModule:
        if not part.changes:
            return graph
        return apply(graph, self.coupling, part.keep, part.layers)

    def cost_of(self, graph: fx.GraphModule, weight_cost: float = 0) -> int:
        """MACs of one input in a smaller version of the network or of a part, with ``weight_cost`` more for every
        weight."""
        return MacCount(graph, self.coupling).total(weight_cost=weight_cost)


class PartedNetwork(Network):
    """A network in two parts at a cut point.

    Without the name of a cut point, the one whose extractor has nearest to ``cut_at`` of the MACs is taken, where
    features cost little: ``predictor_macs`` are those of a route predictor that reads features of a shape (C, H, W).
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        cut: str | None = None,
        cut_at: float = 0.6,
        predictor_macs: Callable[[tuple[int, ...]], int] | None = None,
    ) -> None:
        super().__init__(graph)
        self.cut = find_cut(graph, cut) if cut is not None else self._nearest_cut(cut_at, predictor_macs)
        self.parts = partition(graph, self.cut)
        self.extractor_macs = MacCount(self.parts.extractor, self.coupling)
        self.tail_macs = MacCount(self.parts.tail, self.coupling)
        self.extractor_targets = {str(n.target) for n in self.parts.extractor.graph.nodes if n.op == "call_module"}

    def _nearest_cut(self, share: float, predictor_macs: Callable[[tuple[int, ...]], int] | None) -> CutPoint:
        """Distances are shares of the MACs. What the predictor takes above a little counts as such, and features that
        are stored for thousands of images as the share that their size is of ``_LARGE_FEATURES``."""
        shares, total = macs_before(self.graph), max(1, self.macs.total())
        points = [p for p in cut_points(self.graph) if math.prod(p.shape[1:]) > 1]
        if not points:
            raise CutError(
                "a bundle needs a place through which all data passes as channels of a map",
                got="no cut point",
                remedy="prune makes the whole network smaller, and needs none",
            )

        def cost(point: CutPoint) -> float:
            predictor = (
                0.0 if predictor_macs is None else max(0.0, predictor_macs(point.shape) / total - _SMALL_PREDICTOR)
            )
            return abs(shares[point.node] - share) + predictor + math.prod(point.shape) / _LARGE_FEATURES

        return min(points, key=cost)

    @property
    def features_slot(self) -> Slot:
        """The units of the extracted features."""
        return self.coupling.values[self.cut.node]

    def groups_before(self) -> list[CoupledGroup]:
        """Coupled groups that may lose channels and that the extractor makes, in part at least."""
        return [g for g in self.groups_free() if not self._is_after(g)]

    def groups_after(self) -> list[CoupledGroup]:
        """Coupled groups that may lose channels and that the tail alone makes."""
        return [g for g in self.groups_free() if self._is_after(g)]

    def _is_after(self, group: CoupledGroup) -> bool:
        return self.extractor_targets.isdisjoint(group.producers)

    def extractor(self, part: Part) -> fx.GraphModule:
        return self._sliced(self.parts.extractor, part)

    def tail(self, part: Part) -> fx.GraphModule:
        return self._sliced(self.parts.tail, part)

    def graphs_of(self, parts: Mapping[str, Part]) -> dict[str, fx.GraphModule]:
        """The networks of a bundle's parts by name: the ``extractor``, and tails."""
        return {name: self.extractor(part) if name == "extractor" else self.tail(part) for name, part in parts.items()}

    def split(self, whole: Part) -> tuple[Part, Part]:
        """A smaller version of the whole network as one of the extractor (whose features may be narrower) and one of
        the full tail."""
        keep = self.coupling.keep_all()
        for group in self.coupling.groups.values():
            if not self._is_after(group):
                keep[group.units] = whole.keep[group.units]
        early = {target: layer for target, layer in whole.layers.items() if target in self.extractor_targets}
        late = {target: layer for target, layer in whole.layers.items() if target not in early}
        return Part(keep, early), Part(whole.keep, late)

    def feature_shape(self, part: Part) -> tuple[int, ...]:
        """Shape of one image's extracted features."""
        return len(self.features_slot.index(part.keep)), *self.cut.shape[1:]


def macs_before(graph: fx.GraphModule) -> dict[str, float]:
    """For every node of a traced network, the fraction of the MACs spent when it is done."""
    total, spent = sum(node.meta["macs"] for node in graph.graph.nodes), 0
    shares: dict[str, float] = {}
    for node in graph.graph.nodes:
        spent += node.meta["macs"]
        shares[node.name] = spent / max(1, total)
    return shares
