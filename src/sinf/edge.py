"""A split export where there is no torch: numpy and the engine's package are all that is needed.

from sinf import edge

model = edge.load("export")
images = model.normalise(pixels)     # (B, H, W, C) uint8 -> (B, C, H, W) float32
routed = model.route(images)         # logits, route, confidence, fell_back, tried
model.classes[routed.logits[0].argmax()]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sinf.engine.onnxruntime_engine import OnnxRuntimeEngine
from sinf.engine.openvino_engine import OpenVinoEngine
from sinf.engine.sessions import SessionEngine
from sinf.errors import BundleError
from sinf.files import sha256
from sinf.grouping import TailTimes
from sinf.routing import BASE, FeatureRouter

MANIFEST = "manifest.json"
FORMAT = 2
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}


class EdgeModel(FeatureRouter):
    """A split export as a classifier: normalised images (B, C, H, W) -> logits (B, classes), or ``route(images)``."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int) -> None:
        suffix = SUFFIXES[manifest["format"]]

        def source(part: str) -> Path:
            if part == BASE:
                raise BundleError("a split export has no base model", remedy="sinf bench compares with it")
            return folder / f"{part}{suffix}"

        preprocessing, thresholds = manifest["preprocessing"], manifest["thresholds"]
        kind = OnnxRuntimeEngine if manifest["format"] == "onnx" else OpenVinoEngine
        engine: SessionEngine = kind(source, threads)
        times = next((each for each in map(TailTimes.from_json, manifest["tails"]) if each.threads == threads), None)
        super().__init__(engine, tuple(preprocessing["size"]), thresholds["value"], thresholds["early"], times)
        self.classes: list[str] = manifest["classes"]
        self.clusters: dict[str, list[int]] = manifest["clusters"]
        self._mean = np.asarray(preprocessing["mean"], np.float32) * 255
        self._std = np.asarray(preprocessing["std"], np.float32) * 255

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """``(B, H, W, C)`` uint8, of the model's size, to what the model wants."""
        return ((pixels.astype(np.float32) - self._mean) / self._std).transpose(0, 3, 1, 2)


def load(folder: str | Path, *, threads: int = 1) -> EdgeModel:
    """Open a folder that ``sinf export --layout split`` wrote; its parts are loaded when first needed.

    Raises:
        BundleError: not such a folder, another format, or a file that is missing, damaged or changed.
        DependencyError: the package of its engine is missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise BundleError("a split export must have a manifest of sinf", got=folder, remedy="name the export's folder")
    if manifest["sinf_export"] != FORMAT:
        raise BundleError(f"this version of sinf reads export format {FORMAT}", got=manifest["sinf_export"])
    try:
        for name, digest in manifest["sha256"].items():
            if not (folder / name).is_file() or sha256(folder / name) != digest:
                raise BundleError(
                    "an export must be as it was written",
                    got=f"{name} in {folder} is missing, damaged or was changed",
                    remedy="copy or export it again",
                )
        return EdgeModel(folder, manifest, threads)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"the manifest in {folder} is incomplete", got=error, remedy="export it again") from error


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a split export, None where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "sinf_export" in manifest else None
