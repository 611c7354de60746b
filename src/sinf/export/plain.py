"""A plain model as one file for other runtimes: batches of any size, ``images`` (B, C, H, W) -> ``logits``.

The file says what it is fed and what its classes are: in ONNX as the metadata ``sinf``, in OpenVINO as runtime
information of the same name, both JSON.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sinf import edge
from sinf.bundle.plain import PlainModel
from sinf.engine.network_engine import open_network
from sinf.engine.onnx_parts import network_to_onnx
from sinf.engine.onnxruntime_engine import OnnxRuntimeEngine
from sinf.engine.openvino_engine import OpenVinoEngine
from sinf.engine.runtime import Network, Setting
from sinf.engine.session_runtimes import network_graph
from sinf.engine.sessions import SessionEngine
from sinf.errors import ConfigError, DependencyError
from sinf.export.describe import require_same
from sinf.export.split import write_export, write_graph
from sinf.routing.router import BASE
from sinf.storage.files import replacing

ENDINGS = {"onnx": ".onnx", "openvino": ".xml"}
_SAMPLES = 3


@torch.no_grad()
def export_plain(model: PlainModel, path: str | Path, file_format: str = "onnx") -> list[Path]:
    """Write a plain model, compared with the model first; the files are returned: one of ONNX, or an ``.xml`` and a
    ``.bin`` of OpenVINO.

    Raises:
        ConfigError: the name does not end as the format's files do.
        VerificationError: the file does not answer as the model does.
        ModelError: the model has an operation that ONNX has not.
        StorageError: it cannot be written; what was there stays.
    """
    path = Path(path)
    if path.suffix != ENDINGS[file_format] or path.is_dir():
        raise ConfigError(f"a plain model is exported to a file that ends in {ENDINGS[file_format]}", got=path)
    import onnx

    graph = network_to_onnx(model.network, model.preprocessing.size)
    onnx.helper.set_model_props(graph, {"sinf": json.dumps(_description(model))})
    onnx.checker.check_model(graph, full_check=True)
    if file_format == "onnx":
        content = graph.SerializeToString()
        _verify(model, OnnxRuntimeEngine(lambda _: content))
        with replacing(path) as partial:
            partial.write_bytes(content)
        return [path]
    return _write_openvino(model, graph, path)


def export_network(
    model: PlainModel,
    folder: str | Path,
    file_format: str = "onnx",
    *,
    precision: str = "f32",
    ranges: Tensor | None = None,
    promise: str = "",
    key: bytes | None = None,
    running: Network | None = None,
) -> None:
    """Write a plain model as a folder for :mod:`sinf.edge`, as :func:`sinf.export.split.export_split` does a bundle;
    ``promise`` is what is promised of its loss, in words. What is written answers as ``running`` does, by default as
    the model in that engine and precision.

    Raises:
        BundleError: the folder holds something else.
        ConfigError: the engine of the format does not compute in that precision, or int8 lacks images.
        VerificationError: the file does not answer as the model does in that engine.
        ModelError: the model has an operation that ONNX has not.
        StorageError: it cannot be written; what was there stays.
    """
    engine, size = edge.ENGINES[file_format], model.preprocessing.size
    if running is None:
        running = open_network(model.network, size, engine, precision=precision, calibration=ranges)
    manifest = {
        "sinf_export": edge.FORMAT, "kind": "network", "model": model.spec.name, "classes": model.classes,
        "preprocessing": model.preprocessing.to_json(), "format": file_format, "precision": precision,
        "promise": promise,
    }  # fmt: skip

    def write(folder: Path) -> None:
        graph = network_graph(model.network, size, Setting(1, precision, ranges))
        write_graph(graph, folder / f"{edge.NETWORK}{edge.SUFFIXES[file_format]}")

    def verify(export: edge.EdgeModel | edge.EdgeNetwork) -> None:
        images = torch.randn(_SAMPLES, *size, generator=torch.Generator().manual_seed(0))
        require_same("the network", (export(images.numpy()),), (torch.as_tensor(running(images)),))

    write_export(Path(folder), manifest, write, verify, key)


def _write_openvino(model: PlainModel, graph: Any, path: Path) -> list[Path]:
    try:
        import openvino
    except ImportError as error:
        raise DependencyError("the format openvino needs its package", remedy="pip install openvino") from error
    content = graph.SerializeToString()
    _verify(model, OpenVinoEngine(lambda _: content))
    read = openvino.Core().read_model(content)
    read.set_rt_info(json.dumps(_description(model)), "sinf")
    weights = path.with_suffix(".bin")
    with TemporaryDirectory(prefix="sinf-export-") as folder:
        made = Path(folder, "model.xml")
        openvino.save_model(read, made, compress_to_fp16=False)
        for source, target in ((made.with_suffix(".bin"), weights), (made, path)):
            with replacing(target) as partial:
                shutil.copyfile(source, partial)
    return [path, weights]


def _description(model: PlainModel) -> dict[str, Any]:
    return {
        "model": model.spec.name,
        "classes": model.classes,
        "preprocessing": model.preprocessing.to_json(),
        "provenance": model.provenance,
    }


def _verify(model: PlainModel, engine: SessionEngine) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(_SAMPLES, *model.preprocessing.size, generator=draw)
    for some in (images[:1], images):
        require_same("the network", engine.run(BASE, some.numpy()), (model(some),))
    engine.close()
