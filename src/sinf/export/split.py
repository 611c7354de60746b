"""One file a part and a manifest, for :mod:`sinf.edge` or a program of one's own that routes as it does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sinf import edge
from sinf.engine.onnx_parts import part_to_onnx
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import BundleError, DependencyError
from sinf.export.describe import description, require_same, samples
from sinf.measure.accuracy import Progress
from sinf.routing.router import FALLBACK, FRONT
from sinf.storage.files import replacing_folder, sha256, write_json
from sinf.storage.seal import sealed

_SAMPLES = 3


def export_split(
    model: SemanticModel,
    folder: str | Path,
    file_format: str = "onnx",
    progress: Progress | None = None,
    *,
    key: bytes | None = None,
) -> None:
    """Write the parts of a bundle; an existing export in ``folder`` is replaced, anything else is refused. With a
    ``key`` (16 bytes at least) the manifest is signed.

    Raises:
        BundleError: the folder holds something else.
        VerificationError: a part does not answer as the bundle does.
        StorageError: it cannot be written; what was there stays.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not edge.is_export(folder))):
        raise BundleError("only an export may be replaced", got=f"{folder} holds other files", remedy="name another")
    parts = edge.part_names(len(model.bundle.clusters))
    with replacing_folder(folder) as partial:
        for done, part in enumerate(parts):
            _write(part_to_onnx(model.engine, part), partial / f"{part}{edge.SUFFIXES[file_format]}")
            if progress is not None:
                progress(done + 1, len(parts))
        files = {path.name: sha256(path) for path in sorted(partial.iterdir())}
        engine = edge.ENGINES[file_format]
        tails = [asdict(each) for each in model.bundle.times if (each.engine, each.precision) == (engine, "f32")]
        manifest = {**description(model), "format": file_format, "tails": tails, "sha256": files}
        write_json(sealed(manifest, key), partial / edge.MANIFEST)
        _verify(model, edge.load(partial), parts)


def _write(graph: Any, path: Path) -> None:
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


def _verify(model: SemanticModel, export: edge.EdgeModel, parts: list[str]) -> None:
    """Every part on its own, so that none is left out because nothing is sent there."""
    images = samples(model, _SAMPLES)
    features, log_clusters, *_ = model.engine.run(FRONT, images)
    for part in parts:
        given = {FRONT: (images,), FALLBACK: (features,)}.get(part, (features, log_clusters))
        require_same(part, export.engine.run(part, *given), model.engine.run(part, *given))
