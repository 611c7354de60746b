"""Worse images, and what is said of a delivered network that meets them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import table

import corruption
from corruption import CORRUPTIONS, corrupted
from sinf.bundle.plain import PlainModel
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError
from sinf.export.plain import export_network
from sinf.export.split import export_split
from sinf.load import from_pretrained


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_strength_changes_more(name: str, pixels: np.ndarray) -> None:
    assert corrupted(pixels, name, 0) is pixels
    before = pixels.astype(float)
    changed = [float(np.abs(corrupted(pixels, name, strength) - before).mean()) for strength in range(1, 6)]
    assert changed[0] > 0
    assert changed == sorted(changed)
    assert corrupted(pixels, name, 5).dtype == np.uint8


def test_each_image_is_changed_by_itself(pixels: np.ndarray) -> None:
    """Blur stays within an image and a channel, and contrast keeps every channel's mean."""
    one = np.zeros_like(pixels)
    one[2, 16, 16, 1] = 255
    blurred = corrupted(one, "blur", 5)
    assert set(np.argwhere(blurred)[:, 0]) == {2}
    assert set(np.argwhere(blurred)[:, 3]) == {1}
    means = corrupted(pixels, "contrast", 5).mean((1, 2))
    assert means == pytest.approx(pixels.mean((1, 2)), abs=0.5)
    assert corrupted(pixels, "contrast", 5).std() == pytest.approx(0.15 * pixels.std(), rel=0.05)


def test_delivered_networks_are_measured(
    built_cascade: Path, folders: dict[str, Path], weights: Path, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A cascade and a plain network, each beside the base model on the same images; only the cascade defers."""
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    delivered = tmp_path / "delivered"
    export_split(SemanticModel.from_pretrained(built_cascade), delivered / "a" / "onnxruntime")
    plain = from_pretrained(folders["static"])
    assert isinstance(plain, PlainModel)
    export_network(plain, delivered / "b" / "onnxruntime", "onnx")
    load_images = corruption.load_images
    monkeypatch.setattr(corruption, "load_images", lambda folder, split: load_images(folder, "test"))
    corruption.main("vgg11", weights, data, delivered, strengths=[5], count=12)
    with (tmp_path / "corruption_vgg11.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["delivered"], row["kind"], row["corruption"], row["strength"]) for row in rows] == [
        (name, kind, *what) for what in (("as they are", "0"), *((each, "5") for each in CORRUPTIONS))
        for name, kind in (("a", "cascade"), ("b", "static"))
    ]  # fmt: skip
    assert all(0 <= float(row["deferred"]) <= 1 for row in rows if row["kind"] == "cascade")
    assert all(row["deferred"] == "" for row in rows if row["kind"] == "static")
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["base_top1"] == other["base_top1"]


def test_nothing_delivered_is_refused(weights: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must have delivered something"):
        corruption.main("vgg11", weights, data, tmp_path)
