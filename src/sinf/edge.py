"""A split export where there is no torch: numpy, pydantic, lazy_loader and the package of the engine are all it needs.

from sinf import edge

model = edge.load("export")
images = model.normalise(pixels)     # (B, H, W, C) uint8 -> (B, C, H, W) float32
routed = model.route(images)         # logits, route, confidence, fell_back, subgraph_ran
model.classes[routed.logits[0].argmax()]
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import numpy as np

from sinf.bundle.records import ClassNames, ClusterList, ThresholdValue, TimesList, Weight
from sinf.data.record import PreprocessingRecord
from sinf.engine.onnxruntime_engine import OnnxRuntimeEngine
from sinf.engine.openvino_engine import OpenVinoEngine
from sinf.engine.sessions import SessionEngine
from sinf.errors import BundleError
from sinf.routing.grouping import TailTimes
from sinf.routing.router import BASE, FALLBACK, FRONT, FeatureRouter, part_name
from sinf.storage.files import sha256
from sinf.storage.schema import Digest, Name, Record, Share, parse_file, shortened, validated
from sinf.storage.seal import unsealed

MANIFEST = "manifest.json"
FORMAT = 3
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}
_REMEDY = "copy or export it again"


class Thresholds(Record):
    """Confidence below which an input falls back: once its subgraph has run, and before."""

    value: ThresholdValue
    early: Share


class Manifest(Record):
    """What ``manifest.json`` of a split export holds."""

    sinf_export: Literal[3]
    model: Name
    classes: ClassNames
    clusters: ClusterList
    preprocessing: PreprocessingRecord
    deferral: dict[Name, Weight]
    thresholds: Thresholds
    format: Literal["onnx", "openvino"]
    tails: TimesList
    sha256: dict[Name, Digest]


class EdgeModel(FeatureRouter):
    """A split export as a classifier: normalised images (B, C, H, W) -> logits (B, classes), or ``route(images)``."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int) -> None:
        suffix = SUFFIXES[manifest.format]

        def source(part: str) -> Path:
            if part == BASE:
                raise BundleError("a split export has no base model", remedy="sinf bench compares with it")
            return folder / f"{part}{suffix}"

        preprocessing, thresholds = manifest.preprocessing, manifest.thresholds
        kind = OnnxRuntimeEngine if manifest.format == "onnx" else OpenVinoEngine
        engine: SessionEngine = kind(source, threads)
        tails = cast(tuple[TailTimes, ...], manifest.tails)
        times = next((each for each in tails if each.threads == threads), None)
        super().__init__(engine, preprocessing.size, thresholds.value, thresholds.early, times)
        self.classes: list[str] = list(manifest.classes)
        self.clusters: dict[str, list[int]] = {each.name: list(each.classes) for each in manifest.clusters}
        self._mean = np.asarray(preprocessing.mean, np.float32) * 255
        self._std = np.asarray(preprocessing.std, np.float32) * 255

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """``(B, H, W, C)`` uint8, of the model's size, to what the model wants."""
        return ((pixels.astype(np.float32) - self._mean) / self._std).transpose(0, 3, 1, 2)


def load(folder: str | Path, *, threads: int = 1, key: bytes | None = None) -> EdgeModel:
    """Open a folder that ``sinf export --layout split`` wrote; its parts are loaded when first needed. With a ``key``,
    what is not signed with it is refused.

    Raises:
        BundleError: not such a folder, another format, or a file that is missing, damaged or changed.
        DependencyError: the package of its engine is missing.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not is_export(folder):
        raise BundleError("a split export must have a manifest of sinf", got=folder, remedy="name the export's folder")
    record = parse_file(path, BundleError, remedy=_REMEDY)
    if record["sinf_export"] != FORMAT:
        got = shortened(repr(record["sinf_export"]), 80)
        raise BundleError(f"this version of sinf reads export format {FORMAT}", got=got, remedy="export it again")
    content, _ = unsealed(record, BundleError, str(path), key)
    manifest = validated(content, Manifest, BundleError, str(path), remedy=_REMEDY)
    if len(manifest.classes) != sum(len(cluster.classes) for cluster in manifest.clusters):
        raise BundleError("clusters must cover all classes", got=path, remedy=_REMEDY)
    endings = (".xml", ".bin") if manifest.format == "openvino" else (".onnx",)
    names = {f"{part}{ending}" for part in part_names(len(manifest.clusters)) for ending in endings}
    if manifest.sha256.keys() != names:
        got = ", ".join(sorted(manifest.sha256.keys() ^ names))
        raise BundleError("a manifest must list all parts and no other file", got=shortened(got), remedy=_REMEDY)
    for name in sorted(names):
        if not (folder / name).is_file() or sha256(folder / name) != manifest.sha256[name]:
            raise BundleError(
                "an export must be as it was written",
                got=f"{name} in {folder} is missing, damaged or was changed",
                remedy=_REMEDY,
            )
    return EdgeModel(folder, manifest, threads)


def part_names(clusters: int) -> list[str]:
    """The parts of an export."""
    return [FRONT, *(part_name(cluster) for cluster in range(clusters)), FALLBACK]


def is_export(folder: Path) -> bool:
    """Whether there is an export, split or a page, of any format and state."""
    try:
        manifest = parse_file(folder / MANIFEST, BundleError)
    except BundleError:
        return False
    return isinstance(manifest, dict) and "sinf_export" in manifest
