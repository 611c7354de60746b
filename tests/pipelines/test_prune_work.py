"""What a work folder keeps of a pruning: statistics are collected once, and serve every later budget and method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sinf.compress import compressor
from sinf.compress.low_rank import LowRank
from sinf.compress.select import Budget
from sinf.data.images import LabelledImages
from sinf.graph.coupling import couple
from sinf.models import load_model
from sinf.pipelines.prune import PruneConfig, prune
from sinf.statistics import Statistics, collect, weights_of
from sinf.statistics.stored import from_tensors, to_tensors
from tiny import CLASSES, COLOUR, NETWORKS, traced


@pytest.mark.parametrize("name", ["Chain", "Concat", "Depthwise", "Grouped", "Scaled"])
def test_stored_statistics_are_what_was_collected(name: str) -> None:
    graph = traced(NETWORKS[name]())
    coupling = couple(graph)
    draw = torch.Generator().manual_seed(0)
    batch = torch.randn(20, *COLOUR.size, generator=draw), torch.randint(CLASSES, (20,), generator=draw)
    found = collect(graph, coupling, [batch], classes=CLASSES, needs=LowRank.needs)
    read = from_tensors(to_tensors(found, LowRank.needs), weights_of(graph, coupling), LowRank.needs)
    assert list(read) == list(found)
    assert read.images == found.images == 20
    for target, site in found.items():
        assert torch.equal(read[target].weight, site.weight)
        assert read[target].images == site.images
        assert {type(each) for each in read[target]} == {type(each) for each in site}
        for each in site:
            for field, tensor in each.tensors().items():
                assert torch.equal(read[target][type(each)].tensors()[field], tensor)


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
        config = PruneConfig(Budget(macs), method=method, images=24, round_to=1, limits=None)
        return prune(base, tiny_images, config, tmp_path / folder).module.state_dict()

    made(0.8, "work")
    small = made(0.6, "work")
    assert len(passes) == 1
    alone = made(0.6, "other")
    assert len(passes) == 2
    assert small.keys() == alone.keys()
    assert all(torch.equal(small[key], alone[key]) for key in small)
