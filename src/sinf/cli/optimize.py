"""``sinf optimize``: the fastest network that keeps a limit of the loss, in the engine where it will run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinf.cli import options
from sinf.option import IMAGES, RUN, Option
from sinf.pipelines.optimize_config import Engine, OptimizeConfig

if TYPE_CHECKING:
    from sinf.data.clusters import Clusters
    from sinf.data.images import LabelledImages
    from sinf.models import BaseModel


@dataclass(frozen=True)
class _Asked(OptimizeConfig):
    """On the command line, for the engine that most models are deployed in."""

    engine: Engine = "onnxruntime"


_FOUND_ON = 10_000  # images that clusters are found on


def optimize(
    context: typer.Context,
    model: options.Model,
    data: options.ClusteredData,
    out: Annotated[Path, Option("Folder for what is chosen; the same command resumes.")],
    asked: _Asked,
    machine: options.Machine = options.ONE_THREAD,
    score: Annotated[str, Option("Images that make the candidates.", IMAGES)] = "train",
    calibrate: Annotated[
        str,
        Option("Images that the model has never seen: a third of them choose, the others test what is chosen.", IMAGES),
    ] = "test[:50%]",
    clusters: Annotated[
        str | None,
        Option(
            "Also try bundles of semantic clusters: column, found (in the model), none, or a file of sinf clusters.",
            otherwise="none, or column where --cluster-column names one",
        ),
    ] = None,
    select: Annotated[str | None, Option("Images that choose, instead of that third.", IMAGES)] = None,
    work: Annotated[
        Path | None, Option("Keep results of steps here.", RUN, otherwise="beside --out, and removed at the end")
    ] = None,
) -> dict[str, Any]:
    """Find the fastest network that loses at most --max-loss points, and write it: a plain model or a bundle."""
    from sinf.bundle.plain import check_target
    from sinf.pipelines.optimize import optimize as run
    from sinf.report.optimized import show_optimized

    config = replace(asked, threads=machine.pin(), memory=machine.memory)
    check_target(out)
    options.write_alone(context, out, *([] if work else [out.with_name(out.name + ".optimize")]))
    scoring, calibration = data.images(score), data.images(calibrate)
    selection = None if select is None else data.images(select)
    base = model.load(scoring)
    scoring, calibration = (data.for_model(base, part, machine.memory) for part in (scoring, calibration))
    selection = data.for_model(base, selection, machine.memory)
    named = clusters or ("none" if data.cluster_column is None else "column")
    with options.Steps() as steps:
        config = replace(config, clusters=_groups(named, base, config, steps, scoring, calibration, selection))
        found = run(
            base, scoring, calibration, config, out, selection=selection, work=work, progress=steps,
            expect=lambda expected: options.announce(expected.line()), key=options.key(),
        )  # fmt: skip
    show_optimized(found, config, out)
    return {"folder": str(out), **found.to_json()}


def _groups(
    named: str,
    base: BaseModel,
    config: OptimizeConfig,
    steps: options.Steps,
    scoring: LabelledImages,
    *others: LabelledImages | None,
) -> Clusters | None:
    """The clusters that an option names, None for none. Those that are found are said, with what routing by them would
    do."""
    from sinf.data import clusters as clustering
    from sinf.routing.clustering import find_clusters

    if named == "none":
        return None
    if named == "column":
        return clustering.from_column(scoring, *(each for each in others if each is not None))
    if named != "found":
        return clustering.from_file(named, scoring.class_names)
    images = scoring.sample(_FOUND_ON, config.seed)
    found = find_clusters(base, images, max_loss=config.max_loss, memory=config.memory, progress=steps)
    back = 100 * found.found.fallback
    options.announce(f"clusters: {len(found.clusters)} found; about {back:.0f} % of the images would fall back")
    return found.clusters
