"""``sinf build``: from a base model to a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinf.cli import options

if TYPE_CHECKING:
    from sinf.compress.select import Budget, Schedule


def build(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Folder for the bundle; the same command resumes.")],
    weights: options.Weights = None,
    score: Annotated[str, typer.Option(help="Images that decide which channels go.")] = "train[:10000]",
    route: Annotated[str, typer.Option(help="Images that the route predictor learns from.")] = "train",
    calibrate: Annotated[
        str, typer.Option(help="Images that set the threshold; the base model has never seen them.")
    ] = "test[:50%]",
    clusters: Annotated[
        Path | None,
        typer.Option(
            help='JSON {"cluster": ["class", ...]} or CSV (see sinf clusters), or none for a cascade '
            "[default: from a column]."
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="How parts are made smaller: channels (are removed), ranks (low rank), or depth (fewer branches)."
        ),
    ] = "channels",
    cut: Annotated[
        str | None, typer.Option(help="Cut point (see sinf profile) [default: nearest to 60 % of MACs].")
    ] = None,
    criterion: options.Criterion = None,
    macs: Annotated[
        float | None, typer.Option(help="Fraction of the tail's MACs that a subgraph keeps [default: 0.3].")
    ] = None,
    across_clusters: Annotated[
        bool, typer.Option("--across-clusters", help="--macs is the mean of all subgraphs, spent where it costs least.")
    ] = False,
    weight_cost: Annotated[
        float | None,
        typer.Option(
            help="MACs that loading a weight counts for in budgets [default: 0 where a budget is given, else 32]."
        ),
    ] = None,
    ratios: Annotated[
        str | None, typer.Option(help="Instead of --macs: ratios removed in first and last layer, e.g. 0.05,0.5.")
    ] = None,
    extractor: Annotated[
        float, typer.Option(help="Fraction of the extractor's MACs that stays, for all classes.")
    ] = 1.0,
    fallback: Annotated[float, typer.Option(help="Fraction of the full tail's MACs that stays.")] = 1.0,
    common: Annotated[
        float, typer.Option(help="Instead of those two: one budget for both, spent where it costs least.")
    ] = 1.0,
    route_draws: Annotated[
        int,
        typer.Option(help="Cropped and flipped views that the route predictor learns from, ten of an image at most."),
    ] = 50_000,
    round_to: Annotated[
        int, typer.Option(min=1, help="Widths of layers are multiples of this; 16 suits processors with AVX-512.")
    ] = 8,
    reconstruct: Annotated[bool, typer.Option(help="Let the weights that stay make up for removed channels.")] = True,
    max_loss: Annotated[float, typer.Option(help="Accuracy that may be lost, in percentage points.")] = 1.0,
    confidence: Annotated[
        float | None, typer.Option(help="Probability with which that holds for new images, e.g. 0.95.")
    ] = None,
    keep_anyway: Annotated[
        bool, typer.Option("--keep-anyway", help="Write a bundle that is not faster than the base model all the same.")
    ] = False,
    choices: Annotated[
        int, typer.Option(min=1, help="Bundles or limits that you will choose from by these images; corrects for it.")
    ] = 1,
    classes: options.Classes = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    width: options.Width = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    cluster_column: options.ClusterColumn = None,
    labels: options.Labels = None,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    work: Annotated[
        Path | None,
        typer.Option(help="Keep results of steps here: other builds of the same model find what they have in common."),
    ] = None,
    threads: options.Threads = None,
    memory: options.Memory = options.MEMORY,
    json: options.Json = None,
) -> None:
    """Make a bundle: cut a subgraph for every semantic cluster, train and calibrate the route predictor."""
    from sinf.data import clusters as clustering
    from sinf.machine.memory import parse
    from sinf.measure.accuracy import tail_shares
    from sinf.measure.delivery import Verdict
    from sinf.pipelines.build import BuildConfig, Images
    from sinf.pipelines.build import build as run
    from sinf.report import tables

    options.set_threads(threads)
    cost = _weight_cost(weight_cost, macs, extractor, fallback, common)
    config = BuildConfig(
        method=method,
        cut=cut,
        criterion=criterion,
        subgraph=_rule(macs, cost, ratios),
        across_clusters=across_clusters,
        weight_cost=cost,
        route_draws=route_draws,
        round_to=round_to,
        extractor=extractor,
        fallback=fallback,
        common=common,
        reconstruct=reconstruct,
        max_loss=max_loss / 100,
        confidence=confidence,
        choices=choices,
        seed=seed,
        keep_anyway=keep_anyway,
        memory=parse(memory),
    )
    options.write_alone(context, out)
    columns = (image_column, label_column, cluster_column)
    scoring, calibration = options.images(data, score, *columns), options.images(data, calibrate, *columns)
    routing = scoring if route == score else options.images(data, route, *columns)
    base = options.base_model(model, weights, classes, size, mean, std, width, images=scoring)
    same = routing is scoring
    scoring, calibration = (options.as_classes_of(base, part, labels, memory) for part in (scoring, calibration))
    routing = scoring if same else options.as_classes_of(base, routing, labels, memory)
    if clusters is None:
        groups = clustering.from_column(scoring, routing, calibration)
    elif str(clusters) == "none":
        groups = clustering.one_cluster(scoring.classes)
    else:
        groups = clustering.from_file(clusters, scoring.class_names)
    start, verdicts = time.perf_counter(), list[Verdict]()
    with options.Steps() as steps:
        bundle = run(
            base,
            Images(scoring, routing, calibration),
            groups,
            config,
            out,
            work=work,
            provenance={"scoring images": score, "routing images": route, "calibration images": calibrate},
            report=verdicts.append,
            progress=steps,
            expect=lambda expected: options.announce(expected.line()),
            key=options.key(),
            notice=options.announce,
        )
    seconds = time.perf_counter() - start
    kept = tail_shares(bundle)
    tables.show_build(bundle, out, seconds, kept)
    print(f"beside the base model in torch, one thread: {verdicts[0]}")
    record = {"folder": str(out), "threshold": vars(bundle.threshold), "cut": bundle.cut}
    options.write_json(json, record | {"tail_macs": kept[0], "tail_weights": kept[1], **verdicts[0].to_json()})


def _weight_cost(given: float | None, macs: float | None, *shares: float) -> float:
    """A budget that a person names is one of MACs alone, unless they say otherwise."""
    from sinf.graph.cost import WEIGHT_COST

    if given is not None:
        return given
    return WEIGHT_COST if macs is None and min(shares) == 1 else 0.0


def _rule(macs: float | None, weight_cost: float, ratios: str | None) -> Schedule | Budget:
    from sinf.compress.select import Budget, Schedule

    if ratios is None:
        return Budget(0.3 if macs is None else macs, weight_cost)
    first, last = options.numbers("ratios", ratios, float, 2)
    return Schedule(first, last)
