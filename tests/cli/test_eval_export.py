"""``sinf eval`` of an export: what was delivered, in its engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from program import Program
from sinf import edge
from sinf.data.images import LabelledImages, load_images
from sinf.engine.torch_engine import SemanticModel
from sinf.export.plain import export_network
from sinf.export.split import export_split
from sinf.load import from_pretrained


@pytest.fixture
def delivered(built_cascade: Path, tmp_path: Path) -> Path:
    """A cascade with its export beside it, as ``sinf optimize`` writes them."""
    folder = tmp_path / "fast"
    shutil.copytree(built_cascade, folder)
    export_split(SemanticModel.from_pretrained(built_cascade), folder / "onnxruntime")
    return folder


@pytest.fixture
def test_images(data: Path) -> LabelledImages:
    return load_images(data, "test")


def test_a_cascade(
    sinf: Program, delivered: Path, data: Path, weights: Path, test_images: LabelledImages, tmp_path: Path
) -> None:
    """Top-1, the share of the full tail and the loss against the base model are those of its answers."""
    export, record = delivered / "onnxruntime", tmp_path / "eval.json"
    words = ("eval", export, "--data", data, "--split", "test", "--base", "vgg11", "--base-weights", weights)
    text = sinf(*words, "--json", record)
    model = edge.load(export)
    assert isinstance(model, edge.EdgeModel)
    routed = model.route(test_images.inputs(model.preprocessing)[:].numpy())
    right = float((torch.from_numpy(routed.logits).argmax(1) == test_images.labels).double().mean())
    said = json.loads(record.read_text())
    assert said["top1"] == pytest.approx(right)
    assert said["fallback"] == pytest.approx(float(routed.fell_back.mean()))
    assert (said["engine"], said["precision"], said["images"]) == ("onnxruntime", "f32", len(test_images))
    assert said["loss"]["points"] == pytest.approx(100 * (said["loss"]["base_top1"] - right))
    for line in ("points lost (95 %)", "answered by the full tail", model.promise[:30]):
        assert line in text


def test_one_network(sinf: Program, folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Without a base model there is no loss, and one network has no full tail."""
    model = from_pretrained(folders["static"])
    export_network(model, tmp_path / "openvino", "openvino")  # type: ignore[arg-type]
    words = ("eval", tmp_path / "openvino", "--data", data, "--split", "test", "--json", tmp_path / "eval.json")
    text = sinf(*words)
    said = json.loads((tmp_path / "eval.json").read_text())
    assert (said["engine"], said["fallback"], said["loss"]) == ("openvino", None, None)
    assert "top-1" in text
    assert "full tail" not in text


def test_what_is_in_its_engine_is_named(sinf: Program, delivered: Path, data: Path) -> None:
    words = ("--data", data, "--split", "test")
    assert f"sinf eval {delivered / 'onnxruntime'}" in "".join(sinf("eval", delivered, *words).split("\n"))
    shutil.rmtree(delivered / "onnxruntime")
    assert "sinf eval" not in sinf("eval", delivered, *words)


def test_refusals(sinf: Program, delivered: Path, data: Path) -> None:
    export = delivered / "onnxruntime"
    assert "its own threshold" in sinf.refused("eval", export, "--data", data, "--split", "test", "--threshold", 0.5)
    (export / "manifest.json").write_text('{"sinf_export": 1}')
    assert "export it again" in sinf.refused("eval", export, "--data", data, "--split", "test")
