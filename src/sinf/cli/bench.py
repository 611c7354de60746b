"""``sinf bench``, ``sinf tune`` and ``sinf results``: what a bundle saves on the clock, what decides which groups of a
batch are worth their subgraphs, and runs beside each other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinf.cli import dynamic, options
from sinf.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from sinf.data import LabelledImages
    from sinf.engine.torch_engine import SemanticModel
    from sinf.routing import FeatureRouter

_IMAGES = 2000  # at most: what is timed runs over them in turns
_CALIBRATION = 256

Calibrate = Annotated[str, typer.Option(help=f"Of int8: images that set its ranges; {_CALIBRATION} of them are taken.")]


def bench(
    bundle: options.Bundle,
    data: options.Data,
    split: Annotated[str, typer.Option(help="Images like those of the application.")] = "test[50%:]",
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes; may be repeated [default: 1 and 32].")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Measurements of each, base and ours in turns.")] = 200,
    threshold: options.Threshold = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    engine: Annotated[str, typer.Option(help="Of both: torch, torch-compile, onnxruntime or openvino.")] = "torch",
    precision: Annotated[str, typer.Option(help="Of the arithmetic of both: f32, bf16 (openvino) or int8.")] = "f32",
    calibrate: Calibrate = "test[:50%]",
    threads: options.Threads = 1,
    stages: Annotated[bool, typer.Option(help="Also time every stage and every route, at batch 1.")] = True,
    energy: Annotated[bool, typer.Option(help="Also joules, where the machine counts them.")] = True,
    allow_factory: options.AllowFactory = False,
    json: options.Json = None,
    results: Annotated[Path | None, typer.Option(help="Also add the result to this folder (sinf results).")] = None,
) -> None:
    """Time of base and ours, in turns in one process and one engine: whole, by stage and by route; memory, sizes,
    energy."""
    if options.is_dynamic(bundle, threshold):
        if precision != "f32":
            raise ConfigError("dynamic bundles compute in f32", got=precision, remedy="leave out --precision")
        return dynamic.bench(
            bundle, data, split, batch, pairs, image_column, label_column, engine, threads, allow_factory, json
        )
    from sinf import measure
    from sinf.energy import find_meters
    from sinf.engine.engines import native, open_engine, require_precision
    from sinf.report import runs, tables
    from sinf.stages import stage_times

    require_precision(engine, precision)
    pinned = options.set_threads(threads)
    images = options.images(data, split, image_column, label_column, None)
    held_out = None
    if precision == "int8":
        held_out = options.images(data, calibrate, image_column, label_column, None)
    start = time.perf_counter()
    model = options.bundle(bundle, threshold, allow_factory)
    options.require_classes(model, images.classes)
    empty = images.warn_of_empty_classes("the benchmark")
    router = open_engine(model, engine, threads=pinned, precision=precision, calibration=_ranges(model, held_out))
    load_seconds = time.perf_counter() - start
    sizes = batch or [1, 32]
    for size in sizes:
        if not 1 <= size <= len(images):
            raise ConfigError("a batch must be between 1 and the images there are", got=size, remedy="change --batch")
    first = measure.first_images(images, model, min(len(images), _IMAGES))
    x = native(engine, first)
    meters, why = find_meters() if energy else ([], ["energy was not asked for"])
    record: dict[str, Any] = {
        "bundle": Path(bundle).resolve().name if Path(bundle).exists() else str(bundle),
        "model": model.bundle.spec.name,
        "precision": precision,
        "threshold": router.threshold,
        "promise": measure.promise(model, engine, precision),
        "data": str(data),
        "split": split,
        "empty_classes": empty,
        "threads": pinned,
    }
    with options.Steps() as steps:
        right = _accuracy(model, router, x, images.labels, steps) if precision != "f32" else None
        rows = _time(router, x, sizes, pairs, pinned, steps)
        # Before bare parts, which only profiles run, are in memory too.
        facts = measure.facts(bundle, load_seconds, engine if precision == "f32" else f"{engine} {precision}")
        joules = _energy(router, x, sizes, pinned, meters, steps)
        parts = None
        if stages:
            names = tuple(model.bundle.clusters.names)
            parts = stage_times(
                router, names, x, turns=pairs, threads=pinned, progress=lambda done, all: steps("stages", done, all)
            )
    tables.show_bench(rows, facts)
    tables.show_precision(precision, right)
    tables.show_promise(record["promise"])
    tables.show_stages(parts, joules, why)
    record |= {
        "top1": right,
        "latency": [row.to_json() for row in rows],
        "stages": None if parts is None else parts.to_json(),
        "energy": [row.to_json() for row in joules] if joules else None,
        "energy_not_available": why,
        **facts,
    }
    options.write_json(json, record)
    if results is not None:
        runs.add_run(results, record)


def _time(router: FeatureRouter, x: Any, sizes: list[int], pairs: int, threads: int, steps: options.Steps) -> list[Any]:
    from sinf.timing import latency

    for row in range(0, len(x), 50):
        router(x[row : row + 50])  # makes every part that these images need, before anything is timed
        steps("loading parts", min(row + 50, len(x)), len(x))
    rows = []
    for size in sizes:
        name, count = f"batch {size}", pairs if size == 1 else max(10, pairs // 4)

        def show(done: int, total: int, name: str = name) -> None:
            steps(name, done, total)

        rows.append(latency(router.base, router, x, batch=size, pairs=count, threads=threads, progress=show))
    return rows


def _accuracy(model: Any, router: FeatureRouter, x: Any, labels: Any, steps: options.Steps) -> dict[str, float]:
    """Top-1 of the timed images: the base model in f32, and base and ours in the engine's precision."""
    import numpy as np

    right = {"images": float(len(x)), "base_f32": 0.0, "base": 0.0, "ours": 0.0}
    for row in range(0, len(x), 50):
        some, y = x[row : row + 50], labels[row : row + 50].numpy()
        for name, logits in (
            ("base_f32", model.engine.run("base", some)[0]),
            ("base", router.base(some)),
            ("ours", router(some)),
        ):
            right[name] += float((np.asarray(logits).argmax(1) == y[: len(some)]).sum()) / len(x)
        steps("accuracy", min(row + 50, len(x)), len(x))
    return right


