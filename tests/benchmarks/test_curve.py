"""Networks made by one compressor after another, as the script on curves makes them, and which a limit picks."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from shown.limits import fastest

from sinf.data.images import LabelledImages
from sinf.errors import ConfigError
from sinf.graph.trace import trace
from sinf.models import BaseModel, load_model
from times import like_macs


@pytest.fixture
def curve(script: Callable[..., ModuleType]) -> ModuleType:
    return script("curve", "candidates", "table")


@pytest.fixture
def base() -> BaseModel:
    torch.manual_seed(0)
    return load_model("resnet20", classes=6, options={"width": 0.5})


def test_a_chain_makes_the_second_network_of_the_first(
    curve: ModuleType, base: BaseModel, tiny_images: LabelledImages, tmp_path: Path
) -> None:
    """Ranks take what depth left, and add calls of their own; both budgets hold of what they were given."""
    whole, calls = curve.counted(base)
    depth, both = (curve.Step("depth", 0.85),), (curve.Step("depth", 0.85), curve.Step("ranks", 0.8, round_to=2))
    shorter, smaller = (curve.made(base, tiny_images, chain, tmp_path, None, 24) for chain in (depth, both))
    assert curve.counted(shorter)[1] < calls < whole
    assert curve.counted(smaller)[1] > curve.counted(shorter)[1]
    assert curve.counted(smaller)[0] < curve.counted(shorter)[0] < whole
    assert curve.name_of(both) == "depth 0.85, then ranks 0.8 by 2"
    for chains in curve.CHAINS.values():
        assert len(set(map(curve.name_of, chains))) == len(chains)  # rows are told apart by it


def test_budgets_of_time_are_spent_by_times(
    curve: ModuleType, base: BaseModel, tiny_images: LabelledImages, tmp_path: Path
) -> None:
    times = like_macs(trace(base.module, base.spec.preprocessing))
    step = curve.Step("ranks", 0.7, of_time=True, round_to=2)
    assert str(step) == "ranks 0.7 of time by 2"
    model = curve.made(base, tiny_images, (step,), tmp_path, times, 24)
    assert curve.counted(model)[0] <= 0.72 * curve.counted(base)[0]  # these times are MACs, but at the edges of maps
    other = curve.made(base, tiny_images, (step._replace(of_time=False),), tmp_path, None, 24)
    assert curve.counted(other) != curve.counted(model)  # weights count there
    with pytest.raises(ConfigError, match="first"):
        curve.made(base, tiny_images, (curve.Step("depth", 0.9), step), tmp_path, times, 24)


def test_a_limit_picks_the_fastest_that_keeps_it() -> None:
    rows = [
        {"made": name, "calibration_loss": lost, "time_saved": saved, "loss": "9"}
        for name, lost, saved in (("a", "0.4", "0.3"), ("b", "0.9", "0.6"), ("c", "1.1", "0.7"), ("d", "0.3", "0.2"))
    ]
    assert [fastest(rows, limit)["made"] for limit in (0.5, 1.0, 2.0)] == ["a", "b", "c"]
    assert fastest(rows, 0.1) is None


@pytest.mark.parametrize("until", ["layers", "networks", "all"])
def test_rows_are_written_at_the_end(
    curve: ModuleType, base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    until: str,
) -> None:  # fmt: skip
    """Those of networks within reach; before, nothing is timed but layers."""
    chains = [(curve.Step("ranks", 0.7, round_to=2),), (curve.Step("depth", 0.01),), (curve.Step("depth", 0.85),)]
    halves = [
        curve.Answers(torch.arange(30) % 2 == 0, torch.arange(30) % 3 != 0),
        curve.Answers(*torch.ones(2, 30).bool()),
    ]
    setup = SimpleNamespace(base=base, store=None, train=tiny_images, report=tiny_images, answers=lambda model: halves)
    timed: list[str] = []

    def interleaved(base: object, ours: dict[str, object], images: object, pairs: int) -> dict[str, SimpleNamespace]:
        timed.extend(ours)
        return {
            key: SimpleNamespace(time_saved=0.25, low=0.2, high=0.3, base_mean=2.0, mean=1.5, load=0.0) for key in ours
        }

    monkeypatch.setattr(sys.modules["table"], "RESULTS", tmp_path)
    for name, value in {
        "Setup": lambda *given: setup, "CHAINS": {"resnet56": chains}, "IMAGES": 24, "interleaved": interleaved,
        "network_times": lambda base, *given: like_macs(trace(base.module, base.spec.preprocessing)),
        "in_engine": lambda model, engine: model.module,
    }.items():  # fmt: skip
        monkeypatch.setattr(curve, name, value)
    curve.main("resnet56", tmp_path, tmp_path, tmp_path / "work", until=until)
    assert timed == (["ranks 0.7 by 2", "depth 0.85"] if until == "all" else [])
    path = tmp_path / "curve_resnet56_cpu.csv"
    assert path.exists() == (until == "all")
    if until == "all":
        with path.open() as file:
            rows = list(csv.DictReader(file))
        assert [row["made"] for row in rows] == timed
        assert [(row["loss"], row["time_saved"], row["images"]) for row in rows] == [("0", "0.25", "30")] * 2
        assert float(rows[0]["calibration_loss"]) == pytest.approx(100 * (20 - 15) / 30, rel=1e-4)
