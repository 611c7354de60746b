"""``sinf export``: a bundle for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinf.cli import dynamic, options
from sinf.errors import ConfigError


def export(
    bundle: options.Bundle,
    out: Annotated[Path, typer.Argument(help="Folder of the split layout, file of the single one.")],
    file_format: Annotated[str, typer.Option("--format", help="onnx or openvino.")] = "onnx",
    layout: Annotated[str, typer.Option(help="split: one file a part; single: all in one ONNX file.")] = "split",
    threshold: Annotated[
        float | None, typer.Option(help="Confidence below which an input falls back [default: the bundle's].")
    ] = None,
    allow_factory: options.AllowFactory = False,
) -> None:
    """Write a bundle for ONNX Runtime or OpenVINO; it is compared with the bundle before it is put in place."""
    if layout not in ("split", "single"):
        raise ConfigError("--layout must be split or single", got=layout)
    if file_format not in ("onnx", "openvino"):
        raise ConfigError("--format must be onnx or openvino", got=file_format)
    if (layout, file_format) == ("single", "openvino"):
        raise ConfigError("the single layout is an ONNX file", got=file_format, remedy="take --layout split")
    if options.is_dynamic(bundle, threshold):
        if file_format != "onnx":
            raise ConfigError("dynamic bundles are exported as ONNX", got=file_format, remedy="leave out --format")
        return dynamic.export(bundle, out, allow_factory)
    from sinf.engine.torch_engine import SemanticModel
    from sinf.export.single import export_single
    from sinf.export.split import export_split
    from sinf.measure import folder_bytes
    from sinf.report import tables

    model = SemanticModel.from_pretrained(bundle, allow_factory=allow_factory)
    if threshold is not None:
        model.threshold = threshold
    with options.Steps() as steps:
        if layout == "single":
            export_single(model, out, lambda done, total: steps("exporting", done, total))
        else:
            export_split(model, out, file_format, lambda done, total: steps("exporting", done, total))
    tables.show_export(out, folder_bytes(out) if out.is_dir() else out.stat().st_size)
