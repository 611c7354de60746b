"""``--memory`` of the verbs that run a model: batches shrink, answers do not change, what cannot fit is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from program import Program
from sinf.cli.room import fit_training
from sinf.data.images import LabelledImages, Preprocessing, load_images
from sinf.errors import ConfigError
from sinf.load import MODELS
from sinf.machine.memory import Activations
from sinf.models import BaseModel, ModelSpec, load_model
from sinf.training.train import TrainConfig, train

EACH = 10**8
SMALL, FITS = "1.5GB", 6  # images of EACH bytes, beside what is there before and what is left to allocators
TOO_SMALL = "800MB"


@pytest.fixture(autouse=True)
def heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image takes EACH bytes while it runs."""
    for user in ("sinf.cli.room", "sinf.routing.clustering"):
        monkeypatch.setattr(f"{user}.activations", lambda graph: Activations(EACH, EACH, 0, 0))


@pytest.fixture
def seen() -> Iterator[list[int]]:
    """How many images at once any network was given."""
    sizes: list[int] = []

    def note(module: nn.Module, given: tuple[object, ...]) -> None:
        if given and type(given[0]) is Tensor and given[0].shape[1:] == (3, 32, 32):  # an exporter's are others
            sizes.append(len(given[0]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield sizes
    hook.remove()


@pytest.fixture(params=sorted(MODELS))
def place(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.png").write_bytes(tiny.picture(number, (32, 32)))
    return folder


def said(sinf: Program, *words: object) -> str:
    """What a call that must succeed says of memory, which it does once."""
    code, _, err = sinf.call(*words)
    assert code == 0, err
    lines = [line for line in err.splitlines() if line.startswith("memory: ")]
    assert len(lines) == 1, err
    return lines[0]


def fits(sinf: Program, *words: object) -> str:
    """What a call says of memory that is let in, and ends before it works."""

    def stop() -> None:
        raise ConfigError("stopped")

    with sinf.monkeypatch.context() as patch:
        patch.setattr("sinf.cli.options.Steps", stop)
        code, _, err = sinf.call(*words)
    *lines, last = err.splitlines()
    assert (code, last) == (2, "error: stopped")
    said = [line for line in lines if line.startswith("memory: ")]
    assert len(said) == 1, err
    return said[0]


def refuses_until_enough(sinf: Program, *words: object, run: Callable[..., str] = fits) -> str:
    """What an error names is enough; the error is returned."""
    line = sinf.refused(*words, "--memory", TOO_SMALL)
    assert "must fit into memory" in line
    enough = re.search(r"--memory (\S+GB)", line)
    assert enough is not None
    run(sinf, *words, "--memory", enough[1])
    return line


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_eval(sinf: Program, kind: str, folders: dict[str, Path], data: Path, tmp_path: Path, seen: list[int]) -> None:
    words = ("eval", folders[kind], "--data", data, "--split", "test")
    assert "batches of 50" in said(sinf, *words, "--json", tmp_path / "whole.json")
    assert max(seen) == 50
    seen.clear()
    assert "batches of 6 in evaluation" in said(sinf, *words, "--json", tmp_path / "small.json", "--memory", SMALL)
    assert max(seen) == FITS
    whole, small = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "small"))
    assert whole.keys() == small.keys()
    assert small["top1"] == whole["top1"]
    assert small["macs"] == pytest.approx(whole["macs"])
    refuses_until_enough(sinf, *words)


@pytest.mark.parametrize(("verb", "step"), [("eval", "evaluation"), ("bench", "timing")])
def test_the_verbs_of_dynamic(sinf: Program, verb: str, step: str, folders: dict[str, Path], data: Path) -> None:
    """They are those without ``dynamic``, for bundles of one kind."""
    words = ("dynamic", verb, folders["dynamic"], "--data", data, "--split", "test")
    assert f"6 in {step}" in fits(sinf, *words, "--memory", SMALL)
    refuses_until_enough(sinf, *words)


def test_report(sinf: Program, place: Path, data: Path, tmp_path: Path, seen: list[int]) -> None:
    words = ("report", place, "--data", data, "--split", "test", "--out", tmp_path / "page.html")
    assert "batches of 6 in report" in said(sinf, *words, "--memory", SMALL)
    assert max(seen) == FITS
    refuses_until_enough(sinf, *words)


def test_eval_beside_a_base_model(
    sinf: Program, folders: dict[str, Path], weights: Path, data: Path, seen: list[int]
) -> None:
    words = ("eval", folders["static"], "--data", data, "--split", "test", "--base", "vgg11", "--base-weights", weights)
    assert "6 in evaluation" in said(sinf, *words, "--memory", SMALL)
    assert max(seen) == FITS


def test_predict(sinf: Program, place: Path, pictures: Path, tmp_path: Path, seen: list[int]) -> None:
    words = ("predict", place, pictures)
    assert "batches of 32" in said(sinf, *words, "--json", tmp_path / "whole.json")
    assert max(seen) == 20
    seen.clear()
    assert "batches of 6 in prediction" in said(sinf, *words, "--json", tmp_path / "small.json", "--memory", SMALL)
    assert max(seen) == FITS
    records = [json.loads((tmp_path / f"{name}.json").read_text())["predictions"] for name in ("whole", "small")]
    for one, other in zip(*records, strict=True):
        assert [c["name"] for c in one["classes"]] == [c["name"] for c in other["classes"]]
        for a, b in zip(one["classes"], other["classes"], strict=True):
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-5)
    assert "batches of 2" in fits(sinf, *words, "--batch", 2, "--memory", SMALL)
    refuses_until_enough(sinf, *words)


