"""Results as tables on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sinf.report.terminal import Terminal

if TYPE_CHECKING:
    from sinf.bundle.semantic import Bundle
    from sinf.dynamic.model import DynamicEvaluation
    from sinf.measure.accuracy import Evaluation
    from sinf.measure.energy import Energy
    from sinf.measure.profile import Profile
    from sinf.measure.stages import StageTimes
    from sinf.measure.timing import Latency
    from sinf.pipelines.comparison import Comparison as Pruned
    from sinf.report.runs import Run
    from sinf.routing.clustering import FoundClusters
    from sinf.routing.grouping import TailTimes

_PERCENT = "{:.1f} %"


def _console() -> Terminal:
    console = Terminal()
    # A file or a pipe has no width of its own: give tables room instead of wrapping them.
    return console if console.is_terminal else Terminal(width=140)


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < left else "right")
    return table


def _share(value: float) -> str:
    return "-" if value != value else _PERCENT.format(100 * value)


def _count(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {unit}"
    return f"{value:.0f}"


def _bytes(value: float | None) -> str:
    return "not available" if value is None else f"{value / 1e6:.1f} MB"


def show_profile(profile: Profile) -> None:
    console = _console()
    console.print(
        f"{profile.model}: {_count(profile.macs)} MACs, {_count(profile.parameters)} parameters, "
        f"{profile.milliseconds:.2f} ms an image ({profile.threads} thread(s), layer by layer)"
    )
    layers = _table("Layers", "layer", "kind", "output", "MACs", "of MACs", "parameters", "of time", left=3)
    for layer in profile.layers:
        if layer.macs or layer.time >= 0.005:
            layers.add_row(
                layer.name, layer.kind, "x".join(map(str, layer.shape)), _count(layer.macs),
                _share(layer.macs / max(1, profile.macs)), _count(layer.parameters), _share(layer.time),
            )  # fmt: skip
    console.print(layers)
    groups = _table(
        "Coupled groups: channels that go together", "group", "made by", "read by", "blocked by", "channels", left=4
    )
    for group in profile.groups:
        groups.add_row(
            group.name, _some(group.producers), _some(group.consumers), group.blocked or "", str(group.channels)
        )
    console.print(groups)
    cuts = _table("Cut points", "name", "features", "MACs before", "time before", left=2)
    for cut in profile.cuts:
        cuts.add_row(cut.name, "x".join(map(str, cut.shape)), _share(cut.macs_before), _share(cut.time_before))
    console.print(cuts)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def show_build(bundle: Bundle, folder: Path, seconds: float, kept: tuple[float, float]) -> None:
    console = _console()
    console.print(f"bundle {folder} in {seconds:.0f} s: {len(bundle.clusters)} clusters, cut after {bundle.cut}")
    console.print(f"a subgraph keeps {_share(kept[0])} of the tail's MACs and {_share(kept[1])} of its weights (mean)")
    t = bundle.threshold
    if t is None:
        return
    shown = "every input falls back" if t.value > 1 else f"threshold {t.value:.3f}"
    console.print(
        f"{shown}: loss {100 * t.loss:.2f} points on the calibration images "
        f"(limit {100 * t.max_loss:g}), {_share(t.subgraph_ran)} run a subgraph, {_share(t.fallback)} fall back"
    )
    show_promise(t.promise())


def show_evaluation(result: Evaluation) -> None:
    console = _console()
    table = _table(
        f"{result.images} images, threshold {result.threshold:.3f}", "", "base model", "bundle", "difference"
    )
    for name, base, bundle in (
        ("top-1", result.base_top1, result.top1),
        ("top-5", result.base_top5, result.top5),
        ("within the true cluster", result.base_within, result.within),
    ):
        table.add_row(name, _share(base), _share(bundle), f"{100 * (bundle - base):+.2f} points")
    table.add_row("mean MACs", _count(result.base_macs), _count(result.macs), f"{-100 * result.macs_saved:+.1f} %")
    change = result.parameters_active / result.base_parameters - 1
    table.add_row(
        "active parameters", _count(result.base_parameters), _count(result.parameters_active), f"{100 * change:+.1f} %"
    )
    table.add_row("route accuracy", "", _share(result.route_accuracy), "")
    table.add_row("subgraph runs", "", _share(result.subgraph_ran), "")
    table.add_row("fallback", "", _share(result.fallback), "")
    console.print(table)
    show_promise(result.promise)
    clusters = _table(
        "Semantic clusters", "cluster", "images", "base model", "bundle", "base within", "bundle within", "route",
        "fallback", "tail MACs", "tail parameters",
    )  # fmt: skip
    for c in result.clusters:
        clusters.add_row(
            c.name, str(c.images), _share(c.base_top1), _share(c.top1), _share(c.base_within), _share(c.within),
            _share(c.route_accuracy), _share(c.fallback), _count(c.tail_macs), _count(c.tail_parameters),
        )  # fmt: skip
    console.print(clusters)


def show_clusters(clustering: FoundClusters, max_loss: float) -> None:
    """Found clusters with their classes, what routing by them would do, and the same of the clusters that the data
    has; ``max_loss`` in points."""
    console = _console()
    table = _table("Clusters", "cluster", "classes", "images", "base right", "route as base", "falls back", left=2)
    rows = zip(clustering.clusters.names, clustering.clusters.members, clustering.found.by_cluster, strict=True)
    for name, classes, (share, right, mimic, fallback) in rows:
        listed = ", ".join(clustering.class_names[c] for c in classes)
        cells = (_share(share), "-" if right is None else _share(right), _share(mimic), _share(fallback))
        table.add_row(name, f"{len(classes)}: {listed}", *cells)
    console.print(table)
    of = f"{clustering.found.images} images" + (
        " held out" if clustering.held_out else ", each half checked by the other"
    )
    table = _table(
        f"Routed after {clustering.cut} at most {max_loss:g} points lost, by a linear predictor; {of}",
        "", "clusters", "largest", "base right", "route as base", "falls back", "points lost", "classes an image",
    )  # fmt: skip
    for title, value in (("found", clustering.found), ("given by the data", clustering.given)):
        if value is not None:
            named = "-" if value.base_right is None else _share(value.base_right)
            shares = (named, _share(value.mimic), _share(value.fallback), f"{100 * value.loss:.2f}")
            of_all = f"{value.classes:.1f} of {len(clustering.class_names)}"
            table.add_row(title, str(value.clusters), f"{value.largest} classes", *shares, of_all)
    console.print(table)
    if clustering.agreement is not None:
        console.print(f"Adjusted Rand index of the two: {clustering.agreement:.2f}")
    if len(clustering.classes_by_count) > 1:
        counts = ", ".join(f"{count}: {classes:.1f}" for count, classes in clustering.classes_by_count.items())
        console.print(f"The number with the fewest classes an image was taken. Compared: {counts}.")
    console.print(describe_fallback(clustering))


def describe_fallback(clustering: FoundClusters) -> str:
    """What the estimate comes to, in a sentence."""
    value = clustering.found
    text = f"About {100 * value.fallback:.0f} % of the images would run the full tail."
    if value.fallback > 0.5:
        return f"{text} Routing by these clusters is unlikely to pay: sinf prune makes one network for all classes."
    return f"{text} Whether that pays depends on what the subgraphs cost: sinf build, then sinf bench."


def show_promise(promise: str) -> None:
    _console().print(promise)


def show_dynamic(result: DynamicEvaluation) -> None:
    console = _console()
    table = _table(f"{result.images} images", "", "base model", "bundle", "difference")
    for name, base, bundle in (("top-1", result.base_top1, result.top1), ("top-5", result.base_top5, result.top5)):
        table.add_row(name, _share(base), _share(bundle), f"{100 * (bundle - base):+.2f} points")
    macs, whole = result.macs, result.base_macs
    table.add_row("mean MACs", _count(whole), _count(macs.mean), f"{-100 * result.macs_saved:+.1f} %")
    for name, value in (("5th percentile", macs.p5), ("median", macs.median), ("95th percentile", macs.p95)):
        table.add_row(f"  {name}", "", _count(value), f"{100 * (value / whole - 1):+.1f} %")
    for quarter, value in zip(("easiest", "second", "third", "hardest"), result.macs_by_difficulty, strict=False):
        table.add_row(f"  {quarter} quarter", "", _count(value), f"{100 * (value / whole - 1):+.1f} %")
    table.add_row("MACs of the gates", "", _count(result.gate_macs), "")
    console.print(table)
    sites = _table("Channels that stay", "convolution", "mean share")
    for name, share in result.remaining.items():
        sites.add_row(name, _share(share))
    console.print(sites)


def show_bench(rows: list[Latency], facts: dict[str, Any]) -> None:
    console = _console()
    title = f"Milliseconds a batch, {facts['engine']}, {rows[0].threads} thread(s), {facts['processor']}"
    interval = "95 % interval"
    table = _table(
        title, "batch", "base median", interval, "p95", "median", interval, "p95", "time saved (means)", interval
    )
    for r in rows:
        table.add_row(
            str(r.batch),
            f"{r.base_median:.2f}", f"{r.base_median_low:.2f} .. {r.base_median_high:.2f}", f"{r.base_p95:.2f}",
            f"{r.median:.2f}", f"{r.median_low:.2f} .. {r.median_high:.2f}", f"{r.p95:.2f}",
            _share(r.time_saved), f"{100 * r.low:.1f} .. {100 * r.high:.1f} %",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"peak memory {_bytes(facts['peak_memory_bytes'])} (both models), bundle {_bytes(facts['bundle_bytes'])}, "
        f"loaded in {facts['load_seconds']:.2f} s"
    )
    if facts["file_bytes"]:
        console.print("files: " + ", ".join(f"{name} {_bytes(size)}" for name, size in facts["file_bytes"].items()))


def show_times(times: TailTimes) -> None:
    """What the tails of a bundle cost, and from what size on a group is worth its subgraph."""
    console = _console()
    title = f"Milliseconds of a tail, {times.engine} {times.precision}, {times.threads} thread(s), {times.device}"
    table = _table(
        title, "inputs", "a subgraph (median)", "the full tail", "worth it, alone", "beside 31 that fall back"
    )
    for count, subgraph, full_tail in zip(times.batches, times.subgraph, times.full_tail, strict=True):
        worth = ["yes" if times.worth([count], rest) else "no" for rest in (0, 31)]
        table.add_row(str(count), f"{subgraph:.3f}", f"{full_tail:.3f}", *worth)
    console.print(table)


def show_precision(precision: str, top1: dict[str, float] | None) -> None:
    """What another precision than f32 costs."""
    if top1 is None:
        return
    _console().print(
        f"top-1 of {top1['images']:.0f} images: base model in f32 {_share(top1['base_f32'])}, "
        f"in {precision} {_share(top1['base'])}, bundle in {precision} {_share(top1['ours'])}"
    )


def show_stages(stages: StageTimes | None, energy: list[Energy], why: list[str]) -> None:
    """What stands below the times: stages and routes of one image, and energy."""
    console = _console()
    if stages is not None:
        table = _table(
            f"Stages of one image, {stages.images} images", "stage", "ms an image", "of the base model", "run by"
        )
        for name, value, share in (
            ("extractor", stages.extractor, 1.0),
            ("route predictor", stages.predictor, 1.0),
            ("subgraph", stages.subgraph, stages.subgraph_ran),
            ("deferral head", stages.deferral, stages.subgraph_ran),
            ("full tail", stages.full_tail, stages.fallback_share),
            ("glue", stages.glue, 1.0),
        ):
            table.add_row(name, f"{value:.3f}", _share(value / stages.base), _share(share))
        table.add_row("bundle", f"{stages.ours:.3f}", _share(stages.ours / stages.base), "")
        table.add_row("base model", f"{stages.base:.3f}", "", "")
        console.print(table)
        overhead = _share(stages.overhead)
        console.print(f"routing (predictor, deferral head, glue) takes {overhead} of the base model's time")
        routes = _table("Routes", "cluster", "images", "fallback", "subgraph ms", "base ms", "bundle ms", "time saved")
        for c in stages.clusters:
            routes.add_row(
                c.name, str(c.images), _share(c.fallback), "-" if c.subgraph is None else f"{c.subgraph:.2f}",
                f"{c.base:.2f}", f"{c.ours:.2f}", _share(c.time_saved),
            )  # fmt: skip
        console.print(routes)
    if not energy:
        console.print(f"energy: not available ({'; '.join(why)})")
        return
    table = _table("Energy, millijoules an image", "meter", "batch", "base model", "bundle", "saved")
    for e in energy:
        table.add_row(e.meter, str(e.batch), f"{1000 * e.base:.2f}", f"{1000 * e.ours:.2f}", _share(e.saved))
    console.print(table)


def show_runs(runs: list[Run], batches: list[int] | None) -> None:
    """Times of different machines are never in one table."""
    console, shown = _console(), 0
    counted = any(run.record.get("energy") for run in runs)
    for processor in dict.fromkeys(run.record["processor"] for run in runs):
        table = _table(
            f"Median milliseconds a batch, {processor}", "date", "bundle", "engine", "batch", "threads", "threshold",
            "base ms", "bundle ms", "saved", "95 % interval", *(["energy saved"] if counted else []), left=3,
        )  # fmt: skip
        for run in runs:
            record = run.record
            if record["processor"] != processor:
                continue
            for row in record["latency"]:
                if batches and row["batch"] not in batches:
                    continue
                energy = [e["saved"] for e in record.get("energy") or [] if e["batch"] == row["batch"]]
                threshold = record.get("threshold")
                table.add_row(
                    record["date"][:16].replace("T", " "), record["bundle"], record["engine"], str(row["batch"]),
                    str(row["threads"]), "-" if threshold is None else f"{threshold:.3f}",
                    *_beside_base(row),
                    *([_share(energy[0]) if energy else "-"] if counted else []),
                )  # fmt: skip
                shown += 1
        if table.row_count:
            console.print(table)
    if not shown:
        console.print(f"no run has batch {' or '.join(map(str, batches or []))}")


def _beside_base(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Times of a run; a plain model may have been timed without a base model."""
    if "base_median" not in row:
        return "-", f"{row['median']:.2f}", "-", "-"
    interval = f"{100 * row['low']:.1f} .. {100 * row['high']:.1f} %"
    return f"{row['base_median']:.2f}", f"{row['median']:.2f}", _share(row["time_saved"]), interval


