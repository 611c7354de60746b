"""``sinf optimize``: the fastest network that keeps a limit of the loss, in the engine where it will run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sinf.cli import options
from sinf.cli.clusters import named_clusters
from sinf.option import IMAGES, RUN, Option
from sinf.pipelines.optimize_config import OptimizeConfig


def optimize(
    context: typer.Context,
    model: options.Model,
    data: options.ClusteredData,
    out: Annotated[Path, Option("Folder for what is chosen; the same command resumes.")],
    config: OptimizeConfig,
    score: Annotated[str, Option("Images that make the candidates.", IMAGES)] = "train",
    calibrate: Annotated[
        str,
        Option("Images that the model has never seen: a third of them choose, the others test what is chosen.", IMAGES),
    ] = "test[:50%]",
    clusters: options.AlsoClusters = None,
    select: Annotated[str | None, Option("Images that choose; then all of --calibrate test.", IMAGES)] = None,
    work: Annotated[
        Path | None, Option("Keep results of steps here.", RUN, otherwise="beside --out, and removed at the end")
    ] = None,
) -> dict[str, Any]:
    """Find the fastest network that loses at most --max-loss points, and write it: a plain model or a bundle."""
    from sinf.bundle.folder import require_place
    from sinf.cli.room import Need, Room
    from sinf.pipelines.optimize import optimize as run
    from sinf.pipelines.optimize_search import most_open
    from sinf.pipelines.place import RANGES
    from sinf.report.optimized import show_optimized

    memory = config.memory  # torch keeps all its threads, which make the candidates
    require_place(out)
    options.write_alone(context, out, *([] if work else [out.with_name(out.name + ".optimize")]))
    scoring, calibration = data.images(score), data.images(calibrate)
    selection = None if select is None else data.images(select)
    base = model.load(scoring)
    scoring, calibration = (data.for_model(base, part, memory) for part in (scoring, calibration))
    selection = data.for_model(base, selection, memory)
    room = Room(memory, Need.of_model(base).exported(), base.spec.preprocessing, calibration, selection)
    room.fixed += most_open(base, config)
    room.limit("answers")
    if "int8" in config.precisions:
        room.calibrate(RANGES)
    room.announce()
    named = clusters or ("none" if data.cluster_column is None else "column")
    with options.Steps() as steps:
        config = replace(config, clusters=named_clusters(named, base, config, steps, scoring, calibration, selection))
        optimized = run(
            base, scoring, calibration, config, out, selection=selection, work=work, progress=steps,
            expect=lambda expected: options.announce(expected.line()), key=options.key(),
        )  # fmt: skip
    show_optimized(optimized, config, out)
    return {"folder": str(out), **optimized.to_json()}
