"""``sinf bench``, ``sinf tune`` and ``sinf results``: what a bundle saves on the clock, what decides which groups of a
batch are worth their subgraphs, and runs beside each other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sinf.cli import options
from sinf.cli.kinds import Bench, kind_of, open_artefact
from sinf.cli.semantic import CALIBRATION, Semantic, calibration_images
from sinf.errors import ConfigError
from sinf.option import IMAGES, RUN, Option

Calibrate = Annotated[str, Option(f"Of int8: images that set its ranges; {CALIBRATION} of them are taken.", IMAGES)]
Engine = Annotated[str, Option("Where all of it runs: torch, torch-compile, onnxruntime or openvino.")]
Precision = Annotated[str, Option("Precision of all of it: f32, bf16 (openvino) or int8.")]


def bench(
    artefact: options.Artefact,
    data: options.Data,
    machine: options.Machine = options.ONE_THREAD,
    split: options.BenchSplit = "test[50%:]",
    batch: options.Batches = None,
    pairs: options.Pairs = 200,
    base: options.Base = None,
    base_weights: options.BaseWeights = None,
    threshold: options.Threshold = None,
    engine: Engine = "torch",
    precision: Precision = "f32",
    calibrate: Calibrate = "test[:50%]",
    stages: Annotated[bool, Option("Also time every stage and every route, at batch 1.", RUN)] = True,
    energy: Annotated[bool, Option("Also joules, where the machine counts them.", RUN)] = True,
    allow_factory: options.AllowFactory = False,
    results: Annotated[Path | None, Option("Also add the result to this folder (sinf results).", RUN)] = None,
) -> dict[str, Any]:
    """Time beside that of the base model, in turns in one process and one engine; of a bundle also by stage and by
    route, memory, sizes, energy. A pruned model is timed alone without --base."""
    from sinf.engine.engines import require_precision
    from sinf.report import runs

    kind = kind_of(artefact, threshold=threshold, base=base)
    require_precision(engine, precision)
    pinned = machine.pin()
    images = data.images(split)
    held_out = data.images(calibrate) if precision == "int8" else None
    start = time.perf_counter()
    model = open_artefact(artefact, threshold, allow_factory)
    load_seconds = time.perf_counter() - start
    images = options.labelled_as(model.classes, images, data.labels)
    beside = None if base is None else options.base_beside(model, base, base_weights)
    empty = images.warn_of_empty_classes("the benchmark")
    asked = Bench(
        artefact, images, data.data, split, batch, pairs, engine, precision, held_out, pinned, stages, energy, beside,
        load_seconds, empty, machine.memory,
    )  # fmt: skip
    record = {
        "bundle": artefact.resolve().name if artefact.exists() else str(artefact),
        "threshold": None,
        "data": data.data,
        "split": split,
        "empty_classes": empty,
        "threads": pinned,
        **kind.bench(model, asked),
    }
    if results is not None:
        runs.add_run(results, record)
    return record


def tune(
    context: typer.Context,
    bundle: options.Bundle,
    machine: options.Machine = options.ONE_THREAD,
    engine: Engine = "torch",
    precision: Precision = "f32",
    data: Annotated[str | None, Option("Of int8: a hub id, a folder of parquet shards, or images.")] = None,
    calibrate: Calibrate = "test[:50%]",
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    turns: Annotated[int, Option("Measurements of every subgraph at each batch size.", low=1)] = 5,
    allow_factory: options.AllowFactory = False,
) -> None:
    """Measure what the tails cost here, batch by batch, and store it in the bundle: small groups of a batch then go to
    the full tail where that is faster."""
    from sinf.bundle.times import replace_times
    from sinf.cli.room import Room
    from sinf.engine.engines import open_engine, require_precision
    from sinf.load import method_of
    from sinf.measure.tune import BATCHES, measure_tails
    from sinf.report import tables

    require_precision(engine, precision)
    if (precision == "int8") != (data is not None):
        raise ConfigError(
            "int8 needs images that set its ranges, and only int8", got=data, remedy="--data goes with it"
        )
    if not Path(bundle).is_dir():
        raise ConfigError("only a bundle in a folder can be tuned", got=bundle, remedy="save it to a folder first")
    if method_of(bundle) != "semantic":
        raise ConfigError("only a routed bundle has groups to tune", got=bundle, remedy="leave it as it is")
    options.write_alone(context, Path(bundle))
    pinned = machine.pin()
    held_out = None if data is None else options.Data(data, image_column, label_column).images(calibrate)
    model = options.bundle(bundle, allow_factory)
    room = Room(machine.memory, Semantic().need(model), model.preprocessing, held_out)
    if held_out is not None:
        room.calibrate(CALIBRATION)
    largest = room.limit("tails", BATCHES[-1], least=BATCHES[1])  # a line needs two
    room.announce()
    router = open_engine(
        model, engine, threads=pinned, precision=precision, calibration=calibration_images(model, held_out)
    )
    with options.Steps() as steps:
        times = measure_tails(
            model, router, engine, precision, pinned, batches=tuple(size for size in BATCHES if size <= largest),
            turns=turns, progress=lambda done, all: steps("tails", done, all),
        )  # fmt: skip
    replace_times(Path(bundle), times, options.key())
    tables.show_times(times)


def results(
    folder: Annotated[Path, Option("What sinf bench --results has written.", positional=True)],
    batch: Annotated[tuple[int, ...] | None, Option("Batch sizes to show.", otherwise="all")] = None,
) -> dict[str, Any]:
    """Runs of sinf bench beside each other: one table a machine, oldest first."""
    from sinf.report import runs, tables

    records = runs.read_runs(folder)
    tables.show_runs(records, None if batch is None else list(batch))
    return {"runs": [{"file": run.file, **run.record} for run in records]}