def show_pruned(comparison: Pruned, folder: Path, threads: int) -> None:
    from sinf.pipelines.comparison import PREPARED, rows_of

    title = f"{comparison.images} images, {threads} thread(s), all timed in turns in one run"
    table = _table(title, "", "your model, as loaded", "base, prepared", "pruned, as saved")
    for row in rows_of(comparison):
        table.add_row(*row)
    console = _console()
    console.print(table)
    console.print(PREPARED)
    console.print(f"{folder}: model.safetensors, config.json and load.py, which needs torch and safetensors alone")


def show_export(path: Path, size: int) -> None:
    _console().print(f"{path}: {_bytes(size)}, answers as the bundle does")


def show_predictions(records: list[dict[str, Any]]) -> None:
    table = _table("", "image", "classes", "route", "confidence", "ms", left=3)
    for record in records:
        classes = ", ".join(f"{c['name']} {100 * c['probability']:.1f} %" for c in record["classes"])
        route = "full tail" if record["fell_back"] else record["route"]
        table.add_row(
            Path(record["image"]).name, classes, route, f"{record['confidence']:.2f}", f"{record['milliseconds']:.2f}"
        )
    _console().print(table)


def show_choices(records: list[dict[str, Any]]) -> None:
    table = _table("", "image", "classes", "MACs", "of the base model", "ms", left=2)
    for record in records:
        classes = ", ".join(f"{c['name']} {100 * c['probability']:.1f} %" for c in record["classes"])
        table.add_row(
            Path(record["image"]).name, classes, _count(record["macs"]), _share(record["macs_share"]),
            f"{record['milliseconds']:.2f}",
        )  # fmt: skip
    _console().print(table)
