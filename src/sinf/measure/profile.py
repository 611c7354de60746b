"""Where the time of a model goes, and where it could be cut, before anything is done to it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx

from sinf.graph.cost import MacCount
from sinf.graph.coupling import Coupling, couple
from sinf.graph.cut import cut_points
from sinf.graph.network import macs_before
from sinf.graph.trace import trace
from sinf.measure.timing import pinned_threads
from sinf.models import BaseModel


@dataclass(frozen=True)
class LayerProfile:
    """One layer: ``time`` is the share of the model's measured time, of a batch of one."""

    name: str
    kind: str
    shape: tuple[int, ...]
    macs: int
    parameters: int
    time: float


@dataclass(frozen=True)
class GroupProfile:
    """One coupled group: how many channels may go together, and what blocks it."""

    name: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    blocked: str | None


@dataclass(frozen=True)
class CutProfile:
    """One cut point: features of one image there, and the shares of MACs and of time that the extractor would have."""

    name: str
    shape: tuple[int, ...]
    macs_before: float
    time_before: float


@dataclass(frozen=True)
class Profile:
    model: str
    macs: int
    parameters: int
    milliseconds: float
    threads: int
    layers: list[LayerProfile]
    groups: list[GroupProfile]
    cuts: list[CutProfile]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def profile(base: BaseModel, *, threads: int = 1, runs: int = 30) -> Profile:
    """Trace a model, count its MACs, time its layers one by one, find coupled groups and cut points."""
    graph = trace(base.module, base.spec.preprocessing)
    coupling = couple(graph, free_output=True)
    macs = MacCount(graph, coupling)
    with pinned_threads(threads):
        seconds = _time_nodes(graph, base.spec.preprocessing.size, runs)
    total = sum(seconds.values())
    layers: dict[str, LayerProfile] = {}
    spent, time_before = 0.0, {}
    for node in graph.graph.nodes:
        spent += seconds.get(node, 0.0)
        time_before[node.name] = spent / total
        if node.op == "call_module":
            target = str(node.target)
            module = graph.get_submodule(target)
            before = layers.get(target)
            layers[target] = LayerProfile(
                target,
                type(module).__name__,
                _shape_of_image(node.meta["shape"] or ()),
                (0 if before is None else before.macs) + node.meta["macs"],
                sum(p.numel() for p in module.parameters()),
                (0.0 if before is None else before.time) + seconds[node] / total,
            )
    shares = macs_before(graph)
    return Profile(
        model=base.spec.name,
        macs=macs.total(),
        parameters=sum(p.numel() for p in base.module.parameters()),
        milliseconds=1000 * total,
        threads=threads,
        layers=list(layers.values()),
        groups=_groups(coupling),
        cuts=[CutProfile(p.name, p.shape, shares[p.node], time_before[p.node]) for p in cut_points(graph)],
    )


def _shape_of_image(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the batch of one; with windows, where these are in its place."""
    return shape[1:] if shape[:1] == (1,) else shape


def _groups(coupling: Coupling) -> list[GroupProfile]:
    return [GroupProfile(g.name, g.size, g.producers, g.consumers, g.blocked) for g in coupling.groups.values()]


class _Timer(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.times: dict[fx.Node, list[float]] = {}

    def run_node(self, n: fx.Node) -> object:
        start = time.perf_counter()
        value = super().run_node(n)
        self.times.setdefault(n, []).append(time.perf_counter() - start)
        return value


@torch.no_grad()
def _time_nodes(graph: fx.GraphModule, size: tuple[int, int, int], runs: int) -> dict[fx.Node, float]:
    """Median seconds of every node over ``runs`` passes of one image."""
    timer = _Timer(graph)
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    for _ in range(3 + runs):
        timer.run(x)
    return {
        node: float(torch.tensor(times[3:], dtype=torch.float64).median()) if node.op.startswith("call") else 0.0
        for node, times in timer.times.items()
    }
