"""Batches that are timed fit into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sinf.data.clusters import from_column
from sinf.data.images import LabelledImages, load_images
from sinf.machine.memory import Activations, Memory
from sinf.measure import delivery
from sinf.measure.limits import Limits
from sinf.measure.timing import summary
from sinf.models import load_model
from sinf.pipelines import comparison
from sinf.pipelines import prune as pruning
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.pipelines.prune import Amount, PruneConfig, prune
from sinf.routing.predictor import RouterConfig

EACH = 10**8
SMALL = 1_500_000_000  # in which six images of EACH bytes fit


def test_sizes_that_do_not_fit_get_smaller_and_are_said() -> None:
    memory = Memory(SMALL)
    assert Limits(batches=(1, 4, 32)).within(memory, EACH, 0).batches == (1, 4, 6)
    assert "6 in times" in memory.summary()
    assert Limits().within(Memory(), 10**6, 0) == Limits()


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """What batches are timed while every image takes EACH bytes."""
    seen: list[tuple[int, ...]] = []
    latency = summary(torch.tensor([[10.0] * 9, [5.0] * 9]).double(), 1, 1)

    def beside(base: Any, networks: dict[str, Any], images: Any, feed: Any, limits: Limits, *rest: Any) -> Any:
        seen.append(limits.batches)
        return dict.fromkeys(networks, (latency,))

    def interleaved(base: Any, networks: dict[str, Any], x: Any, *, batch: int, **options: Any) -> Any:
        seen.append((batch,))
        return dict.fromkeys(networks, latency)

    for module in (pruning, delivery):
        monkeypatch.setattr(module, "time_beside", beside)
    monkeypatch.setattr(comparison, "interleaved", interleaved)
    for user in ("sinf.pipelines.prune", "sinf.pipelines.build", "sinf.pipelines.comparison"):
        monkeypatch.setattr(f"{user}.activations", lambda graph: Activations(EACH, EACH, 0, 0))
    return seen


def test_prune_and_build_time_what_fits(
    tiny_images: LabelledImages, data: Path, tmp_path: Path, sizes: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    config = PruneConfig(
        Amount(macs=0.8), "channels", Limits(1.0, keep_anyway=True), images=60, round_to=1, memory=SMALL
    )
    pruned = prune(base, tiny_images, config, tmp_path / "work")
    comparison.compare(base, pruned, tiny_images, memory=2 * SMALL)
    bundle = BuildConfig(
        cut_at=0.5, max_loss=0.9, route_draws=120, macs=0.4, criterion="l1", memory=SMALL,
        router=RouterConfig(epochs=1, hidden=16), keep_anyway=True,
    )  # fmt: skip
    images = Images(tiny_images, tiny_images, load_images(data, "test"))
    build(base, images, from_column(tiny_images), bundle, tmp_path / "bundle", report=lambda verdict: None)
    assert sizes[0][1] in (5, 6)
    assert sizes[1:3] == [(1,), sizes[2]]
    assert sizes[2][0] < 32
    assert sizes[3][1] in (2, 3)  # of two networks
