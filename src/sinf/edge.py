"""An export where there is no torch: numpy, pydantic, lazy_loader and the package of the engine are all it needs.

from sinf import edge

model = edge.load("fast/onnxruntime")   # what sinf optimize or sinf export --layout split wrote
model.predict(["cat.jpg"])              # needs Pillow
images = model.normalise(pixels)        # (B, H, W, C) uint8 -> (B, C, H, W) float32
logits = model(images)                  # (B, classes)
routed = model.route(images)            # of a bundle: logits, route, confidence, fell_back, subgraph_ran
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from sinf.bundle.records import ClusterList, ThresholdValue, TimesList, Weight
from sinf.data.record import PreprocessingRecord
from sinf.engine.onnxruntime_engine import OnnxRuntimeEngine
from sinf.engine.openvino_engine import OpenVinoEngine
from sinf.engine.sessions import SessionEngine
from sinf.errors import BundleError, ConfigError, DataError
from sinf.routing.grouping import TailTimes
from sinf.routing.router import BASE, FIRST, FRONT, FULL_TAIL, FeatureRouter, part_name
from sinf.storage.config import ClassNames
from sinf.storage.files import sha256
from sinf.storage.schema import Digest, Name, Record, Share, Text, parse_file, shortened, validated
from sinf.storage.seal import unsealed

if TYPE_CHECKING:
    from PIL.Image import Image

    from sinf.data.preprocessing import Preprocessing

    Picture = str | Path | Image

MANIFEST = "manifest.json"
FORMAT = 6
NETWORK = "network"  # the one part of a plain network
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}
_REMEDY = "copy or export it again"


class Thresholds(Record):
    """Confidence below which an input falls back: once its subgraph has run, and before."""

    value: ThresholdValue
    early: Share


class Manifest(Record):
    """What ``manifest.json`` of every export holds; ``promise`` is what is promised of its loss, in words."""

    sinf_export: Literal[6]
    model: Name
    classes: ClassNames
    preprocessing: PreprocessingRecord
    format: Literal["onnx", "openvino"]
    precision: Literal["f32", "bf16", "int8"]
    promise: Text
    sha256: dict[Name, Digest]

    @property
    def parts(self) -> list[str]:
        """The parts that its files hold."""
        return [NETWORK]


class NetworkManifest(Manifest):
    """Of one network for all inputs."""

    kind: Literal["network"]


class RouterManifest(Manifest):
    """Of a bundle, whose parts the feature router runs."""

    kind: Literal["router"]
    clusters: ClusterList
    deferral: dict[Name, Weight]
    thresholds: Thresholds
    tails: TimesList

    @property
    def parts(self) -> list[str]:
        return part_names(len(self.clusters))


class _Export:
    """What every export offers beside its logits."""

    def __init__(self, manifest: Manifest) -> None:
        self.classes: list[str] = list(manifest.classes)
        self.runtime, self.precision, self.promise = ENGINES[manifest.format], manifest.precision, manifest.promise
        self._fed = manifest.preprocessing
        self._mean = np.asarray(self._fed.mean, np.float32) * 255
        self._std = np.asarray(self._fed.std, np.float32) * 255

    @property
    def preprocessing(self) -> Preprocessing:
        """How image files become what the model reads."""
        from sinf.data.preprocessing import Preprocessing  # needs Pillow

        return Preprocessing(**self._fed.model_dump())

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """``(B, H, W, C)`` uint8, of the model's size, to what the model wants."""
        return ((pixels.astype(np.float32) - self._mean) / self._std).transpose(0, 3, 1, 2)

    def preprocess(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """Image files, or images of Pillow, to what the model reads: ``(B, C, H, W)`` float32.

        Raises:
            DataError: an image is not there or cannot be read, or there is none.
        """
        pictures = _several(images)
        if not pictures:
            raise DataError("a batch must hold images", got="none", remedy="give paths, or images of Pillow")
        return self.normalise(np.stack([self._pixels(picture) for picture in pictures]))

    def predict(self, images: Picture | Iterable[Picture], *, top: int = 5) -> list[dict[str, Any]]:
        """The ``top`` most likely classes of image files, or images of Pillow, one after the other: ``image``,
        ``classes`` (name and probability, best first), and of a bundle ``route``, ``confidence``, ``fell_back``. An
        image that cannot be read has an ``error`` instead.

        Raises:
            ConfigError: ``top`` is less than 1.
        """
        if top < 1:
            raise ConfigError("top must be at least 1", got=top, remedy="leave it out")
        predictions: list[dict[str, Any]] = []
        for number, picture in enumerate(_several(images)):
            name = str(picture if isinstance(picture, (str, Path)) else getattr(picture, "filename", "") or number)
            try:
                pixels = self._pixels(picture)
            except DataError as error:
                predictions.append({"image": name, "error": str(error)})
                continue
            logits, details = self._answer(self.normalise(pixels[None]))
            shares = np.exp(logits[0] - logits[0].max())
            shares = shares / shares.sum()
            best = np.argsort(-shares, kind="stable")[:top]
            classes = [{"name": self.classes[i], "probability": float(shares[i])} for i in best]
            predictions.append({"image": name, "classes": classes, **details})
        return predictions

    def _answer(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Of one image: logits (1, classes), and what the method adds to a prediction."""
        raise NotImplementedError

    def _pixels(self, picture: Picture) -> np.ndarray:
        fed = self.preprocessing
        if not isinstance(picture, (str, Path)):
            return fed.of_image(picture, str(getattr(picture, "filename", "image")))
        if not Path(picture).is_file():
            raise DataError("the image must exist", got=picture, remedy="check the path")
        return fed.decode(picture, str(picture))


class EdgeModel(_Export, FeatureRouter):
    """The export of a bundle as a classifier: normalised images (B, C, H, W) -> logits (B, classes), or
    ``route(images)``."""

    def __init__(self, folder: Path, manifest: RouterManifest, threads: int) -> None:
        _Export.__init__(self, manifest)
        tails = cast(tuple[TailTimes, ...], manifest.tails)
        times = next((each for each in tails if each.threads == threads), None)
        thresholds = manifest.thresholds
        engine = _open(folder, manifest, threads)
        FeatureRouter.__init__(
            self, engine, manifest.preprocessing.size, thresholds.value, thresholds.early, times,
            cascade=len(manifest.clusters) == 1,
        )  # fmt: skip
        self.clusters: dict[str, list[int]] = {each.name: list(each.classes) for each in manifest.clusters}

    def _answer(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        routed = self.route(image)
        route = list(self.clusters)[int(routed.route[0])]
        details = {"route": route, "confidence": float(routed.confidence[0]), "fell_back": bool(routed.fell_back[0])}
        return routed.logits, details


class EdgeNetwork(_Export):
    """The export of a plain network as a classifier: normalised images (B, C, H, W) -> logits (B, classes)."""

    def __init__(self, folder: Path, manifest: NetworkManifest, threads: int) -> None:
        super().__init__(manifest)
        self.engine = _open(folder, manifest, threads)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, self.engine.run(NETWORK, images)[0])

    def _answer(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        return self(image), {}

    def close(self) -> None:
        """Let go of what the engine holds."""
        self.engine.close()


def _several(images: Picture | Iterable[Picture]) -> list[Picture]:
    """One picture is a list of one; an image of Pillow is not iterated over."""
    if isinstance(images, (str, Path)) or hasattr(images, "getexif"):
        return [cast(Any, images)]
    return list(cast(Any, images))


def _open(folder: Path, manifest: Manifest, threads: int) -> SessionEngine:
    suffix = SUFFIXES[manifest.format]

    def source(part: str) -> Path:
        if part == BASE:
            raise BundleError("a split export has no base model", remedy="sinf bench compares with it")
        return folder / f"{part}{suffix}"

    if manifest.format == "onnx":
        return OnnxRuntimeEngine(source, threads)
    arithmetic = "f32" if manifest.precision == "int8" else manifest.precision  # integers are in the graph
    return OpenVinoEngine(source, threads, arithmetic)


def load(folder: str | Path, *, threads: int = 1, key: bytes | None = None) -> EdgeModel | EdgeNetwork:
    """Open a folder that ``sinf export --layout split`` or ``sinf optimize`` wrote; its parts are loaded when first
    needed. With a ``key``, what is not signed with it is refused.

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
    if content.get("kind") == "network":
        network = validated(content, NetworkManifest, BundleError, str(path), remedy=_REMEDY)
        _check_files(folder, network)
        return EdgeNetwork(folder, network, threads)
    manifest = validated(content, RouterManifest, BundleError, str(path), remedy=_REMEDY)
    if len(manifest.classes) != sum(len(cluster.classes) for cluster in manifest.clusters):
        raise BundleError("clusters must cover all classes", got=path, remedy=_REMEDY)
    _check_files(folder, manifest)
    return EdgeModel(folder, manifest, threads)


def _check_files(folder: Path, manifest: Manifest) -> None:
    """All files of the parts, and no other, are as they were written."""
    endings = (".xml", ".bin") if manifest.format == "openvino" else (".onnx",)
    names = {f"{part}{ending}" for part in manifest.parts for ending in endings}
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


def part_names(clusters: int) -> list[str]:
    """The parts of a bundle's export; with one cluster it is a cascade."""
    if clusters == 1:
        return [FIRST, FULL_TAIL]
    return [FRONT, *(part_name(cluster) for cluster in range(clusters)), FULL_TAIL]


def is_export(folder: Path) -> bool:
    """Whether there is an export, split or a page, of any format and state."""
    try:
        manifest = parse_file(folder / MANIFEST, BundleError)
    except BundleError:
        return False
    return isinstance(manifest, dict) and "sinf_export" in manifest
