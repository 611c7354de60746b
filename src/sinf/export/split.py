"""One file a part and a manifest, for :mod:`sinf.edge` or a program of one's own that routes as it does.

In integers the graphs are those that the engine runs when it is opened with the same ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinf import edge
from sinf.engine.engines import open_engine
from sinf.engine.runtime import Setting
from sinf.engine.session_runtimes import part_graphs
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import BundleError, DependencyError
from sinf.export.describe import description, require_same, samples
from sinf.measure.accuracy import Progress, promise
from sinf.routing.router import FIRST, FRONT, FULL_TAIL, Engine
from sinf.storage.files import replacing_folder, sha256, write_json
from sinf.storage.seal import sealed

_SAMPLES = 3


def export_split(
    model: SemanticModel,
    folder: str | Path,
    file_format: str = "onnx",
    progress: Progress | None = None,
    *,
    precision: str = "f32",
    ranges: Tensor | None = None,
    key: bytes | None = None,
    running: Engine | None = None,
) -> None:
    """Write the parts of a bundle; an existing export in ``folder`` is replaced, anything else is refused. With a
    ``key`` (16 bytes at least) the manifest is signed. ``ranges`` are the images (N, C, H, W), normalised, that int8
    needs. What is written answers as ``running`` does, by default as the bundle in that engine and precision.

    Raises:
        BundleError: the folder holds something else.
        ConfigError: the engine of the format does not compute in that precision, or int8 lacks images.
        VerificationError: a part does not answer as the bundle does.
        StorageError: it cannot be written; what was there stays.
    """
    engine = edge.ENGINES[file_format]
    if running is None:
        running = model.engine if precision == "f32" else _engine(model, engine, precision, ranges)
    parts = edge.part_names(len(model.bundle.clusters))

    def write(partial: Path) -> None:
        graph = part_graphs(model.engine, Setting(1, precision, ranges))
        for done, part in enumerate(parts):
            write_graph(graph(part), partial / f"{part}{edge.SUFFIXES[file_format]}")
            if progress is not None:
                progress(done + 1, len(parts))

    tails = [asdict(each) for each in model.bundle.times if (each.engine, each.precision) == (engine, precision)]
    manifest = {
        **description(model), "tails": tails, "format": file_format, "precision": precision,
        "promise": promise(model, engine, precision),
    }  # fmt: skip
    write_export(Path(folder), manifest, write, lambda export: _verify(model, export, running, parts), key)


def write_export(
    folder: Path,
    manifest: dict[str, Any],
    write: Callable[[Path], None],
    verify: Callable[[edge.EdgeModel | edge.EdgeNetwork], None],
    key: bytes | None,
) -> None:
    """Put the files that ``write`` writes, and their manifest, in the place of an export or of nothing, once they are
    verified."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not edge.is_export(folder))):
        raise BundleError("only an export may be replaced", got=f"{folder} holds other files", remedy="name another")
    with replacing_folder(folder) as partial:
        write(partial)
        files = {path.name: sha256(path) for path in sorted(partial.iterdir())}
        write_json(sealed({**manifest, "sha256": files}, key), partial / edge.MANIFEST)
        export = edge.load(partial)
        verify(export)
        export.close()


def _engine(model: SemanticModel, engine: str, precision: str, ranges: Tensor | None) -> Engine:
    """What the files must answer as."""
    return open_engine(model, engine, precision=precision, calibration=ranges).engine


def write_graph(graph: Any, path: Path) -> None:
    import onnx

    onnx.checker.check_model(graph, full_check=True)
    if path.suffix == ".onnx":
        onnx.save(graph, path)
        return
    try:
        import openvino
    except ImportError as error:
        raise DependencyError("the format openvino needs its package", remedy="pip install openvino") from error
    openvino.save_model(openvino.Core().read_model(graph.SerializeToString()), path, compress_to_fp16=False)


def _verify(model: SemanticModel, export: edge.EdgeModel | edge.EdgeNetwork, running: Engine, parts: list[str]) -> None:
    """Every part on its own, so that none is left out because nothing is sent there."""
    images = samples(model, _SAMPLES)
    features, log_clusters, *_ = model.engine.run(FRONT, images)
    for part in parts:
        given = {FRONT: (images,), FIRST: (images,), FULL_TAIL: (features,)}.get(part, (features, log_clusters))
        require_same(part, export.engine.run(part, *given), tuple(map(torch.as_tensor, running.run(part, *given))))
