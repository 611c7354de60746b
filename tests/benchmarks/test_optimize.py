"""The script that measures what optimize() delivers: what it opens, writes and leaves."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sinf.errors import ConfigError, DoesNotPayError
from sinf.measure.delivery import ExpectedLoss
from sinf.models import load_model
from sinf.pipelines.confirm import INT8, Confirmed
from sinf.pipelines.optimize_search import COMPILED, OWN
from times import latency

NOTHING_PAYS = DoesNotPayError("something must pay", got="nothing", remedy="leave it", numbers={})


class Chosen:
    """What optimize() returns, as far as the script reads it."""

    kind, name, precision, full_name = "static", "ranks, 64 %", "f32", "ranks, 64 %, f32"
    loss, time = ExpectedLoss(0.4, 0.1, 0.7, 0.02, 0.7, 100), latency(4.0)


class Delivered:
    rows, chosen, promise = (), Chosen, type("Promise", (), {"loss": 0.002})


@pytest.fixture
def measured(
    script: Callable[..., ModuleType], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[dict[str, str]], list[str]]]:
    """Rows that a run of the script left, and the requests that it had made anew. Nothing pays at 0.1 points, of which
    images are too few for a confidence; what is delivered takes 4 ms in any run."""
    module = script("optimize", "table", "candidates", "networks")
    monkeypatch.setattr(sys.modules["table"], "RESULTS", tmp_path)
    made: list[str] = []

    def optimize(base: Any, train: Any, calibration: Any, config: Any, folder: Path, **options: Any) -> Delivered:
        made.append(f"{config.engine} {config.batch} {100 * config.max_loss:g} {config.confidence}")
        if config.max_loss < 0.005:
            raise ConfigError("too few") if config.confidence else NOTHING_PAYS
        folder.mkdir(parents=True)
        return Delivered()

    def confirm(base: Any, folders: dict[str, Path], *given: Any, batch: int, **options: Any) -> Confirmed:
        assert all(folder.is_dir() for folder in folders.values()), folders
        names = (OWN, COMPILED, INT8, *folders)
        return Confirmed(0.7, dict.fromkeys(names, Chosen.loss), dict.fromkeys(names, latency(4.0)))

    monkeypatch.setattr(module, "optimize", optimize)
    monkeypatch.setattr(module, "confirm", confirm)
    monkeypatch.setattr(module, "load_images", lambda *given: None)
    monkeypatch.setattr(module, "opened", lambda *given, **options: load_model("vgg11", classes=6))
    monkeypatch.setattr(module, "place_of", lambda config, *given: nullcontext_of(config.engine))
    monkeypatch.setattr(module, "open_network", lambda *given: None)

    def run(**options: Any) -> tuple[list[dict[str, str]], list[str]]:
        made.clear()
        module.main("vgg11", weights, tmp_path, tmp_path / "work", only="f32", **options)
        with (tmp_path / "optimize_vgg11_cpu.csv").open(newline="") as file:
            return list(csv.DictReader(file)), list(made)

    return run


def nullcontext_of(engine: str) -> Any:
    """A place where nothing is opened."""
    place: Any = nullcontext()
    place.engine, place.close = engine, lambda: None
    return place


Measured = Callable[..., tuple[list[dict[str, str]], list[str]]]


def test_what_does_not_pay_and_what_too_few_images_cannot_promise_are_rows(measured: Measured) -> None:
    rows, _ = measured(limits=[0.5, 0.1])
    asked = {(row["asked"], row["confidence"]): row for row in rows if row["what"] == "optimize"}
    assert {key: (row["chosen"], row["ms"]) for key, row in asked.items()} == {
        ("0.5", ""): ("ranks, 64 %", "4"), ("0.5", "0.95"): ("ranks, 64 %", "4"),
        ("0.1", ""): ("nothing pays", ""), ("0.1", "0.95"): ("too few images to promise it", ""),
    }  # fmt: skip
    assert {row["what"] for row in rows} == {"torch, as loaded", "torch, compiled", "base int8", "optimize"}


def test_what_was_delivered_is_not_made_again(measured: Measured) -> None:
    _, first = measured(limits=[0.5])
    assert first == ["onnxruntime 1 0.5 None", "onnxruntime 1 0.5 0.95"]
    _, second = measured(limits=[0.5, 1.0])
    assert second == ["onnxruntime 1 1 None", "onnxruntime 1 1 0.95"]


def test_another_engine_or_batch_has_rows_of_its_own(measured: Measured) -> None:
    measured(limits=[0.5])
    _, made = measured(limits=[0.5], batch=32)
    assert made == ["onnxruntime 32 0.5 None", "onnxruntime 32 0.5 0.95"]
    rows, made = measured(limits=[0.5], engine="torch", likely=True)
    assert made == ["torch 1 0.5 None"]
    where = [(row["engine"], row["batch"]) for row in rows if row["what"] == "optimize"]
    assert where == [("onnxruntime", "1")] * 2 + [("onnxruntime", "32")] * 2 + [("torch", "1")]
