"""``sinf clusters``: semantic clusters for data that has none, from the base model itself. And what ``--clusters`` of
other verbs names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinf.cli import options
from sinf.option import IMAGES, POINTS, Option

if TYPE_CHECKING:
    from sinf.data.clusters import Clusters
    from sinf.data.images import LabelledImages
    from sinf.models import BaseModel
    from sinf.pipelines.build_config import BuildConfig
    from sinf.pipelines.optimize_config import OptimizeConfig

_FOUND_ON = 10_000  # images that clusters are found on


def clusters(
    context: typer.Context,
    model: options.Model,
    data: options.ClusteredData,
    machine: options.Machine,
    out: Annotated[Path | None, Option("File for sinf build --clusters; the ending says .json or .csv.")] = None,
    split: Annotated[str, Option("Images that clusters are found on; not those that calibrate.", IMAGES)] = (
        "train[:10000]"
    ),
    check: Annotated[
        str, Option("Held-out images that the figures are of; they choose nothing. '' for none.", IMAGES)
    ] = "test[:50%]",
    source: Annotated[str, Option("How similar classes are: by confusion, logits or features.")] = "confusion",
    method: Annotated[str, Option("agglomerative or spectral.")] = "agglomerative",
    count: Annotated[
        int | None, Option("How many clusters.", otherwise="that with the fewest classes an image")
    ] = None,
    cut: Annotated[str | None, Option("Cut point whose features tell the routes.", otherwise="found")] = None,
    max_loss: Annotated[
        float, Option("Loss in points for which it is said how many images would fall back.", unit=POINTS)
    ] = 0.01,
    no_labels: Annotated[bool, Option("Leave labels aside: the base model's answers count as right.")] = False,
) -> dict[str, Any]:
    """Group the classes by what the base model confuses, and estimate what share of images would fall back."""
    from sinf.data import clusters as files
    from sinf.report import tables
    from sinf.routing.clustering import find_clusters

    machine.pin()
    if out is not None:
        files.require_ending(out)
        options.write_alone(context, out)
    images = data.images(split, need_labels=False)
    held_out = data.images(check, need_labels=False) if check else None
    base = model.load(images)
    images = data.for_model(base, images, machine.memory)
    held_out = data.for_model(base, held_out, machine.memory)
    with options.Steps() as steps:
        clustering = find_clusters(
            base,
            images,
            check=held_out,
            source=source,
            method=method,
            count=count,
            cut=cut,
            max_loss=max_loss,
            labels=not no_labels,
            memory=machine.memory,
            progress=steps,
            notice=options.announce,
        )
    tables.show_clusters(clustering, 100 * max_loss)
    if out is not None:
        clustering.save(out)
        print(f"{out} is for sinf build --clusters; edit it as you like: every class in one cluster")
    return clustering.to_json()


def named_clusters(
    name: str,
    base: BaseModel,
    config: BuildConfig | OptimizeConfig,
    steps: options.Steps,
    scoring: LabelledImages,
    *others: LabelledImages | None,
    cut: str | None = None,
) -> Clusters | None:
    """The clusters that ``--clusters`` names, None for none. Those that are found are said, with what routing by them
    after ``cut`` would do."""
    from sinf.data import clusters as files
    from sinf.routing.clustering import find_clusters

    if name == "none":
        return None
    if name == "column":
        return files.from_column(scoring, *(each for each in others if each is not None))
    if name != "found":
        return files.from_file(name, scoring.class_names)
    images = scoring.sample(_FOUND_ON, config.seed)
    clustering = find_clusters(base, images, cut=cut, max_loss=config.max_loss, memory=config.memory, progress=steps)
    back = 100 * clustering.found.fallback
    options.announce(
        f"clusters: {len(clustering.clusters)} found; about {back:.0f} % of the scoring images would fall back, "
        "and more of others"
    )
    return clustering.clusters
