"""A split export and the edge runtime: same answers with and without torch, refusals, nothing half written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sealed import rewrite
from sinf import edge
from sinf.bundle.semantic import Bundle
from sinf.engine.runtime import Setting
from sinf.engine.torch_engine import SemanticModel, TorchEngine
from sinf.errors import BundleError, VerificationError
from sinf.export import split
from sinf.export.split import export_split

SOURCES = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def model(built: Path) -> SemanticModel:
    return SemanticModel.from_pretrained(built)


@pytest.fixture(scope="module")
def exported(model: SemanticModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "split"
    export_split(model, folder)
    return folder


@pytest.fixture(scope="module")
def of_either(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a bundle of removed channels, or of one by ranks."""
    folder = tmp_path_factory.mktemp("exports") / "split"
    export_split(SemanticModel(bundle), folder)
    return folder


@pytest.mark.parametrize("threshold", [None, 0.0, 2.0])
def test_the_edge_runtime_answers_as_the_bundle(
    bundle: Bundle, of_either: Path, noise: torch.Tensor, threshold: float | None
) -> None:
    model, light = SemanticModel(bundle), edge.load(of_either)
    if threshold is not None:
        model.threshold = light.threshold = threshold
    ours, expected = light.route(noise.numpy()), model.route(noise)
    assert set(expected.route.tolist()) == {0, 1, 2}
    if threshold is not None:  # all subgraphs answer, or none
        assert set(expected.fell_back.tolist()) == {threshold > 1}
    for name in ("route", "subgraph_ran", "fell_back"):
        assert getattr(ours, name).tolist() == getattr(expected, name).tolist(), name
    np.testing.assert_allclose(ours.logits, expected.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.confidence, expected.confidence, rtol=1e-4, atol=1e-4)


def test_a_cascade_is_two_files(built_cascade: Path, noise: torch.Tensor, tmp_path: Path) -> None:
    model = SemanticModel.from_pretrained(built_cascade)
    export_split(model, tmp_path / "split")
    assert {path.name for path in (tmp_path / "split").glob("*.onnx")} == {"first.onnx", "full_tail.onnx"}
    light, x = edge.load(tmp_path / "split"), noise
    model.threshold = light.threshold = float(model.route(x).confidence.median()) + 1e-4
    ours, expected = light.route(x.numpy()), model.route(x)
    assert 0 < int(expected.fell_back.sum()) < len(x)
    for name, theirs in expected._asdict().items():
        np.testing.assert_allclose(getattr(ours, name), theirs, rtol=1e-4, atol=1e-4, err_msg=name)


def test_without_torch(model: SemanticModel, exported: Path, tmp_path: Path) -> None:
    """In an interpreter in which torch, and all that the edge runtime promises to do without, cannot be imported."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    code = f"""
import sys
for name in ("torch", "onnx", "onnxscript", "openvino", "safetensors", "datasets", "PIL"):
    sys.modules[name] = None
import time
start = time.process_time()
import numpy as np
from sinf import edge
seconds = time.process_time() - start
model = edge.load({str(exported)!r})
routed = model.route(model.normalise(np.load({str(tmp_path / "pixels.npy")!r})))
np.savez({str(tmp_path / "out.npz")!r}, seconds=seconds, **routed._asdict())
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    ours = np.load(tmp_path / "out.npz")
    x = model.bundle.spec.preprocessing.normalise(torch.from_numpy(pixels))
    for name, expected in model.route(x)._asdict().items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-4, atol=1e-4)
    assert ours["seconds"] < 2.0  # of the processor; a fifth of that is usual


def test_the_manifest_says_what_another_program_needs(bundle: Bundle, of_either: Path) -> None:
    model = SemanticModel(bundle)
    manifest = json.loads((of_either / edge.MANIFEST).read_text())
    assert manifest["classes"] == list(model.bundle.class_names)
    assert manifest["thresholds"] == {"value": model.threshold, "early": model.feature_router.early_threshold}
    assert manifest["deferral"]["energy"] == model.bundle.deferral.energy
    clusters = model.bundle.clusters
    assert [each["name"] for each in manifest["clusters"]] == list(clusters.names)
    assert [tuple(each["classes"]) for each in manifest["clusters"]] == list(clusters.members)
    assert set(manifest["sha256"]) == {path.name for path in of_either.iterdir()} - {edge.MANIFEST}


def test_graphs_are_plain_and_hold_no_paths(of_either: Path) -> None:
    paths = list(of_either.glob("*.onnx"))
    assert {path.stem for path in paths} == {"front", "full_tail", "cluster000", "cluster001", "cluster002"}
    for path in paths:
        graph = onnx.load(path)
        assert {node.domain for node in graph.graph.node} == {""}
        assert b"/site-packages/" not in path.read_bytes()


def test_openvino_parts_answer_as_the_bundle(bundle: Bundle, noise: torch.Tensor, tmp_path: Path) -> None:
    model, x = SemanticModel(bundle), noise[:5]
    export_split(model, tmp_path / "ir", "openvino")
    assert (tmp_path / "ir" / "front.xml").is_file()
    np.testing.assert_allclose(edge.load(tmp_path / "ir")(x.numpy()), model(x), rtol=1e-4, atol=1e-4)


def test_a_part_that_answers_otherwise_is_not_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SemanticModel(bundle)
    right = split.part_graphs

    def wrong(engine: TorchEngine, setting: Setting) -> Callable[[str], onnx.ModelProto]:
        return lambda part: changed(right(engine, setting)(part), part)

    def changed(graph: onnx.ModelProto, part: str) -> onnx.ModelProto:
        if part == "cluster001":
            weight = next(t for t in graph.graph.initializer if t.name.endswith("classifier.weight"))
            values = 1.1 * onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return graph

    monkeypatch.setattr(split, "part_graphs", wrong)
    with pytest.raises(VerificationError, match="cluster001"):
        export_split(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_an_export_is_replaced(model: SemanticModel, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="only an export"):
        export_split(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    shutil.copytree(exported, tmp_path / "again")
    (tmp_path / "again" / "stale.onnx").write_text("")
    export_split(model, tmp_path / "again")
    assert not (tmp_path / "again" / "stale.onnx").exists()


@pytest.mark.parametrize("harm", ["edit", "remove"])
def test_a_damaged_export_is_refused_by_name(exported: Path, tmp_path: Path, harm: str) -> None:
    shutil.copytree(exported, tmp_path / "split")
    path = tmp_path / "split" / "cluster001.onnx"
    path.unlink() if harm == "remove" else path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"cluster001\.onnx"):
        edge.load(tmp_path / "split")


def test_foreign_folders_and_manifests_are_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="manifest"):
        edge.load(tmp_path)
    shutil.copytree(exported, tmp_path / "split")
    for change, says in (
        ({"sinf_export": 99}, "99"),
        ({"sinf_export": 5}, r"export format 6 \(got 5\): export it again"),
        ({"format": "tflite"}, "format"),
        ({"thresholds": None}, "thresholds"),
        ({"sha256": None}, "sha256"),
        ({"sha256": {}}, "all parts"),
        ({"sha256": {"../manifest.json": "0" * 64}}, "all parts"),
    ):
        shutil.copy(exported / edge.MANIFEST, tmp_path / "split" / edge.MANIFEST)
        rewrite(tmp_path / "split" / edge.MANIFEST, change)
        with pytest.raises(BundleError, match=says):
            edge.load(tmp_path / "split")


def test_there_is_no_base_model_in_it(exported: Path, noise: torch.Tensor) -> None:
    with pytest.raises(BundleError, match="no base model"):
        edge.load(exported).base(noise.numpy())
