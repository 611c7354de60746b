"""``sinf optimize``: the fastest network that keeps a limit of the loss, in the engine where it will run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinf.cli import options


def optimize(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Folder for what is chosen; the same command resumes.")],
    max_loss: Annotated[float, typer.Option(help="Accuracy that may be lost, in percentage points.")] = 1.0,
    confidence: Annotated[
        float | None, typer.Option(help="Probability with which that holds for new images, e.g. 0.95.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Where it will run: torch, torch-compile, onnxruntime or openvino.")
    ] = "onnxruntime",
    precision: Annotated[
        list[str] | None, typer.Option(help="f32, bf16 (openvino) or int8; may be repeated [default: f32].")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch, as the application has them.")] = 1,
    weights: options.Weights = None,
    score: Annotated[str, typer.Option(help="Images that make the candidates.")] = "train",
    images: Annotated[int, typer.Option(min=1, help="How many of them, equally many of every class.")] = 4000,
    calibrate: Annotated[
        str, typer.Option(help="Images that the model has never seen: half of them choose, half test what is chosen.")
    ] = "test[:50%]",
    select: Annotated[str | None, typer.Option(help="Images that choose, instead of that half.")] = None,
    cascades: Annotated[bool, typer.Option(help="Also try cascades of a small tail and a full one.")] = True,
    classes: options.Classes = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    width: options.Width = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    labels: options.Labels = None,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    work: Annotated[
        Path | None, typer.Option(help="Keep results of steps here [default: beside --out, and removed at the end].")
    ] = None,
    threads: options.Threads = 1,
    memory: options.Memory = options.MEMORY,
    json: options.Json = None,
) -> None:
    """Find the fastest network that loses at most --max-loss points, and write it: a plain model or a cascade."""
    from sinf.bundle.plain import check_target
    from sinf.machine.memory import parse
    from sinf.pipelines.optimize import optimize as run
    from sinf.pipelines.optimize_config import CUTS, OptimizeConfig
    from sinf.report.optimized import show_optimized

    config = OptimizeConfig(
        max_loss=max_loss / 100,
        confidence=confidence,
        engine=engine,
        precisions=tuple(precision or ("f32",)),
        batch=batch,
        threads=options.set_threads(threads),
        images=images,
        cuts=CUTS if cascades else (),
        seed=seed,
        memory=parse(memory),
    )
    check_target(out)
    options.write_alone(context, out, *([] if work else [out.with_name(out.name + ".optimize")]))
    columns = (image_column, label_column, None)
    scoring, calibration = options.images(data, score, *columns), options.images(data, calibrate, *columns)
    selection = None if select is None else options.images(data, select, *columns)
    base = options.base_model(model, weights, classes, size, mean, std, width, images=scoring)
    scoring, calibration = (options.as_classes_of(base, part, labels, memory) for part in (scoring, calibration))
    selection = options.as_classes_of(base, selection, labels, memory)
    with options.Steps() as steps:
        found = run(
            base, scoring, calibration, config, out, selection=selection, work=work, progress=steps, key=options.key()
        )
    show_optimized(found, config, out)
    options.write_json(json, {"folder": str(out), **found.to_json()})
