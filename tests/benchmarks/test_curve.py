"""Networks made by one compressor after another, as the script on curves makes them, and which a limit picks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

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


def test_a_limit_picks_the_fastest_that_keeps_it(script: Callable[..., ModuleType]) -> None:
    pages = script("pages")
    rows = [
        {"made": name, "calibration_loss": lost, "time_saved": saved, "loss": "9"}
        for name, lost, saved in (("a", "0.4", "0.3"), ("b", "0.9", "0.6"), ("c", "1.1", "0.7"), ("d", "0.3", "0.2"))
    ]
    assert [pages.fastest(rows, limit)["made"] for limit in (0.5, 1.0, 2.0)] == ["a", "b", "c"]
    assert pages.fastest(rows, 0.1) is None
