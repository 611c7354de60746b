"""The demo from end to end on tiny assets."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

import tiny
from program import Program
from sinf import edge
from sinf.cli import demo
from sinf.cli.options import Machine
from sinf.measure.delivery import ExpectedLoss
from sinf.pipelines import confirm, optimize_config, optimize_search
from sinf.pipelines.confirm import INT8
from sinf.pipelines.optimize_config import OptimizeConfig
from sinf.pipelines.optimize_search import OWN
from times import latency, taking


@pytest.fixture
def assets(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A narrow random network, which other tests export too, and tiny images in the place of the embedded ones."""
    folder = tmp_path / "assets"
    data = folder / demo.DATA
    data.mkdir(parents=True)
    for seed, split in enumerate(("scoring", "calibration", "test")):
        tiny.coloured_images(data, 36, seed)
        (data / "train-00000-of-00001.parquet").rename(data / f"{split}-00000-of-00001.parquet")
    shutil.copy(weights, folder / "vgg11_cifar100.safetensors")
    for name, value in (("ASSETS", folder), ("MODEL", "vgg11"), ("CUT", "features.14")):
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "LIMIT", 99.0)
    return folder


def milliseconds(name: str) -> float:
    """The model as loaded takes twenty milliseconds, the base model in its engine ten, in int8 three, a cascade and
    what was chosen two, parts of a cascade and other networks two and a half."""
    known = {OWN: 20.0, "base model, int8": 3.0, demo.CHOSEN: 2.0}
    return known.get(name, 2.0 if name.startswith("cascade") else 2.5)


@pytest.mark.usefixtures("assets")
def test_the_demo_is_what_optimize_finds(sinf: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (optimize_search, confirm):
        monkeypatch.setattr(module, "interleaved", taking(milliseconds))
    # One smaller network and one cascade: tests/pipelines has the others.
    monkeypatch.setattr(optimize_config, "OptimizeConfig", partial(OptimizeConfig, budgets=(0.6,), tails=(0.9,)))
    out = tmp_path / "out"
    text = " ".join(sinf("demo", "--out", out, "--threads", 1).split())
    assert "10.0 times less time than your model as loaded" in text
    assert "On 36 test images, which chose nothing" in text
    assert (
        "(20.00 -> 2.00 ms), 80.0 % less than the base model in the same engine, 33.3 % less than that in int8" in text
    )
    assert "20.0 % less than its own extractor and full tail alone (" in text
    found = json.loads((out / "found.json").read_text())
    assert found["chosen"]["accepted"] is True
    assert found["chosen"]["kind"] == "cascade"
    assert {row["precision"] for row in found["rows"]} == {"f32", "int8"}
    export = edge.load(out / "fast" / demo.ENGINE)
    assert export.precision == found["chosen"]["precision"]
    assert export(torch.zeros(2, 3, 32, 32).numpy()).shape == (2, 6)
    page = (out / "report.html").read_text()
    assert found["chosen"]["name"] in page


def test_the_demo_says_more_where_something_is_slower() -> None:
    loss = ExpectedLoss(0.5, 0.1, 0.9, 0.02, 0.7, 36)
    taken = {OWN: 10.5, INT8: 20.0, demo.CHOSEN: 21.0}
    times = {name: latency(ms, base=20.0) for name, ms in taken.items()}
    text = demo._confirmed(confirm.Confirmed(0.7, dict.fromkeys(taken, loss), times), 36)
    assert "2.0 times more time than the model as loaded" in text
    assert "5.0 % more than the base model in the same engine, 5.0 % more than that in int8." in text


@pytest.mark.usefixtures("assets")
def test_the_page_for_browsers_has_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sinf.engine.torch_engine import SemanticModel

    monkeypatch.setattr(demo, "DRAWS", 60)
    monkeypatch.setattr(demo, "BUNDLE_LIMIT", 99.0)
    demo._build(tmp_path / "bundle", Machine(threads=1))
    assert SemanticModel.from_pretrained(tmp_path / "bundle")(torch.zeros(2, 3, 32, 32)).shape == (2, 6)
