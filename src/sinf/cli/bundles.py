"""``sinf build``: from a base model to a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sinf.cli import options
from sinf.cli.clusters import named_clusters
from sinf.option import IMAGES, RUN, Option
from sinf.pipelines.build_config import BuildConfig


def build(
    context: typer.Context,
    model: options.Model,
    data: options.ClusteredData,
    out: options.BundleOut,
    config: BuildConfig,
    score: options.Score = "train[:10000]",
    route: Annotated[str, Option("Images that the route predictor learns from.", IMAGES)] = "train",
    calibrate: Annotated[
        str, Option("Images that set the threshold; the base model has never seen them.", IMAGES)
    ] = "test[:50%]",
    clusters: options.Clusters = None,
    work: Annotated[
        Path | None,
        Option("Keep results of steps here: other builds of the same model find what they have in common.", RUN),
    ] = None,
) -> dict[str, Any]:
    """Make a bundle: cut a subgraph for every semantic cluster, train and calibrate the route predictor."""
    from sinf.data.clusters import one_cluster
    from sinf.measure.accuracy import tail_shares
    from sinf.measure.delivery import Verdict
    from sinf.pipelines.build import Images
    from sinf.pipelines.build import build as run
    from sinf.report import tables

    options.set_threads(config.threads)
    options.write_alone(context, out)
    scoring, calibration = data.images(score), data.images(calibrate)
    routing = scoring if route == score else data.images(route)
    base = model.load(scoring)
    same = routing is scoring
    scoring, calibration = (data.for_model(base, part, config.memory) for part in (scoring, calibration))
    routing = scoring if same else data.for_model(base, routing, config.memory)
    start, verdicts = time.perf_counter(), list[Verdict]()
    with options.Steps() as steps:
        groups = named_clusters(
            clusters or "column", base, config, steps, scoring, routing, calibration, cut=config.cut
        )
        bundle = run(
            base,
            Images(scoring, routing, calibration),
            groups or one_cluster(scoring.classes),
            config,
            out,
            work=work,
            provenance={"scoring images": score, "routing images": route, "calibration images": calibrate},
            report=verdicts.append,
            progress=steps,
            expect=lambda expected: options.announce(expected.line()),
            key=options.key(),
            notice=options.announce,
            worth=lambda prospect: options.announce(prospect.line()),
        )
    seconds = time.perf_counter() - start
    kept = tail_shares(bundle)
    tables.show_build(bundle, out, seconds, kept)
    print(f"beside the base model in torch, one thread: {verdicts[0]}")
    record = {"folder": str(out), "threshold": vars(bundle.threshold), "cut": bundle.cut}
    return record | {"tail_macs": kept[0], "tail_weights": kept[1], **verdicts[0].to_json()}
