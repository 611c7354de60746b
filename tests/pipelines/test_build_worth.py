"""A long build begins with what it can bring at best, and stops there where that is nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from program import Program, build_words
from sinf.data.clusters import Clusters, from_column, one_cluster
from sinf.data.images import LabelledImages
from sinf.errors import DoesNotPayError
from sinf.graph.network import PartedNetwork
from sinf.measure import delivery
from sinf.measure.estimate import Estimate
from sinf.measure.timing import Latency, summary
from sinf.models import BaseModel
from sinf.pipelines import build as pipeline
from sinf.pipelines import build_worth
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.pipelines.build_worth import Prospect
from sinf.routing.predictor import RouterConfig

CONFIG = BuildConfig(cut_at=0.5, max_loss=0.9, route_draws=240, macs=0.4, router=RouterConfig(epochs=1, hidden=16))


def latencies(*saved: float, noise: float = 0.0) -> tuple[Latency, ...]:
    """Of batches of 1 and 32; every other pair differs by so much of the time."""
    wave = noise * torch.tensor([1.0, -1.0] * 10)
    return tuple(
        summary(torch.stack([10 + 0 * wave, 10 * (1 - share + wave)]).double(), batch, 1)
        for batch, share in zip((1, 32), saved, strict=True)
    )


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plays the times of the best case, of what falls back, and of the bundle; every build is long enough to ask."""
    monkeypatch.setattr(pipeline, "LONG", 0.0)

    def play(best: tuple[float, float], fallback: tuple[float, float] = (-0.2, -0.2), bundle: float = 0.3) -> None:
        known = {"best case": best, "fallback": fallback, "bundle": (bundle, bundle)}

        def beside(base: Any, networks: dict[str, Any], *rest: Any) -> dict[str, tuple[Latency, ...]]:
            with torch.no_grad():
                for network in networks.values():
                    network(torch.zeros(2, 3, 32, 32))
            return {name: latencies(*known[name]) for name in networks}

        for module in (delivery, build_worth):
            monkeypatch.setattr(module, "time_beside", beside)

    return play


