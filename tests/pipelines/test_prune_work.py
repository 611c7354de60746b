"""What a work folder keeps of a pruning: statistics are collected once, and serve every later budget and method."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from sinf.compress import compressor
from sinf.compress.low_rank import LowRank, metrics
from sinf.compress.low_rank.metric import from_tensors, to_tensors
from sinf.data.images import LabelledImages
from sinf.graph.coupling import couple
from sinf.graph.delta import groups_of
from sinf.models import load_model
from sinf.pipelines.prune import Amount, PruneConfig, prune
from sinf.statistics import Statistics, collect
from sinf.storage.steps import StepStore
from tiny import CLASSES, COLOUR, NETWORKS, traced


@pytest.mark.parametrize("name", ["Chain", "Concat", "Depthwise", "Grouped", "Scaled"])
def test_stored_metrics_are_what_was_decomposed(name: str, tmp_path: Path) -> None:
    graph = traced(NETWORKS[name]())
    coupling = couple(graph).with_grouped()
    draw = torch.Generator().manual_seed(0)
    batch = torch.randn(20, *COLOUR.size, generator=draw), torch.randint(CLASSES, (20,), generator=draw)
    sums = collect(graph, coupling, [batch], classes=CLASSES, needs=LowRank.needs)
    made = metrics(sums, {target: groups_of(graph.get_submodule(target)) for target in sums})
    tensors = to_tensors(made)
    read = from_tensors(StepStore(tmp_path).get("metrics", {}, lambda: tensors), made)
    again = from_tensors(StepStore(tmp_path).get("metrics", {}, lambda: pytest.fail("it was not stored")), made)
    for target, metric in made.items():
        for other in (read[target], again[target]):
            assert (other.groups, other.kernel_row_positions) == (metric.groups, metric.kernel_row_positions)
            for field in fields(metric):
                value = getattr(metric, field.name)
                assert not isinstance(value, torch.Tensor) or torch.equal(getattr(other, field.name), value)


@pytest.mark.parametrize("method", ["channels", "ranks"])
def test_another_budget_looks_at_no_image_again(
    method: str, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[str] = []

    def counted(*given: object, **options: object) -> Statistics:
        passes.append(method)
        return collect(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(compressor, "collect", counted)
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})

    def made(macs: float, folder: str) -> dict[str, torch.Tensor]:
        config = PruneConfig(Amount(macs=macs), method=method, images=24, round_to=1, limits=None)
        return prune(base, tiny_images, config, tmp_path / folder).module.state_dict()

    made(0.8, "work")
    small = made(0.6, "work")
    assert len(passes) == 1
    alone = made(0.6, "other")
    assert len(passes) == 2
    assert small.keys() == alone.keys()
    assert all(torch.equal(small[key], alone[key]) for key in small)