def test_bench(sinf: Program, place: Path, data: Path, tmp_path: Path, seen: list[int]) -> None:
    """Sizes that nobody named are made smaller, those that somebody did are not."""
    words = ("bench", "--no-stages", "--no-energy", place, "--data", data, "--split", "test", "--pairs", 2)
    assert "6 in timing" in said(sinf, *words, "--memory", SMALL, "--json", tmp_path / "bench.json")
    assert max(seen) == FITS
    assert [row["batch"] for row in json.loads((tmp_path / "bench.json").read_text())["latency"]] == [1, FITS]
    line = sinf.refused(*words, "--batch", 1, "--batch", 8, "--memory", SMALL)
    assert "timing in batches of 8 must fit into memory" in line
    assert f"--batch {FITS}" in line
    fits(sinf, *words, "--batch", FITS, "--memory", SMALL)
    refuses_until_enough(sinf, *words, "--batch", 1)


def test_bench_in_int8_runs_all_of_it_in_small_batches(
    sinf: Program, built_cascade: Path, data: Path, tmp_path: Path, seen: list[int]
) -> None:
    words = ("bench", built_cascade, "--data", data, "--split", "test", "--calibrate", "test", "--pairs", 2)
    words += ("--precision", "int8", "--engine", "onnxruntime", "--no-stages", "--no-energy")
    assert "calibration must fit" in sinf.refused(*words, "--memory", SMALL)
    said(sinf, *words, "--json", tmp_path / "bench.json", "--memory", "2.7GB")
    assert json.loads((tmp_path / "bench.json").read_text())["top1"]["images"] == 60
    assert 16 <= max(seen) < 18