def test_what_cannot_pay_is_not_built(
    base: BaseModel, images: Images, tmp_path: Path, times: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops before anything of length, with the numbers and the remedy; kept anyway, it goes on."""
    times((-0.1, 0.3))
    clusters = from_column(images.scoring)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "train_router", lambda *a, **k: pytest.fail("the route predictor was trained"))
        with pytest.raises(
            DoesNotPayError, match=r"10.0 % slower at batch 1 .*though nothing fell back.*--keep-anyway"
        ):
            build(base, images, clusters, CONFIG, tmp_path / "bundle", work=tmp_path / "work")
    assert not (tmp_path / "bundle").exists()
    assert list((tmp_path / "work").iterdir()) == []
    anyway = replace(CONFIG, keep_anyway=True)
    build(base, images, clusters, anyway, tmp_path / "bundle", work=tmp_path / "work")
    assert (tmp_path / "bundle" / "config.json").is_file()


@pytest.mark.parametrize("whole", [1.0, 0.7])
@pytest.mark.parametrize("method", ["channels", "ranks"])
@pytest.mark.parametrize("of", [from_column, lambda scoring: one_cluster(scoring.classes)], ids=["clusters", "cascade"])
def test_the_parts_that_are_timed_cost_what_those_of_the_bundle_do(
    base: BaseModel, images: Images, tmp_path: Path, times: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
    of: Callable[[LabelledImages], Clusters], method: str, whole: float,
) -> None:  # fmt: skip
    times((0.3, 0.3))
    monkeypatch.setattr(build_worth, "IMAGES", 24)
    monkeypatch.setattr(pipeline, "IMAGES", 24)
    parts: list[dict[str, Any]] = []
    original = Prospect.of

    def noted(base: Any, router: Any, made: dict[str, Any], *rest: Any) -> Prospect:
        parts.append(made)
        return original(base, router, made, *rest)

    monkeypatch.setattr(Prospect, "of", staticmethod(noted))
    told: list[Prospect] = []
    config = replace(CONFIG, method=method, whole=whole, round_to=2)
    bundle = build(base, images, of(images.scoring), config, tmp_path / "bundle", worth=told.append)
    assert told == [Prospect(latencies(0.3, 0.3), latencies(-0.2, -0.2))]
    network: PartedNetwork = bundle.network()
    built, (timed,) = network.graphs_of(bundle.parts), parts
    first = next(name for name in built if name not in ("extractor", "full_tail"))
    for name, other in (("extractor", "extractor"), ("full_tail", "full_tail"), ("subgraph", first)):
        assert network.cost_of(timed[name]) == pytest.approx(network.cost_of(built[other]), rel=0.15)


def test_a_short_build_and_one_that_is_kept_anyway_do_not_ask(
    base: BaseModel, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline._Build, "prospect", lambda self: pytest.fail("it asked"))
    monkeypatch.setattr(delivery, "time_beside", lambda *a, **k: {"bundle": latencies(0.3, 0.3)})
    clusters = from_column(images.scoring)
    monkeypatch.setattr(pipeline, "LONG", 1e9)
    build(base, images, clusters, CONFIG, tmp_path / "bundle", work=tmp_path / "work")
    monkeypatch.setattr(pipeline, "LONG", 0.0)
    anyway = replace(CONFIG, keep_anyway=True)
    build(base, images, clusters, anyway, tmp_path / "bundle", work=tmp_path / "work", expect=lambda estimate: None)


@given(st.floats(-0.5, 0.6), st.floats(-0.5, 0.6), st.floats(0.0, 0.3))
def test_only_what_is_surely_no_faster_stops(one: float, many: float, noise: float) -> None:
    best = latencies(one, many, noise=noise)
    prospect = Prospect(best, latencies(-0.3, -0.3))
    if delivery.is_faster(best):
        assert prospect.may_pay
    if max(one, many) < 0:
        assert noise > 0 or not prospect.may_pay
    if prospect.may_pay:
        prospect.require()
    else:
        with pytest.raises(DoesNotPayError):
            prospect.require()


@given(st.floats(0.01, 0.9), st.floats(-0.9, 0.9))
def test_the_share_that_may_fall_back(best: float, fallback: float) -> None:
    """With that share the mean time is the base model's; where even a fallback is faster it is all of them."""
    share = Prospect(latencies(best, best), latencies(fallback, fallback)).most_fallback
    if fallback >= 0:
        assert share == 1
    else:
        assert (1 - share) * (1 - best) + share * (1 - fallback) == pytest.approx(1)
    assert Prospect(latencies(-best, best), latencies(fallback, fallback)).most_fallback in (0, 1)


def test_the_command_says_what_it_may_bring(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, times: Callable[..., None]
) -> None:
    times((0.3, 0.25))
    words = [word for word in build_words(data, weights, tmp_path / "bundle") if word != "--keep-anyway"]
    code, _, err = sinf.call(*words)
    assert code == 0, err
    (line,) = [line for line in err.splitlines() if line.startswith("is it worth it? at best")]
    assert "30.0 % faster at batch 1" in line
    assert "as fast as the base model where 60 % do" in line
    times((-0.3, -0.25))
    code, _, err = sinf.call(*words[:-3], tmp_path / "other", *words[-2:])
    assert code == 3
    assert "nothing is written" in err
    assert not (tmp_path / "other").exists()


def test_the_rest_is_told_after_the_first_steps(
    base: BaseModel, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what these took: three times as long as expected, so the rest will be."""
    clock = [0.0]
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: clock[0])
    expected = Estimate({"route predictor": 100.0, "subgraphs": 50.0, "calibration": 10.0}, "fewer images")
    monkeypatch.setattr(pipeline._Build, "expected", lambda self: expected)
    original = pipeline._Build._router

    def router(self: Any, extractor: Any) -> Any:
        clock[0] += 300.0
        return original(self, extractor)

    monkeypatch.setattr(pipeline._Build, "_router", router)
    told: list[Estimate] = []
    anyway = replace(CONFIG, keep_anyway=True)
    build(base, images, from_column(images.scoring), anyway, tmp_path / "bundle", expect=told.append)
    assert told[0] is expected
    assert told[1].steps == {"subgraphs": 150.0, "calibration": 30.0}
    assert told[1].line().startswith("expected time of the rest: about 3 min")


def test_steps_that_were_done_before_say_nothing_of_the_rest() -> None:
    assert Estimate({"a": 100.0, "b": 50.0}, "less").rest({"a"}, 5.0) is None
    assert Estimate({"b": 50.0}, "less").rest({"a"}, 5.0) is None
