"""How long optimize() takes: what a time limit leaves out, and what is said before it begins. Times are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from program import Program
from sinf.data.clusters import one_cluster
from sinf.data.images import LabelledImages
from sinf.errors import ConfigError, DoesNotPayError
from sinf.load import from_pretrained
from sinf.measure.delivery import ExpectedLoss
from sinf.measure.estimate import Estimate, Pace
from sinf.models import BaseModel, load_model
from sinf.pipelines import candidates
from sinf.pipelines import optimize_search as searching
from sinf.pipelines.optimize import Optimized, optimize
from sinf.pipelines.optimize_config import OptimizeConfig
from sinf.pipelines.optimize_time import LIMIT, TimeLimit, estimate
from times import taking
from tiny import coloured_images

SMALL = OptimizeConfig(
    engine="torch", images=24, methods=("ranks", "channels"), budgets=(0.8, 0.6), cuts=(0.3,), tails=(0.95,),
    max_loss=0.9, by_time=False, compiled=False,
)  # fmt: skip


class Clock:
    """Seconds, one more whenever it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def run(tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Optimized]:
    """optimize() with a config, where everything takes less time than the base model."""
    torch.manual_seed(0)
    base: BaseModel = load_model("vgg11", classes=6, options={"width": 0.125})
    (tmp_path / "calibration").mkdir()
    calibration = coloured_images(tmp_path / "calibration", 80, seed=1)

    monkeypatch.setattr(searching, "interleaved", taking(lambda name: 5.0))
    return lambda config, **options: optimize(
        base, tiny_images, calibration, config, tmp_path / "fast", work=tmp_path / "work", **options
    )


