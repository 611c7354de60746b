"""A bundle is saved where it pays: timed beside the base model before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sinf.data.clusters import from_column
from sinf.engine.torch_engine import TailStore
from sinf.errors import DoesNotPayError
from sinf.measure import delivery
from sinf.measure.delivery import Verdict
from sinf.measure.timing import Latency, summary
from sinf.models import BaseModel
from sinf.pipelines import build as pipeline
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.routing.predictor import RouterConfig

CONFIG = BuildConfig(
    cut_at=0.5, max_loss=0.9, route_draws=240, macs=0.4, criterion="l1",
    router=RouterConfig(epochs=1, hidden=16),
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def latencies(*saved: float) -> tuple[Latency, ...]:
    return tuple(
        summary(torch.tensor([[10.0] * 9, [10 * (1 - share)] * 9]).double(), batch, 1)
        for batch, share in zip((1, 32), saved, strict=True)
    )


def play_times(monkeypatch: pytest.MonkeyPatch, *saved: float) -> None:
    monkeypatch.setattr(delivery, "time_beside", lambda *a, **k: {"bundle": latencies(*saved)})


def test_a_faster_bundle_is_saved(
    base: BaseModel, images: Images, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_times(monkeypatch, 0.3, 0.1)
    verdicts: list[Verdict] = []
    clusters = from_column(images.scoring)
    build(base, images, clusters, CONFIG, tmp_path / "bundle", work=work, report=verdicts.append)
    assert (tmp_path / "bundle" / "config.json").is_file()
    assert verdicts[0].pays
    assert verdicts[0].times == latencies(0.3, 0.1)


def test_a_slower_bundle_is_not_saved(
    base: BaseModel, images: Images, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that is faster at batch 1 and slower at 32; steps stay for another try."""
    play_times(monkeypatch, 0.1, -0.3)
    clusters = from_column(images.scoring)
    with pytest.raises(DoesNotPayError, match=r"30.0 % slower at batch 32") as refused:
        build(base, images, clusters, CONFIG, tmp_path / "bundle", work=work)
    assert not (tmp_path / "bundle").exists()
    assert [time["time_saved"] for time in refused.value.numbers["times"]] == pytest.approx([0.1, -0.3])
    verdicts: list[Verdict] = []
    anyway = replace(CONFIG, keep_anyway=True)
    build(base, images, clusters, anyway, tmp_path / "bundle", work=work, report=verdicts.append)
    assert (tmp_path / "bundle" / "config.json").is_file()
    assert not verdicts[0].pays


def test_making_a_subgraph_is_no_part_of_its_time(
    base: BaseModel, images: Images, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is made when it first runs, which takes many times as long: a bundle of twenty was said to be slower."""
    happened: list[str] = []
    make = TailStore._add

    def timed(base: Any, networks: dict[str, Any], x: torch.Tensor, **options: Any) -> dict[str, Latency]:
        happened.append("timed")
        networks["bundle"](x)
        return dict.fromkeys(networks, latencies(0.3, 0.1)[0])

    monkeypatch.setattr(TailStore, "_add", lambda store, name: happened.append("made") or make(store, name))
    monkeypatch.setattr(delivery, "interleaved", timed)
    build(base, images, from_column(images.scoring), CONFIG, tmp_path / "bundle", work=work)
    assert happened[-2:] == ["timed", "timed"]
    assert "made" in happened


def test_a_bundle_that_sends_everything_back_is_not_saved(
    base: BaseModel, images: Images, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast it is on images that were timed."""
    play_times(monkeypatch, 0.3, 0.3)
    monkeypatch.setattr(pipeline, "set_thresholds", _nothing_is_accepted(pipeline.set_thresholds))
    with pytest.raises(DoesNotPayError, match=r"100.0 % fall back"):
        build(base, images, from_column(images.scoring), CONFIG, tmp_path / "bundle", work=work)
    assert not (tmp_path / "bundle").exists()


def _nothing_is_accepted(original: object) -> object:
    def set_thresholds(*args: object, **options: object) -> tuple:
        deferral, threshold = original(*args, **options)  # type: ignore[operator]
        return deferral, replace(threshold, value=1.1, fallback=1.0)

    return set_thresholds


def test_what_is_kept_anyway_and_not_asked_for_is_not_timed(
    base: BaseModel, images: Images, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "time_beside", lambda *a, **k: pytest.fail("it was timed"))
    anyway = replace(CONFIG, keep_anyway=True)
    build(base, images, from_column(images.scoring), anyway, tmp_path / "bundle", work=work)
