"""Exports in the precision of their engine, of bundles and of plain models; what they say of image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artefacts import small
from sinf import edge
from sinf.bundle.plain import PlainModel
from sinf.data.images import LabelledImages
from sinf.engine.engines import open_engine
from sinf.engine.network_engine import open_network
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import BundleError, ConfigError, DataError, VerificationError
from sinf.export.plain import export_network
from sinf.export.split import export_split
from sinf.load import from_pretrained
from sinf.pipelines.comparison import save
from sinf.pipelines.prune import Amount, PruneConfig, prune


def images_of(size: tuple[int, ...], count: int = 12) -> torch.Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(built: Path) -> SemanticModel:
    return SemanticModel.from_pretrained(built)


@pytest.fixture(scope="module")
def plain(tiny_images: LabelledImages, tmp_path_factory: pytest.TempPathFactory) -> PlainModel:
    folder = tmp_path_factory.mktemp("plain")
    config = PruneConfig(Amount(macs=0.8), "ranks", None, images=24)
    made = prune(small("vgg11", 0.125), tiny_images, config, folder / "work")
    save(made, folder / "plain", tiny_images.class_names, provenance={})
    found = from_pretrained(folder / "plain")
    assert isinstance(found, PlainModel)
    return found


@pytest.mark.parametrize("file_format", ["onnx", "openvino"])
def test_integers_are_those_that_the_engine_ran(model: SemanticModel, file_format: str, tmp_path: Path) -> None:
    size = model.bundle.spec.preprocessing.size
    ranges, x = images_of(size, 8), images_of(size).numpy()
    export_split(model, tmp_path / "out", file_format, precision="int8", ranges=ranges)
    running = open_engine(model, edge.ENGINES[file_format], precision="int8", calibration=ranges)
    export = edge.load(tmp_path / "out")
    assert (export.precision, export.classes) == ("int8", list(model.class_names))
    assert "No promise" in export.promise
    np.testing.assert_allclose(export(x), running(x), rtol=1e-4, atol=1e-4)
    plain = edge.load(tmp_path / "out").engine.run("front", x)[0]
    assert np.abs(plain - model.engine.run("front", x)[0].numpy()).max() > 1e-4  # of integers, not of floats


def test_a_precision_that_a_format_has_not_is_refused(model: SemanticModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bf16"):
        export_split(model, tmp_path / "out", "onnx", precision="bf16")
    with pytest.raises(ConfigError, match="calibration images"):
        export_split(model, tmp_path / "out", "onnx", precision="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("file_format", "precision"), [("onnx", "f32"), ("onnx", "int8"), ("openvino", "int8")])
def test_a_plain_model_is_a_folder_too(plain: PlainModel, file_format: str, precision: str, tmp_path: Path) -> None:
    size = plain.preprocessing.size
    ranges, x = images_of(size, 8), images_of(size).numpy()
    export_network(plain, tmp_path / "out", file_format, precision=precision, ranges=ranges, promise="kept")
    export = edge.load(tmp_path / "out")
    expected = open_network(plain.network, size, edge.ENGINES[file_format], precision=precision, calibration=ranges)
    np.testing.assert_allclose(export(x), expected(x), rtol=1e-4, atol=1e-4)
    assert (export.precision, export.promise, export.classes) == (precision, "kept", plain.classes)
    if precision == "f32":
        np.testing.assert_allclose(export(x), plain(torch.from_numpy(x)).detach(), rtol=1e-3, atol=1e-4)
    path = next((tmp_path / "out").glob("network.*"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="damaged"):
        edge.load(tmp_path / "out")


def test_what_is_written_answers_as_what_ran_before(model: SemanticModel, plain: PlainModel, tmp_path: Path) -> None:
    """optimize() hands over what it timed and tested: files that answer otherwise are not written."""
    size = plain.preprocessing.size
    ranges = images_of(size, 8)
    export_network(plain, tmp_path / "network", running=open_network(plain.network, size, "onnxruntime"))
    with pytest.raises(VerificationError, match="network"):
        export_network(plain, tmp_path / "other", running=lambda x: plain.network(x) + 1)
    engine = open_engine(model, "onnxruntime", precision="int8", calibration=ranges).engine
    export_split(model, tmp_path / "parts", precision="int8", ranges=ranges, running=engine)
    with pytest.raises(VerificationError):
        export_split(model, tmp_path / "others", precision="int8", ranges=ranges, running=model.engine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network", "parts"]


def test_an_export_predicts_image_files_as_the_model_does(model: SemanticModel, tmp_path: Path) -> None:
    export_split(model, tmp_path / "out")
    export, paths = edge.load(tmp_path / "out"), []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    np.testing.assert_allclose(export.preprocess(paths), model.preprocess(paths), rtol=1e-5, atol=1e-5)
    missing = tmp_path / "none.png"
    ours = export.predict([*paths, missing], top=2)
    for found, expected in zip(ours[:3], model.predict(paths, top=2), strict=True):
        assert found["classes"][0]["name"] == expected.classes[0]
        shares = [each["probability"] for each in found["classes"]]
        np.testing.assert_allclose(shares, expected.probabilities, rtol=1e-3)
        assert found["route"] == expected.details["route"]
        assert found["fell_back"] == expected.details["fell_back"]
    assert ours[3] == {"image": str(missing), "error": ours[3]["error"]}
    with Image.open(paths[0]) as picture:
        assert export.predict(picture)[0]["classes"][0]["name"] == ours[0]["classes"][0]["name"]
    with pytest.raises(ConfigError, match="top"):
        export.predict(paths, top=0)
    with pytest.raises(DataError, match="must hold images"):
        export.preprocess([])
