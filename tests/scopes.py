"""A traced network as a scope, over random images: what compressors are tried on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sinf.compress.compressor import Region, Run, Scope
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.network import Part
from sinf.storage.steps import StepStore
from tiny import CLASSES, COLOUR, traced

WHOLE = "the network"
IMAGES = 64


def scope_of(model: nn.Module, seed: int = 0) -> tuple[Scope, Tensor]:
    """The whole of a network, and the images that decide."""
    graph = traced(model)
    coupling = couple(graph, free_output=True)
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(IMAGES, *COLOUR.size, generator=draw), torch.randint(CLASSES, (IMAGES,), generator=draw)
    classes = set() if coupling.output is None else set(coupling.output.units.tolist())
    groups = [group for group in coupling.free_groups() if classes.isdisjoint(group.units.tolist())]
    scope = Scope(
        name="network",
        graph=graph,
        coupling=coupling,
        regions={WHOLE: Region(MacCount(graph, coupling), groups)},
        batches=lambda: [(x, y)],
        inputs=lambda most: (x, x) if most is None else (x[:most],) * 2,
        classes=CLASSES,
        start=Part(coupling.keep_all()),
    )
    return scope, x


def limited(scope: Scope, members: list[int]) -> Scope:
    """The same scope for some classes in ascending order."""
    output, keep = scope.coupling.output, scope.start.keep.clone()
    assert output is not None
    keep[output.units] = False
    keep[output.units[members]] = True
    return replace(scope, name=f"classes {members}", start=replace(scope.start, keep=keep), answer=members)


def run_in(folder: Path, fit: bool = True) -> Run:
    """A run that keeps its steps in a folder."""
    return Run(StepStore(folder), fit=fit)
