"""Where time goes: stages belong together in every engine, by an engine of known times exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from sinf.bundle.semantic import Bundle
from sinf.engine.engines import open_engine
from sinf.engine.parts import bare
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError
from sinf.measure import stages
from sinf.measure.stages import stage_times
from sinf.routing.router import FeatureRouter

NAMES = ("warm", "leaf", "cold")
COST = {"base": 100, "front": 12, "bare.front": 10, "full_tail": 60, "first": 33}  # ticks


class Clockwork:
    """An engine in which the route is in the image, and every part takes its ticks."""

    def __init__(self) -> None:
        self.ticks = 0
        self.ran: list[str] = []

    def run(self, part: str, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        self.ran.append(part)
        x = inputs[0]
        cluster = int(part[-1]) if part[-1].isdigit() else 0
        self.ticks += COST.get(part, 20 + 10 * cluster + (0 if part.startswith("bare") else 3))
        if part == "first":
            return x, np.zeros((len(x), 6)), np.where(x[:, 1, 0, 0] == 1, 0.2, 0.9)
        route, unsure = x[:, 0, 0, 0].astype(np.int64), x[:, 1, 0, 0]
        if part == "front":
            return x, np.zeros((len(x), 3)), route, np.where(unsure == 2, 0.1, 0.9)
        if part in ("base", "full_tail") or part.startswith("bare"):
            return (x,)
        return np.zeros((len(x), 6)), np.where(unsure == 1, 0.2, 0.9)

    def array(self, values: list) -> np.ndarray:
        return np.array(values)

    def close(self) -> None: ...


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> FeatureRouter:
    engine = Clockwork()

    def perf_counter() -> float:
        engine.ticks += 0
        return engine.ticks / 1000

    monkeypatch.setattr(stages.time, "perf_counter", perf_counter)
    return FeatureRouter(engine, (3, 1, 1), 0.5, 0.4)


def images(*kinds: tuple[int, int]) -> np.ndarray:
    """One image of each route; the second number says what is unsure: 1 the subgraph, 2 the predictor."""
    x = np.zeros((len(kinds), 3, 1, 1), np.float32)
    x[:, :2, 0, 0] = kinds
    return x


def test_stages_of_known_times(clockwork: FeatureRouter) -> None:
    x = images((0, 0), (0, 1), (2, 0), (0, 2))  # answered, falls back after, answered, falls back before
    found = stage_times(clockwork, NAMES, x, turns=8)
    assert (found.images, found.subgraph_ran, found.fallback_share) == (8, 0.75, 0.5)
    assert found.base == pytest.approx(100)
    assert found.extractor == pytest.approx(10)
    assert found.predictor == pytest.approx(2)
    assert found.subgraph == pytest.approx(0.5 * 20 + 0.25 * 40)
    assert found.deferral == pytest.approx(0.75 * 3)
    assert found.full_tail == pytest.approx(0.5 * 60)
    assert found.glue == pytest.approx(0)
    assert found.overhead == pytest.approx(0.0425)
    warm, cold = found.clusters
    assert (warm.name, warm.images, warm.fallback) == ("warm", 6, pytest.approx(2 / 3))
    assert (warm.subgraph, warm.base) == (pytest.approx(23), pytest.approx(100))
    assert warm.ours == pytest.approx(12 + 60)  # the median of 35, 95 and 72
    assert (cold.name, cold.subgraph, cold.ours) == ("cold", pytest.approx(43), pytest.approx(55))
    assert cold.time_saved == pytest.approx(0.45)
    record = json.loads(json.dumps(found.to_json()))
    assert record["time_saved"] == pytest.approx(1 - record["ours"] / 100)


def test_stages_of_a_cascade(clockwork: FeatureRouter) -> None:
    cascade = FeatureRouter(clockwork.engine, clockwork.size, 0.5, 0.0, cascade=True)
    found = stage_times(cascade, ("all",), images((0, 0), (0, 1)), turns=4)
    assert (found.subgraph_ran, found.fallback_share) == (1.0, 0.5)
    assert (found.extractor, found.predictor, found.subgraph, found.deferral) == pytest.approx((10, 0, 20, 3))
    assert (found.full_tail, found.glue, found.ours) == pytest.approx((30, 0, 63))


def test_a_route_whose_subgraph_never_runs(clockwork: FeatureRouter) -> None:
    found = stage_times(clockwork, NAMES, images((1, 2)), turns=2)
    assert (found.subgraph, found.deferral, found.clusters[0].subgraph) == (0, 0, None)
    assert not [part for part in clockwork.engine.ran if "cluster" in part]


def test_each_comes_first_as_often(clockwork: FeatureRouter) -> None:
    stage_times(clockwork, NAMES, images((1, 0)), turns=3)
    timed = [part for part in clockwork.engine.ran[5:] if part in ("base", "front", "bare.front")]
    assert timed == ["base", "front", "bare.front", "front", "bare.front", "base", "bare.front", "base", "front"]


def test_bad_options_are_refused(clockwork: FeatureRouter) -> None:
    with pytest.raises(ConfigError, match="pairs"):
        stage_times(clockwork, NAMES, images((0, 0)), turns=1)
    with pytest.raises(ConfigError, match="images"):
        stage_times(clockwork, NAMES, images((0, 0))[:0])


# ---- in real engines


@pytest.mark.parametrize("name", tiny.ENGINES)
def test_every_engine_has_its_stages(built: Path, name: str) -> None:
    model = SemanticModel(Bundle.load(built))
    model.threshold = 0.0
    router = open_engine(model, name)
    x = torch.randn(6, *router.size, generator=torch.Generator().manual_seed(0))
    found = stage_times(router, NAMES, x, turns=6)
    assert found.subgraph_ran == 1
    assert found.full_tail == 0
    assert min(found.base, found.extractor, found.subgraph, found.ours) > 0
    assert sum(cluster.images for cluster in found.clusters) == 6


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_bare_parts_are_extractor_and_subgraph(built: Path, name: str) -> None:
    model = SemanticModel(Bundle.load(built))
    engine = open_engine(model, name).engine
    x = torch.randn(3, *model.bundle.spec.preprocessing.size, generator=torch.Generator().manual_seed(0))
    features = model.extractor(x)
    with torch.no_grad():
        for part, given, expected in (
            ("front", x, features),
            ("cluster001", features, model.run_subgraph(1, features)),
        ):
            (found,) = engine.run(bare(part), given)
            torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=1e-4)
