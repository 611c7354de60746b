"""``sinf export``: a bundle for other runtimes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sinf.cli import dynamic, options
from sinf.errors import ConfigError


def export(
    context: typer.Context,
    bundle: options.Bundle,
    out: Annotated[Path, typer.Argument(help="Folder of the split layout or the page, file of the single layout.")],
    file_format: Annotated[str, typer.Option("--format", help="onnx, openvino, or web: a page for browsers.")] = "onnx",
    layout: Annotated[
        str | None, typer.Option(help="split: one file a part; single: all in one ONNX file [default: split].")
    ] = None,
    threshold: options.Threshold = None,
    runtime: Annotated[
        Path | None,
        typer.Option(help="Of web: folder of the npm package onnxruntime-web [default: in node_modules here]."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Of web: sample images [default: embedded ones that fit].")] = None,
    split: Annotated[str, typer.Option(help="Of web: split of the sample images.")] = "test",
    allow_factory: options.AllowFactory = False,
) -> None:
    """Write a bundle for ONNX Runtime, OpenVINO or browsers; it is compared with the bundle before it is put in
    place."""
    if layout not in (None, "split", "single"):
        raise ConfigError("--layout must be split or single", got=layout)
    if file_format not in ("onnx", "openvino", "web"):
        raise ConfigError("--format must be onnx, openvino or web", got=file_format)
    if (layout, file_format) == ("single", "openvino"):
        raise ConfigError("the single layout is an ONNX file", got=file_format, remedy="take --layout split")
    if file_format == "web" and layout is not None:
        raise ConfigError("a page has a layout of its own", got=layout, remedy="leave out --layout")
    if file_format != "web" and (runtime is not None or data is not None):
        raise ConfigError("--runtime and --data are those of a page", got=file_format, remedy="take --format web")
    from sinf.export import page

    if options.is_dynamic(bundle, threshold):
        if file_format != "onnx":
            raise ConfigError("dynamic bundles are exported as ONNX", got=file_format, remedy="leave out --format")
        return dynamic.export(context, bundle, out, allow_factory)
    options.write_alone(context, out)
    from sinf.export.single import export_single
    from sinf.export.split import export_split
    from sinf.measure import folder_bytes
    from sinf.report import tables

    files = page.find_runtime(runtime) if file_format == "web" else None
    model = options.bundle(bundle, threshold, allow_factory)
    with options.Steps() as steps:
        if files is not None:
            gallery = page.find_gallery(model, data, split)
            page.export_page(model, out, files, gallery, lambda done, total: steps("exporting", done, total))
        elif layout == "single":
            export_single(model, out, lambda done, total: steps("exporting", done, total))
        else:
            export_split(
                model, out, file_format, lambda done, total: steps("exporting", done, total), key=options.key()
            )
    tables.show_export(out, folder_bytes(out) if out.is_dir() else out.stat().st_size)
    if files is not None:
        print(f"python3 -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(out))}    # serves it")