def test_timed_images_fit_too(
    sinf: Program, folders: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinf.cli.room._FLOAT", 10**7 // (3 * 3 * 32 * 32))
    words = ("bench", folders["static"], "--data", data, "--split", "test", "--pairs", 2, "--batch", 1)
    found = re.search(r"batches of (\d+) in timed images", said(sinf, *words, "--memory", SMALL))
    assert found is not None
    assert 50 <= int(found[1]) <= 55


def test_optimize(sinf: Program, weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that choose and test come in batches that fit, which is said before it begins."""
    batches: list[tuple[int, int]] = []

    def stop(base: object, scoring: object, calibration: LabelledImages, *rest: object, **options: Any) -> None:
        batches.append((calibration.batch, options["selection"].batch))
        raise ConfigError("stopped")

    monkeypatch.setattr("sinf.pipelines.optimize.optimize", stop)
    words = ("optimize", "vgg11", "--weights", weights, "--data", data, "--score", "train", "--calibrate", "test")
    words += ("--select", "train[:30]", "--out", tmp_path / "fast", "--memory")
    assert "batches of 50" in sinf.call(*words, "8GB")[2]
    assert "batches of 5 in answers" in sinf.call(*words, SMALL)[2]
    assert batches == [(50, 50), (FITS - 1, FITS - 1)]  # beside networks that stay open
    assert "must fit into memory" in sinf.refused(*words, TOO_SMALL)


@pytest.mark.parametrize("labels", [True, False])
def test_clusters(sinf: Program, weights: Path, data: Path, tmp_path: Path, seen: list[int], labels: bool) -> None:
    words = ("clusters", "vgg11", "--weights", weights, "--data", data, "--split", "train", "--check", "test")
    words += () if labels else ("--no-labels",)
    assert "batches of 50" in said(sinf, *words, "--json", tmp_path / "whole.json")
    assert max(seen) == 50
    seen.clear()
    assert "6 in classes" in said(sinf, *words, "--json", tmp_path / "small.json", "--memory", SMALL)
    records = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "small")]
    assert records[0]["clusters"] == records[1]["clusters"]
    refuses_until_enough(sinf, *words, run=said)  # it is known after the first step


def test_train_refuses_a_batch_that_does_not_fit(sinf: Program, data: Path, tmp_path: Path, seen: list[int]) -> None:
    """It is part of the recipe; only the passes over the validation images shrink."""
    words = ("train", "vgg11", "--width", 0.125, "--data", data, "--validation", "test", "--epochs", 1)
    line = sinf.refused(*words, "--out", tmp_path / "refused", "--batch", 30, "--memory", SMALL)
    assert "a training step must fit into memory" in line
    assert "30 images at once" in line
    assert f"--batch {FITS}" in line
    assert not (tmp_path / "refused" / "model.safetensors").exists()
    seen.clear()
    small = (*words, "--out", tmp_path / "small", "--batch", FITS)
    assert "6 in validation" in said(sinf, *small, "--memory", SMALL)
    assert max(seen) == FITS
    said(sinf, *words, "--out", tmp_path / "whole", "--batch", FITS)
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "whole")]
    assert written[0] == written[1]
    assert "--batch" not in sinf.refused(*small, "--memory", TOO_SMALL)


def test_a_model_that_cannot_be_traced_can_be_trained(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Strange(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if bool(x.sum() > 0) else -x

    images, feed = load_images(data, "train"), Preprocessing((3, 32, 32), (0.5,) * 3, (0.25,) * 3)
    model = BaseModel(Strange(), ModelSpec("tests:Strange", 6, feed))
    fit_training(8 * 10**9, model, images, None, batch=64, on_cpu=True)
    assert "not known" in capsys.readouterr().err
    assert images.cache_bytes == 10**9


def test_training_on_images_that_are_not_kept(data: Path, tmp_path: Path) -> None:
    """Decoded again where they do not fit: the weights are the same."""
    spec, found = load_model("vgg11", classes=6, options={"width": 0.125}).spec, []
    for cache in (1, 1 << 30):
        images = load_images(data, "train")
        images.limit(cache, 50)
        found.append(train(spec, images, tmp_path / str(cache), TrainConfig(epochs=1, batch=40)).module.state_dict())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name])


def test_answers_of_images_without_labels(
    sinf: Program, weights: Path, pictures: Path, tmp_path: Path, seen: list[int]
) -> None:
    words = ("clusters", "vgg11", "--weights", weights, "--data", pictures, "--split", "train", "--check", "")
    _, _, err = sinf.call(*words, "--memory", SMALL)
    assert "6 in answers" in err
    assert max(seen) == FITS


@pytest.mark.parametrize("verb", ["eval", "bench"])
def test_what_is_no_size(sinf: Program, verb: str, folders: dict[str, Path], data: Path) -> None:
    words = (verb, folders["static"], "--data", data, "--split", "test", "--memory", "much")
    assert "8GB" in sinf.refused(*words)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_export(sinf: Program, kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """What is compared does not shrink: it fits, or the error says what would be enough."""
    words = ("export", folders[kind], tmp_path / "out.onnx", "--layout", "single")
    assert "export must fit into memory" in sinf.refused(*words, "--memory", "1GB")
    assert not (tmp_path / "out.onnx").exists()
    refuses_until_enough(sinf, *words, run=said)
    assert (tmp_path / "out.onnx").exists()


def test_export_in_int8(sinf: Program, folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """The images that set its ranges run sixteen at once."""
    words = ("export", folders["static"], tmp_path / "out", "--precision", "int8", "--data", data)
    assert "calibration must fit into memory" in sinf.refused(*words, "--memory", "2GB")
    assert "about" in said(sinf, *words)
    assert "int8" in (tmp_path / "out" / "manifest.json").read_text()


def test_tune(sinf: Program, folders: dict[str, Path], tmp_path: Path, seen: list[int]) -> None:
    """Timed are the sizes that fit, two at least."""
    shutil.copytree(folders["semantic"], tmp_path / "bundle")
    words = ("tune", tmp_path / "bundle", "--turns", 1)
    assert "batches of 6 in tails" in said(sinf, *words, "--memory", SMALL)
    assert max(seen) == 4
    (row,) = json.loads((tmp_path / "bundle" / "times.json").read_text())["tails"]
    assert row["batches"] == [1, 2, 4]
    refuses_until_enough(sinf, *words)
