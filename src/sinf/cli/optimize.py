"""``sinf optimize``: the fastest network that keeps a limit of the loss, in the engine where it will run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sinf.cli import options
from sinf.option import IMAGES, RUN, Option, Seed
from sinf.pipelines.compression_options import Confidence, MaxLoss


def optimize(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: Annotated[Path, Option("Folder for what is chosen; the same command resumes.")],
    machine: options.Machine = options.ONE_THREAD,
    max_loss: MaxLoss = 0.01,
    confidence: Confidence = None,
    engine: Annotated[str, Option("Where it will run: torch, torch-compile, onnxruntime or openvino.")] = (
        "onnxruntime"
    ),
    precision: Annotated[
        tuple[str, ...] | None, Option("f32, bf16 (openvino) or int8; may be repeated.", otherwise="f32")
    ] = None,
    batch: Annotated[int, Option("Images in a batch, as the application has them.", low=1)] = 1,
    score: Annotated[str, Option("Images that make the candidates.", IMAGES)] = "train",
    images: Annotated[int, Option("How many of them, equally many of every class.", IMAGES, low=1)] = 4000,
    calibrate: Annotated[
        str, Option("Images that the model has never seen: half of them choose, half test what is chosen.", IMAGES)
    ] = "test[:50%]",
    select: Annotated[str | None, Option("Images that choose, instead of that half.", IMAGES)] = None,
    cascades: Annotated[bool, Option("Also try cascades of a small tail and a full one.", RUN)] = True,
    seed: Seed = 0,
    work: Annotated[
        Path | None, Option("Keep results of steps here.", RUN, otherwise="beside --out, and removed at the end")
    ] = None,
) -> dict[str, Any]:
    """Find the fastest network that loses at most --max-loss points, and write it: a plain model or a cascade."""
    from sinf.bundle.plain import check_target
    from sinf.pipelines.optimize import optimize as run
    from sinf.pipelines.optimize_config import CUTS, OptimizeConfig
    from sinf.report.optimized import show_optimized

    config = OptimizeConfig(
        max_loss=max_loss,
        confidence=confidence,
        engine=engine,
        precisions=precision or ("f32",),
        batch=batch,
        threads=machine.pin(),
        images=images,
        cuts=CUTS if cascades else (),
        seed=seed,
        memory=machine.memory,
    )
    check_target(out)
    options.write_alone(context, out, *([] if work else [out.with_name(out.name + ".optimize")]))
    scoring, calibration = data.images(score), data.images(calibrate)
    selection = None if select is None else data.images(select)
    base = model.load(scoring)
    scoring, calibration = (data.for_model(base, part, machine.memory) for part in (scoring, calibration))
    selection = data.for_model(base, selection, machine.memory)
    with options.Steps() as steps:
        found = run(
            base, scoring, calibration, config, out, selection=selection, work=work, progress=steps, key=options.key()
        )
    show_optimized(found, config, out)
    return {"folder": str(out), **found.to_json()}
