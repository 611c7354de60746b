"""A static page that runs a bundle beside its base model in the browser, with onnxruntime-web.

    index.html, style.css, page.js, model.js, preprocess.js    the page
    model.onnx, base.onnx                                      the single-file export, and the base model
    manifest.json                                              what every export says of itself, gallery, sizes
    gallery/                                                   sample images of the model's size
    runtime/                                                   of onnxruntime-web, as npm installed it

Nothing is loaded from anywhere else.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from sinf import edge
from sinf.data.images import LabelledImages, load_images
from sinf.engine.onnx_parts import part_to_onnx
from sinf.engine.onnxruntime_engine import OnnxRuntimeEngine
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import BundleError, ConfigError, DependencyError
from sinf.export.describe import description, require_same, samples
from sinf.export.single import export_single
from sinf.measure.accuracy import Progress
from sinf.routing.router import BASE
from sinf.storage.files import replacing_folder, sha256, write_json
from sinf.storage.seal import sealed

PAGE = Path(__file__).parent / "web"
PACKAGE = Path("node_modules", "onnxruntime-web")
#: What the page needs of onnxruntime-web's folder ``dist``: the build for the processor, without WebGPU.
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
GALLERY = 24
INTERPOLATIONS = ("bilinear", "bicubic")  # that preprocess.js has
EMBEDDED = Path(__file__).parents[1] / "assets" / "cifar100_subset"


def find_runtime(given: Path | None = None) -> Path:
    """The folder with onnxruntime-web's files: ``given`` (the package or its ``dist``), or where npm puts it here.

    Raises:
        DependencyError: it is not there.
    """
    package = PACKAGE if given is None else given
    for folder in (package, package / "dist"):
        if all((folder / name).is_file() for name in RUNTIME):
            return folder
    raise DependencyError(
        f"the page needs {', '.join(RUNTIME)} of onnxruntime-web",
        got=f"none in {package}",
        remedy="run: npm install onnxruntime-web (here), or name its folder with --runtime",
    )


def find_gallery(model: SemanticModel, data: str | None = None, split: str = "test") -> LabelledImages | None:
    """Sample images: of ``data``, else the embedded ones where they have the model's classes, else none.

    Raises:
        ConfigError: ``data`` has other classes.
    """
    classes = list(model.bundle.class_names)
    images = load_images(EMBEDDED if data is None else data, split)
    if images.class_names == classes:
        return images.sample(GALLERY)
    if data is None:
        return None
    raise ConfigError(
        "sample images must have the bundle's classes",
        got=f"{images.classes} classes instead of {len(classes)}"
        if images.classes != len(classes)
        else "classes of other names",
        remedy="name other --data",
    )


def export_page(
    model: SemanticModel,
    folder: str | Path,
    runtime: Path,
    gallery: LabelledImages | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the page; an existing export in ``folder`` is replaced, anything else is refused.

    ``runtime`` is what :func:`find_runtime` gives.

    Raises:
        ConfigError: images of so many channels are no pictures.
        BundleError: the folder holds something else.
        VerificationError: what is exported does not answer as the bundle does.
        StorageError: it cannot be written; what was there stays.
    """
    folder = Path(folder)
    preprocessing = model.bundle.spec.preprocessing
    channels = preprocessing.size[0]
    if preprocessing.interpolation not in INTERPOLATIONS:
        got, remedy = preprocessing.interpolation, "export onnx"
        raise ConfigError(f"a page resizes {' or '.join(INTERPOLATIONS)}", got=got, remedy=remedy)
    if channels not in (1, 3):
        raise ConfigError("a page shows pictures of 1 or 3 channels", got=channels, remedy="export onnx")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not edge.is_export(folder))):
        raise BundleError("only an export may be replaced", got=f"{folder} holds other files", remedy="name another")
    with replacing_folder(folder) as partial:
        for path in sorted(PAGE.iterdir()):
            shutil.copyfile(path, partial / path.name)
        (partial / "runtime").mkdir()
        for name in RUNTIME:
            shutil.copyfile(runtime / name, partial / "runtime" / name)
        pictures = _write_gallery(model, gallery, partial)
        export_single(model, partial / "model.onnx", progress)
        _write_base(model, partial / "base.onnx")
        record = {
            **description(model),
            "format": "web",
            "gallery": pictures,
            "bytes": {
                "bundle": (partial / "model.onnx").stat().st_size,
                "base": (partial / "base.onnx").stat().st_size,
            },
            "sha256": {name: sha256(partial / name) for name in ("model.onnx", "base.onnx")},
        }
        write_json(sealed(record), partial / edge.MANIFEST)


def _write_base(model: SemanticModel, path: Path) -> None:
    graph = part_to_onnx(model.engine, BASE)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)
    images = samples(model, 2)
    require_same("the base model", OnnxRuntimeEngine(lambda _: path).run(BASE, images), model.engine.run(BASE, images))


def _write_gallery(model: SemanticModel, images: LabelledImages | None, folder: Path) -> list[dict[str, Any]]:
    """PNG files of the model's size, and what the page says of each."""
    (folder / "gallery").mkdir()
    if images is None:
        return []
    pictures = []
    pixels = images.pixels(model.bundle.spec.preprocessing).numpy()
    for number, (picture, label) in enumerate(zip(pixels, images.labels.tolist(), strict=True)):
        name = f"gallery/{number:02d}.png"
        Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)).save(
            folder / name
        )
        pictures.append({"file": name, "label": images.class_names[label].replace("_", " ")})
    return pictures
