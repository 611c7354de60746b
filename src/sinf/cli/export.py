"""``sinf export``: an artefact for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinf.cli import options
from sinf.cli.kinds import Export, kind_of, open_artefact
from sinf.errors import ConfigError
from sinf.machine.sizes import DEFAULT
from sinf.option import Option


def export(
    context: typer.Context,
    artefact: options.Artefact,
    out: Annotated[
        Path,
        Option("Folder of the split layout or the page; file of the single layout, .onnx or .xml.", positional=True),
    ],
    file_format: Annotated[str, Option("onnx, openvino, or web: a page for browsers.", flag="format")] = "onnx",
    layout: Annotated[
        str | None,
        Option(
            "split: a folder for sinf.edge, one file a part; single: all in one file.",
            otherwise="split, of bundles; single, of pruned models",
        ),
    ] = None,
    precision: Annotated[str, Option("Of the split layout: f32, bf16 (openvino) or int8.")] = "f32",
    threshold: options.Threshold = None,
    runtime: options.Runtime = None,
    data: Annotated[
        str | None, Option("Of web: sample images, else embedded ones that fit. Of int8: images that set its ranges.")
    ] = None,
    split: Annotated[str, Option("Split of these images.")] = "test",
    memory: options.Memory = DEFAULT,
    allow_factory: options.AllowFactory = False,
) -> None:
    """Write an artefact for ONNX Runtime, OpenVINO or browsers; it is compared with the artefact before it is put in
    place. A pruned model is one file, or with --layout split a folder."""
    if layout not in (None, "split", "single"):
        raise ConfigError("--layout must be split or single", got=layout)
    if file_format not in ("onnx", "openvino", "web"):
        raise ConfigError("--format must be onnx, openvino or web", got=file_format)
    if file_format == "web" and layout is not None:
        raise ConfigError("a page has a layout of its own", got=layout, remedy="leave out --layout")
    if file_format != "web" and (runtime is not None or (data is not None and precision != "int8")):
        raise ConfigError(
            "--runtime is that of a page, --data that of a page or of int8", got=file_format, remedy="leave them out"
        )
    if precision != "f32" and (file_format == "web" or layout == "single"):
        raise ConfigError("a page and the single layout are in f32", got=precision, remedy="take --layout split")
    if precision == "int8" and data is None:
        raise ConfigError("int8 needs images that set its ranges", got="none", remedy="name them with --data, --split")
    kind = kind_of(artefact, threshold=threshold)
    options.write_alone(context, out)
    if file_format == "web":
        from sinf.export import page

        page.find_runtime(runtime)  # before the model is loaded
    images = None
    if precision == "int8" and data is not None:
        from sinf.data.images import load_images

        images = load_images(data, split, need_labels=False)
    model = open_artefact(artefact, threshold, allow_factory)
    asked = Export(out, file_format, layout, precision, runtime, data, split, images)
    asked.fit(memory, kind.need(model), model.preprocessing)
    kind.export(model, asked)
