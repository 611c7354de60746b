"""``sinf export``: an artefact for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinf.cli import options
from sinf.cli.kinds import Export, kind_of, open_artefact
from sinf.errors import ConfigError


def export(
    context: typer.Context,
    artefact: options.Artefact,
    out: Annotated[
        Path, typer.Argument(help="Folder of the split layout or the page; file of the single layout, .onnx or .xml.")
    ],
    file_format: Annotated[str, typer.Option("--format", help="onnx, openvino, or web: a page for browsers.")] = "onnx",
    layout: Annotated[
        str | None,
        typer.Option(help="split: one file a part; single: all in one ONNX file [default: split, of bundles]."),
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
    """Write an artefact for ONNX Runtime, OpenVINO or browsers; it is compared with the artefact before it is put in
    place. A pruned model is one file."""
    if layout not in (None, "split", "single"):
        raise ConfigError("--layout must be split or single", got=layout)
    if file_format not in ("onnx", "openvino", "web"):
        raise ConfigError("--format must be onnx, openvino or web", got=file_format)
    if file_format == "web" and layout is not None:
        raise ConfigError("a page has a layout of its own", got=layout, remedy="leave out --layout")
    if file_format != "web" and (runtime is not None or data is not None):
        raise ConfigError("--runtime and --data are those of a page", got=file_format, remedy="take --format web")
    kind = kind_of(artefact, threshold=threshold)
    options.write_alone(context, out)
    if file_format == "web":
        from sinf.export import page

        page.find_runtime(runtime)  # before the model is loaded
    kind.export(
        open_artefact(artefact, threshold, allow_factory), Export(out, file_format, layout, runtime, data, split)
    )
