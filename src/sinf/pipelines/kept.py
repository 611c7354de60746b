"""What is left of every layer of a base model in what was made of it: multiply-accumulates, channels and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, fx

from sinf.bundle.semantic import Bundle
from sinf.dynamic.network import GatedNetwork
from sinf.graph.cost import MacCount
from sinf.graph.coupling import Coupling, couple
from sinf.graph.network import PartedNetwork
from sinf.graph.trace import trace
from sinf.models import BaseModel
from sinf.routing.router import FULL_TAIL, part_name

_PAIR = (".reduce", ".expand")  # the two calls of a layer in low rank


@dataclass(frozen=True)
class LayerKept:
    """One layer: MACs of an input, and channels that it writes (of a dynamic network in the mean over images), now and
    in the base model, None where that is not known. ``rank`` is that between the two layers that stand in its place, of
    at most ``full_rank``, with which they could be any layer."""

    name: str
    macs: int | None
    base_macs: int | None
    channels: float
    base_channels: int | None
    rank: int | None = None
    full_rank: int | None = None

    @property
    def cost(self) -> float | None:
        """Share of the base layer's MACs."""
        return None if self.macs is None or not self.base_macs else self.macs / self.base_macs

    @property
    def width(self) -> float | None:
        """Share of the base layer's channels."""
        return None if not self.base_channels else self.channels / self.base_channels


@dataclass(frozen=True)
class PartKept:
    """The layers of a part in graph order. ``name`` is that of the part; a subgraph has the name of its cluster."""

    name: str
    layers: tuple[LayerKept, ...]
    subgraph: bool = False

    @property
    def cost(self) -> float | None:
        """Share of the base layers' MACs, None where they are not known."""
        before = sum(layer.base_macs or 0 for layer in self.layers)
        return sum(layer.macs or 0 for layer in self.layers) / before if before else None


def kept_of_bundle(bundle: Bundle, network: PartedNetwork) -> tuple[PartKept, ...]:
    """Extractor, full tail, and every subgraph."""
    graphs = network.graphs_of(bundle.parts)
    names = {part_name(number): name for number, name in enumerate(bundle.clusters.names)}
    before = {"extractor": network.parts.extractor}
    return tuple(
        PartKept(
            {"extractor": "extractor", FULL_TAIL: "full tail"}.get(part) or names[part],
            _compared(graph, before.get(part, network.parts.tail), network.coupling),
            part in names,
        )
        for part, graph in graphs.items()
    )


def kept_of_plain(model: BaseModel, base: BaseModel | None) -> tuple[PartKept, ...]:
    """One network; layers are found in the base model by their names, which a plain model keeps."""
    graph = trace(model.module, model.spec.preprocessing)
    before = None if base is None else trace(base.module, base.spec.preprocessing)
    return (PartKept("network", _compared(graph, before)),)


def kept_of_dynamic(network: GatedNetwork, remaining: Tensor) -> tuple[PartKept, ...]:
    """The convolutions with gates; ``remaining`` (sites,) are the mean shares of their channels that stay."""
    layers = (
        LayerKept(site.name, None, None, site.size * share, site.size)
        for site, share in zip(network.sites, remaining.tolist(), strict=True)
    )
    return (PartKept("convolutions with gates", tuple(layers)),)


def _compared(
    graph: fx.GraphModule, base: fx.GraphModule | None, coupling: Coupling | None = None
) -> tuple[LayerKept, ...]:
    """Layers of ``graph`` beside those of ``base``; what is in ``base`` alone was left out, and costs nothing."""
    layers = _layers(graph, coupling)
    before = {} if base is None else _layers(base, coupling)
    return tuple(_beside(name, layers.get(name), before.get(name)) for name in dict.fromkeys((*before, *layers)))


def _beside(name: str, now: LayerKept | None, before: LayerKept | None) -> LayerKept:
    now = LayerKept(name, 0, None, 0, None) if now is None else now
    if before is None:
        return now
    return replace(now, base_macs=before.macs, base_channels=int(before.channels))


def _layers(graph: fx.GraphModule, coupling: Coupling | None) -> Mapping[str, LayerKept]:
    """Layers of a graph by the names of the base model: two that stand for one are one, with a rank."""
    count = MacCount(graph, couple(graph, free_output=True) if coupling is None else coupling)
    called = {target: module for target, module, _ in count.nodes}
    layers: dict[str, LayerKept] = {}
    for target, macs in count.by_layer().items():
        name = next((target.removesuffix(end) for end in _PAIR if target.endswith(end)), target)
        if name != target and not all(name + end in called for end in _PAIR):
            name = target  # a layer of the model's own that is called so
        first = layers.get(name)
        spent = macs + (0 if first is None else first.macs or 0)
        rank = full = None
        if name != target:
            reduce, expand = (called[name + end].weight for end in _PAIR)
            rank, full = len(reduce), min(reduce[0].numel(), len(expand) * expand[0, 0].numel())
        layers[name] = LayerKept(name, spent, None, len(called[target].weight), None, rank, full)
    return layers
