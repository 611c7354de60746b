"""Budgets of a build that are shares of measured time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from program import Program, build_words
from sinf.bundle.semantic import Bundle
from sinf.data.clusters import from_column
from sinf.errors import ConfigError
from sinf.graph.price import LayerTimes
from sinf.models import load_model
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.pipelines.compression_options import TimedIn
from sinf.routing.predictor import RouterConfig
from times import like_macs
from tiny import coloured_images

Asked = list[tuple[Any, ...]]
CONFIG = BuildConfig(
    method="ranks", macs=0.5, whole=0.8, max_loss=0.9, keep_anyway=True, round_to=2, route_draws=60,
    router=RouterConfig(epochs=1, hidden=8),
)  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What layers are asked to be timed for; times are what MACs are, but for the first layer, which takes it all."""
    calls: Asked = []

    def timed(graph: Any, run: Callable[..., Any], size: Any, engine: str, **options: Any) -> LayerTimes:
        calls.append((engine, *(options[name] for name in ("precision", "batch", "threads"))))
        assert run(torch.zeros(1, *size)).shape == (1, 6)
        return replace(like_macs(graph), where=f"{engine} here")

    monkeypatch.setattr("sinf.pipelines.times.layer_times", timed)
    return calls


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_layers_are_timed_once_for_all_budgets_of_a_build(asked: Asked, tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    folders = [tmp_path / name for name in ("scored", "held out")]
    for folder in folders:
        folder.mkdir()
    scored, held_out = (coloured_images(folder, 60, seed) for seed, folder in enumerate(folders))
    images = Images(scored, scored, held_out)
    config = replace(CONFIG, time_in="onnxruntime", time_precision=precision, time_batch=2, threads=1)
    for name in ("first", "again"):
        bundle = build(base, images, from_column(scored), config, tmp_path / name, work=tmp_path / "work")
    assert asked == [("onnxruntime", precision, 2, 1)]
    assert "50 % of the time in onnxruntime here kept" in str(bundle.provenance)
    network = bundle.network()
    parts = (network.extractor(bundle.parts["extractor"]), network.tail(bundle.parts["full_tail"]))
    assert sum(map(network.cost_of, parts)) <= 0.82 * network.cost_of(network.graph)  # these times are MACs


def test_the_command_line(asked: Asked, sinf: Program, data: Path, weights: Path, tmp_path: Path) -> None:
    words = build_words(data, weights, tmp_path / "bundle")
    sinf(*words, "--time-in", "onnxruntime")
    assert asked == [("onnxruntime", "f32", 1, 1)]
    assert "of the time in onnxruntime here" in str(Bundle.load(tmp_path / "bundle").provenance)
    for change, said in (
        (("--time-precision", "int8"), "no time_in"),
        (("--time-batch", 8), "no time_in"),
        (("--time-in", "onnxruntime", "--weight-cost", 8), "weight_cost counts MACs"),
        (("--time-in", "torch-compile"), "timed one by one"),
        (("--time-in", "torch", "--time-precision", "int8"), "torch computes in"),
    ):
        assert said in sinf.refused(*words, *change)


def test_layers_are_timed_with_all_threads_unless_some_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert BuildConfig().timed_in is None
    assert BuildConfig(time_in="onnxruntime").timed_in == TimedIn("onnxruntime", "f32", 1, 7)
    assert BuildConfig(time_in="onnxruntime", threads=2).timed_in == TimedIn("onnxruntime", "f32", 1, 2)


def test_what_cannot_be_timed_is_refused() -> None:
    wrong: tuple[dict[str, Any], ...] = (
        {"time_in": "no engine"}, {"time_in": "torch", "time_precision": "int8"}, {"time_in": "torch-compile"},
        {"time_in": "torch", "time_batch": 0}, {"time_in": "torch", "threads": 0}, {"threads": 0},
    )  # fmt: skip
    for options in wrong:
        with pytest.raises(ConfigError):
            BuildConfig(**options)