def _energy(
    router: FeatureRouter, x: Any, sizes: list[int], threads: int, meters: list[Any], steps: options.Steps
) -> list[Any]:
    from sinf.energy import energy

    rows = []
    for size in sizes if meters else []:
        name = f"energy, batch {size}"

        def show(done: int, total: int, name: str = name) -> None:
            steps(name, done, total)

        rows += energy(router.base, router, x, meters, batch=size, threads=threads, progress=show)
    return rows


def tune(
    context: typer.Context,
    bundle: options.Bundle,
    engine: Annotated[str, typer.Option(help="torch, torch-compile, onnxruntime or openvino.")] = "torch",
    precision: Annotated[str, typer.Option(help="f32, bf16 (openvino) or int8.")] = "f32",
    data: Annotated[str | None, typer.Option(help="Of int8: a hub id, a folder of parquet shards, or images.")] = None,
    calibrate: Calibrate = "test[:50%]",
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    threads: options.Threads = 1,
    turns: Annotated[int, typer.Option(min=1, help="Measurements of every subgraph at each batch size.")] = 5,
    allow_factory: options.AllowFactory = False,
) -> None:
    """Measure what the tails cost here, batch by batch, and store it in the bundle: small groups of a batch then go to
    the full tail where that is faster."""
    from sinf.bundle import replace_times
    from sinf.engine.engines import open_engine, require_precision
    from sinf.report import tables
    from sinf.tune import measure_tails

    require_precision(engine, precision)
    if (precision == "int8") != (data is not None):
        raise ConfigError(
            "int8 needs images that set its ranges, and only int8", got=data, remedy="--data goes with it"
        )
    if not Path(bundle).is_dir():
        raise ConfigError("only a bundle in a folder can be tuned", got=bundle, remedy="save it to a folder first")
    if options.is_dynamic(bundle, None):
        raise ConfigError("a dynamic bundle has no groups to tune", got=bundle, remedy="leave it as it is")
    options.write_alone(context, Path(bundle))
    pinned = options.set_threads(threads)
    held_out = None if data is None else options.images(data, calibrate, image_column, label_column, None)
    model = options.bundle(bundle, None, allow_factory)
    router = open_engine(model, engine, threads=pinned, precision=precision, calibration=_ranges(model, held_out))
    with options.Steps() as steps:
        found = measure_tails(
            model, router, engine, precision, pinned, turns=turns, progress=lambda done, all: steps("tails", done, all)
        )
    replace_times(Path(bundle), found, options.key())
    tables.show_times(found)


def _ranges(model: SemanticModel, images: LabelledImages | None) -> Tensor | None:
    """Normalised images that show an int8 engine what values to expect."""
    from sinf.measure import first_images

    if images is None:
        return None
    options.require_classes(model, images.classes)
    return first_images(images.sample(_CALIBRATION), model, _CALIBRATION)


def results(
    folder: Annotated[Path, typer.Argument(help="What sinf bench --results has written.")],
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes to show [default: all].")] = None,
    json: options.Json = None,
) -> None:
    """Runs of sinf bench beside each other: one table a machine, oldest first."""
    from sinf.report import runs, tables

    found = runs.read_runs(folder)
    tables.show_runs(found, batch)
    options.write_json(json, {"runs": [{"file": run.file, **run.record} for run in found]})
