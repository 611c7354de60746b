"""``sinf clusters``: semantic clusters for data that has none, from the base model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinf.cli import options


def clusters(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: Annotated[
        Path | None, typer.Option(help="File for sinf build --clusters; the ending says .json or .csv.")
    ] = None,
    weights: options.Weights = None,
    split: Annotated[str, typer.Option(help="Images that clusters are found on; not those that calibrate.")] = (
        "train[:10000]"
    ),
    check: Annotated[
        str, typer.Option(help="Held-out images that the figures are of; they choose nothing. '' for none.")
    ] = "test[:50%]",
    source: Annotated[str, typer.Option(help="How alike classes are: by confusion, logits or features.")] = "confusion",
    method: Annotated[str, typer.Option(help="agglomerative or spectral.")] = "agglomerative",
    count: Annotated[
        int | None, typer.Option(help="How many clusters [default: that with the fewest classes an image].")
    ] = None,
    cut: Annotated[str | None, typer.Option(help="Cut point whose features tell the routes [default: found].")] = None,
    max_loss: Annotated[float, typer.Option(help="Limit of the loss in points, at which images fall back.")] = 1.0,
    labels: options.Labels = None,
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="Leave labels aside: the base model's answers count as right.")
    ] = False,
    classes: options.Classes = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    width: options.Width = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    cluster_column: options.ClusterColumn = None,
    threads: options.Threads = None,
    memory: options.Memory = options.MEMORY,
    json: options.Json = None,
) -> None:
    """Group the classes by what the base model confuses, and estimate what share of images would fall back."""
    from sinf.data import clusters as files
    from sinf.machine.memory import parse
    from sinf.report import tables
    from sinf.routing.clustering import find_clusters

    options.set_threads(threads)
    if out is not None:
        files.require_ending(out)
        options.write_alone(context, out)
    columns = (image_column, label_column, cluster_column)
    images = options.images(data, split, *columns, need_labels=False)
    held_out = options.images(data, check, *columns, need_labels=False) if check else None
    base = options.base_model(model, weights, classes, size, mean, std, width, images=images)
    images = options.as_classes_of(base, images, labels, memory)
    held_out = options.as_classes_of(base, held_out, labels, memory)
    with options.Steps() as steps:
        found = find_clusters(
            base,
            images,
            check=held_out,
            source=source,
            method=method,
            count=count,
            cut=cut,
            max_loss=max_loss / 100,
            labels=not no_labels,
            memory=parse(memory),
            progress=steps,
            notice=options.announce,
        )
    tables.show_clusters(found, max_loss)
    if out is not None:
        found.save(out)
        print(f"{out} is for sinf build --clusters; edit it as you like: every class in one cluster")
    options.write_json(json, found.to_json())
