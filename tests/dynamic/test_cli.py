"""``sinf dynamic`` and the verbs that take dynamic bundles too, as a person meets them."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from program import Program
from sinf.cli import main
from sinf.measure import delivery
from sinf.models import load_model
from times import taking
from tiny import picture


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet20.safetensors"
    save_file(load_model("resnet20", classes=6, options={"width": 0.5}).module.state_dict(), path)
    return path


OPTIONS = ("--keep-anyway", "--epochs", 2, "--batch", 40, "--macs", 0.8, "--updates", 3, "--learning-rate", 0.01)


@pytest.fixture(scope="session")
def trained_once(weights: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and beside it the checkpoint of its training."""
    out = tmp_path_factory.mktemp("dynamic") / "bundle"
    words = ("dynamic", "train", "resnet20", "--weights", weights, "--data", data, "--out", out, *OPTIONS)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sys.argv", ["sinf", *map(str, words)])
        with contextlib.suppress(SystemExit):
            main()
    return out


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_once.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "bundle"


def test_from_weights_to_numbers(sinf: Program, trained: Path, data: Path, tmp_path: Path) -> None:
    """The same verbs, with and without the word dynamic."""
    for number, verb in enumerate((("dynamic", "eval"), ("eval",))):
        shown = sinf(*verb, trained, "--data", data, "--split", "test", "--json", tmp_path / f"{number}.json")
        assert "95th percentile" in shown
        assert "layer1.0.conv1" in shown
    results = [json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1)]
    assert results[0] == results[1]
    assert results[0]["macs"]["mean"] < results[0]["base_macs"]


def test_bench_and_export(sinf: Program, trained: Path, data: Path, tmp_path: Path) -> None:
    bench = ("--data", data, "--split", "test", "--pairs", 2, "--batch", 1)
    assert "time saved" in sinf("bench", trained, *bench)
    assert "onnxruntime" in sinf("dynamic", "bench", trained, *bench, "--engine", "onnxruntime")
    assert "answers as the bundle" in sinf("export", trained, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size > 1000


def test_predict(sinf: Program, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1, (32, 32)))
    (tmp_path / "b.png").write_bytes(picture(2, (40, 32)))
    shown = sinf("predict", trained, tmp_path / "a.png", tmp_path / "b.png", "--json", tmp_path / "p.json")
    assert "of the base model" in shown
    first, second = json.loads((tmp_path / "p.json").read_text())["predictions"]
    assert 0 < first["macs_share"] <= 1.1
    assert first["classes"] != second["classes"]


def test_the_same_command_resumes(sinf: Program, weights: Path, data: Path, trained: Path) -> None:
    before = json.loads((trained / "config.json").read_text())
    (trained / "README.md").unlink()
    words = ("dynamic", "train", "resnet20", "--weights", weights, "--data", data, "--out", trained, *OPTIONS)
    assert sinf.call(*words)[0] == 0  # nothing is left to do
    assert json.loads((trained / "config.json").read_text()) == before


def test_what_takes_no_less_time_is_not_written(
    sinf: Program, weights: Path, data: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training stays: what was refused is written later, and is not trained again."""
    shutil.rmtree(trained)
    words = ("dynamic", "train", "resnet20", "--weights", weights, "--data", data, "--out", trained, *OPTIONS[1:])
    monkeypatch.setattr(delivery, "interleaved", taking(lambda name: 20.0))  # milliseconds, where the base takes ten
    code, _, err = sinf.call(*words)
    assert code == 3
    assert "100.0 % slower at batch 1" in err
    assert "--keep-anyway" in err
    assert not trained.exists()
    assert sinf.call(*words, "--keep-anyway")[0] == 0
    shutil.rmtree(trained)
    monkeypatch.setattr(delivery, "interleaved", taking(lambda name: 5.0))
    code, _, err = sinf.call(*words)
    assert code == 0
    assert "50.0 % faster at batch 1" in err
    assert (trained / "config.json").exists()


def test_the_base_model_can_teach(sinf: Program, weights: Path, data: Path, tmp_path: Path) -> None:
    """By options or by a run file; the estimate and the bundle say so."""
    words = ("dynamic", "train", "resnet20", "--weights", weights, "--data", data, "--epochs", 1, "--batch", 40)
    words += ("--keep-anyway",)
    (tmp_path / "run.json").write_text(json.dumps({"teacher_weight": 0.5, "temperature": 2.0}))
    given = {"options": ("--teacher-weight", 0.5, "--temperature", 2), "file": ("--config", tmp_path / "run.json")}
    hashes = []
    for name, more in given.items():
        sinf(*words, "--macs", 0.8, "--out", tmp_path / name, *more)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["provenance"]["distillation"] == "weight 0.5, temperature 2"
        hashes.append(config["sha256"])
    assert hashes[0] == hashes[1]
    assert "in 0..1" in sinf.refused(*words, "--out", tmp_path / "other", "--teacher-weight", 1.5)
    assert "no --teacher-weight" in sinf.refused(*words, "--out", tmp_path / "other", "--temperature", 2)


def test_bad_input_is_one_line(sinf: Program, weights: Path, data: Path, trained: Path, tmp_path: Path) -> None:
    start = ("dynamic", "train", "resnet20", "--weights", weights, "--data", data, "--out", tmp_path / "other")
    start += ("--batch", 40)
    assert "one target" in sinf.refused(*start, "--macs", 0.5, "--channels", 0.5)
    assert "summed" in sinf.refused(*start, "--site", "conv1")
    assert "take at least" in sinf.refused(*start, "--macs", 0.01)
    assert "method" in sinf.refused(*start, "--method", "magic")
    assert "training run" in sinf.refused(*start[:-3], trained, *OPTIONS[:-1], 0.02)
    assert "no fallback" in sinf.refused("eval", trained, "--data", data, "--threshold", 0.5)
    assert "f32" in sinf.refused("bench", trained, "--data", data, "--precision", "bf16")
    assert "engine" in sinf.refused("bench", trained, "--data", data, "--engine", "openvino")
    assert "as ONNX" in sinf.refused("export", trained, tmp_path / "x", "--format", "openvino")
    assert "batch" in sinf.refused("bench", trained, "--data", data, "--split", "test", "--batch", 1000)


def test_a_folder_in_use_is_refused_before_training(sinf: Program, weights: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    words = ("dynamic", "train", "resnet20", "--weights", weights, "--data", data, "--out", tmp_path / "mine")
    assert "only a bundle" in sinf.refused(*words)
    assert not (tmp_path / "mine.train").exists()