def test_when_the_time_is_over_at_once_there_is_still_something(
    run: Callable[..., Optimized], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The base model in all precisions and the first smaller network are measured and tested; the rest is named."""

    def in_torch(module: Any, size: Any, engine: str, **options: Any) -> Callable[..., Any]:
        return lambda x: module(torch.as_tensor(x)).detach()  # a graph in integers takes seconds to make

    monkeypatch.setattr(candidates, "open_network", in_torch)
    monkeypatch.setattr(candidates, "FORMATS", {})
    found = run(replace(SMALL, minutes=1e-9, engine="onnxruntime", precisions=("f32", "int8")))
    assert [(row.name, row.precision) for row in found.rows] == [
        ("base model", "int8"), ("ranks, 80 %", "f32"), ("ranks, 80 %", "int8")
    ]  # fmt: skip
    assert found.chosen.accepted is True
    assert from_pretrained(tmp_path / "fast")
    said = [line for line in found.left_out if "not begun, since 1e-09 minutes were over" in line]
    assert [line.split(":")[0] for line in said[:2]] == ["ranks, 60 % and less", "channels"]
    assert any(line.startswith("cascade at 30 %") for line in said)


def test_a_first_network_out_of_reach_is_not_the_last(
    run: Callable[..., Optimized], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One between it and the base model stands for it, whatever the time."""
    original = searching.pruner

    def pruner(*arguments: Any, **options: Any) -> Callable[..., Any]:
        make = original(*arguments, **options)

        def made(budget: Any) -> Any:
            if budget.macs == SMALL.budgets[0]:
                raise ConfigError("out of reach")
            return make(budget)

        return made

    monkeypatch.setattr(searching, "pruner", pruner)
    found = run(replace(SMALL, minutes=1e-9))
    assert [row.name for row in found.rows] == ["ranks, 92.8 %"]


@pytest.mark.parametrize(
    ("max_loss", "made"),
    [
        (0.3, ["80", "60", "72.7", "66"]),
        (0.25, ["80", "60", "72.7"]),
        (0.1, ["80", "92.8", "86.2"]),
        (0.5, ["80", "60"]),
    ],
)
def test_a_few_networks_are_made_near_the_limit(
    run: Callable[..., Optimized], monkeypatch: pytest.MonkeyPatch, max_loss: float, made: list[str]
) -> None:
    """Networks likely lose all that they do not keep: those between the last within the limit and the first beyond."""
    monkeypatch.setattr(searching._Rung, "likely", property(lambda rung: 100 * (1 - rung.kept)))
    lost = ExpectedLoss(99.0, 99.0, 99.0, 1.0, None, 80)
    monkeypatch.setattr(searching.ExpectedLoss, "of", lambda *_: lost)
    with pytest.raises(DoesNotPayError) as refused:
        run(replace(SMALL, methods=("ranks",), cuts=(), max_loss=max_loss))
    names = [row["name"] for row in refused.value.numbers["rows"]]
    assert names == [f"ranks, {kept} %" for kept in made]


def test_a_limit_that_is_not_reached_changes_nothing(run: Callable[..., Optimized]) -> None:
    config = replace(SMALL, methods=("ranks",))
    found, limited = run(config), run(replace(config, minutes=1e6))
    assert [row.name for row in found.rows] == [row.name for row in limited.rows]
    assert found.left_out == limited.left_out == ()
    assert {row.kind for row in limited.rows} == {"static", "cascade"}


@given(st.floats(0.1, 10), st.integers(1, 1000))
def test_the_share_of_the_time_that_is_gone_is_said(minutes: float, calls: int) -> None:
    clock = Clock()
    limit, said = TimeLimit(minutes, clock), []
    told = limit.watched(lambda step, done, total: said.append((step, done, total)))
    for done in range(calls):
        told("work", done, calls)
    assert [each for each in said if each[0] == "work"] == [("work", done, calls) for done in range(calls)]
    gone = [done for step, done, total in said if step == LIMIT]
    assert gone == [min(round(60 * minutes), second) for second in range(1, calls + 1)]
    assert {total for step, _, total in said if step == LIMIT} == {round(60 * minutes)}
    assert limit.over == (calls + 1 >= 60 * minutes)


def test_without_a_limit_nothing_is_said_of_it() -> None:
    limit, said = TimeLimit(None, Clock()), []
    limit.watched(lambda step, done, total: said.append(step))("work", 1, 2)
    assert said == ["work"]
    assert not limit.over


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_a_limit_must_be_more_than_nothing(minutes: float) -> None:
    with pytest.raises(ConfigError, match="minutes must be more than 0"):
        OptimizeConfig(minutes=minutes)


# ---- what is said before it begins


PACE = Pace(forward=0.009, teaching=0.004, matrix=0.05)


def seconds(config: OptimizeConfig) -> float:
    return estimate(PACE, 5.0, config, scoring=50_000, selection=1667, calibration=3333).seconds


def changed() -> Iterator[tuple[OptimizeConfig, float, float]]:
    """Configs, and between which multiples of the first one's time theirs must be."""
    plain = OptimizeConfig(engine="onnxruntime", methods=("ranks",))
    yield plain, 1.0, 1.0
    yield replace(plain, images=8000), 1.5, 2.0
    yield replace(plain, cuts=()), 0.3, 0.7
    yield replace(plain, precisions=("f32", "int8")), 1.05, 1.5
    yield replace(plain, methods=("ranks", "channels")), 1.2, 1.6
    yield replace(plain, clusters=one_cluster(100)), 1.2, 2.0


@pytest.mark.parametrize(("config", "low", "high"), list(changed()), ids=range(6))
def test_the_estimate_grows_with_the_work(config: OptimizeConfig, low: float, high: float) -> None:
    assert low <= seconds(config) / seconds(next(changed())[0]) <= high


def test_layers_that_are_timed_take_their_time() -> None:
    numbers: dict[str, Any] = {"scoring": 5000, "selection": 100, "calibration": 200}
    few, many = (estimate(PACE, 5.0, OptimizeConfig(engine="onnxruntime"), **numbers, probes=n) for n in (0, 100))
    assert few.steps["times of layers"] == 0
    assert many.seconds - few.seconds == pytest.approx(many.steps["times of layers"])
    assert 20 < many.steps["times of layers"] < 200


def test_the_command_says_how_long_and_stops(
    sinf: Program, weights: Path, data: Path, run: Callable[..., Optimized], tmp_path: Path
) -> None:
    words = ["optimize", "vgg11", "--weights", weights, "--data", data, "--score", "train", "--calibrate", "test"]
    words += ["--images", 24, "--max-loss", 90, "--engine", "torch", "--minutes", 0.0001, "--threads", 1]
    code, out, err = sinf.call(*words, "--out", tmp_path / "other")
    assert code == 0, err
    assert "expected time: about" in err
    assert "time limit ..." in err
    assert "not begun, since 0.0001 minutes were over" in " ".join(out.split())


def test_an_estimate_is_given_before_anything_is_made(run: Callable[..., Optimized]) -> None:
    told: list[Estimate | str] = []
    config = replace(SMALL, minutes=1e-9)
    run(config, expect=told.append, progress=lambda step, done, total: told.append(step))
    assert isinstance(told[0], Estimate)
    assert told[0].seconds > 0
