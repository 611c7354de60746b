"""``sinf dynamic train``, ``eval``, ``bench`` and ``export``: dynamic pruning. The verbs without ``dynamic`` take its
bundles too."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinf.cli import options
from sinf.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sinf.dynamic.model import DynamicModel

app = typer.Typer(no_args_is_help=True, help="Dynamic pruning: every input gets its own set of channels.")

Bundle = Annotated[Path, typer.Argument(help="A bundle: a folder made by sinf dynamic train, or a hub id.")]


@app.command()
def train(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Folder for the bundle; the same command resumes.")],
    weights: options.Weights = None,
    split: Annotated[str, typer.Option(help="Images to train on.")] = "train",
    validation: Annotated[str | None, typer.Option(help="Images to report accuracy on after every epoch.")] = None,
    macs: Annotated[
        float | None, typer.Option(help="Aim at this share of the base model's MACs [default: 0.5].")
    ] = None,
    latency: Annotated[
        float | None, typer.Option(help="Aim instead at this share of its measured time, one image at a time.")
    ] = None,
    channels: Annotated[float | None, typer.Option(help="Aim instead at this share of channels, as the paper.")] = None,
    method: Annotated[str, typer.Option(help="manidp; fbs or static as baselines.")] = "manidp",
    site: Annotated[list[str] | None, typer.Option(help="Convolution to gate; may be repeated [default: all].")] = None,
    squeeze: Annotated[float | None, typer.Option(help="How much narrower a gate is inside [default: paper].")] = None,
    mask: Annotated[str, typer.Option(help="scaled (by the saliency) or binary.")] = "scaled",
    block: Annotated[int, typer.Option(help="Neighbouring channels that are decided together; 16 is faster.")] = 1,
    epochs: Annotated[int, typer.Option(help="Passes over the images; the paper's are 400.")] = 40,
    batch: Annotated[int, typer.Option(help="Images a step, of all processes together.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="At the start; it falls along a cosine.")] = 0.05,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty of weights; gates have none.")] = 5e-4,
    complexity: Annotated[float, typer.Option(help="Weight of the complexity loss.")] = 0.005,
    similarity: Annotated[float, typer.Option(help="Weight of the similarity loss.")] = 1.0,
    ramp: Annotated[float, typer.Option(help="Share of the training at which the target is reached.")] = 1.0,
    updates: Annotated[int, typer.Option(help="How often an epoch thresholds move.")] = 1,
    classes: options.Classes = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    width: options.Width = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16, gates apart.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    threads: options.Threads = None,
    memory: options.Memory = options.MEMORY,
) -> None:
    """Put gates on a pretrained network and train both. Resumes after a kill; torchrun makes several processes one."""
    from rich.console import Console

    from sinf.bundle_files import require_place
    from sinf.dynamic.bundle import DynamicBundle
    from sinf.dynamic.network import GateConfig
    from sinf.dynamic.targets import Target
    from sinf.dynamic.trainer import EpochReport, TrainConfig
    from sinf.dynamic.trainer import train as run
    from sinf.memory import parse

    options.set_threads(threads)
    config = TrainConfig(
        target=Target(channels, 0.5 if macs is channels is latency is None else macs, latency),
        gates=GateConfig(method, squeeze, mask, block, None if site is None else tuple(site)),
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        complexity=complexity,
        similarity=similarity,
        ramp=ramp,
        updates=updates,
        bf16=bf16,
        seed=seed,
        device=device,
        memory=parse(memory),
    )
    require_place(out)
    work, first = out.with_name(out.name + ".train"), int(os.environ.get("RANK", "0")) == 0
    if first:
        options.write_alone(context, out, work)
    images = options.images(data, split, image_column, label_column, None)
    images.require_every_class("training")
    checked = None if validation is None else options.images(data, validation, image_column, label_column, None)
    if checked is not None:
        checked.warn_of_empty_classes("the validation")
    base = options.base_model(model, weights, classes or images.classes, size, mean, std, width)
    before = {key: value.detach().clone() for key, value in base.module.state_dict().items()}
    console = Console()

    def report(r: EpochReport) -> None:
        accuracy = "" if r.top1 is None else f"  top-1 {100 * r.top1:.2f} %"
        console.print(
            f"epoch {r.epoch}/{r.epochs}  loss {r.loss:.3f}  channels {100 * r.remaining:.1f} %"
            f"  MACs {100 * r.macs:.1f} %{accuracy}  {r.seconds:.0f} s"
        )

    with options.Steps() as steps:
        network = run(
            base,
            images,
            work,
            config,
            validation=checked,
            report=report,
            progress=lambda done, total: steps("training", done, total),
            finishing=lambda done, total: steps("thresholds", done, total),
            expect=(lambda expected: options.announce(expected.line())) if first and device == "cpu" else None,
            notice=options.announce,
        )
    if first:
        provenance = {
            "training images": split,
            "epochs": str(epochs),
            "target": str(config.target),
            "seed": str(seed),
        }
        DynamicBundle.of(network, base.spec, before, images.class_names, provenance).save(out, key=options.key())
        console.print(f"bundle: {out} (checkpoint: {work})")


@app.command("eval")
def evaluate(
    bundle: Bundle,
    data: options.Data,
    split: Annotated[str, typer.Option(help="Images that were not used to train.")] = "test",
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    threads: options.Threads = None,
    allow_factory: options.AllowFactory = False,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw MACs by difficulty, similarities, and classes by layer: a PNG.")
    ] = None,
    json: options.Json = None,
) -> None:
    """Accuracy, base beside ours, and how the MACs of inputs are spread."""
    from sinf.dynamic.manifold import explore
    from sinf.dynamic.model import evaluate as run
    from sinf.report import dynamic_figure, tables

    if figure is not None:
        dynamic_figure.require()  # before the work

    options.set_threads(threads)
    model = _load(bundle, allow_factory)
    images = options.images(data, split, image_column, label_column, None)
    options.require_classes(model, images.classes)
    with options.Steps() as steps:
        result = run(model, images, progress=lambda done, total: steps("evaluating", done, total))
    tables.show_dynamic(result)
    if figure is not None:
        print(f"figure: {dynamic_figure.draw(explore(model, images), list(model.bundle.class_names), figure)}")
    options.write_json(json, result.to_json())


def predict(
    bundle: Path, image: list[Path], top: int, threads: int | None, allow_factory: bool, json: Path | None
) -> None:
    """Classes with probabilities, the MACs and the time, of every image."""
    import numpy as np
    import torch

    from sinf.report import tables

    options.set_threads(threads)
    model = _load(bundle, allow_factory)
    preprocessing = model.bundle.spec.preprocessing
    records = []
    for path in image:
        if not path.is_file():
            raise DataError("the image must exist", got=path, remedy="check the path")
    pixels = [preprocessing.decode(path, str(path)) for path in image]
    batch = preprocessing.normalise(torch.from_numpy(np.stack(pixels)))
    chosen = model.choose(batch)
    model(batch[:1])  # so that what is timed is the inference
    for row, path in enumerate(image):
        start = time.perf_counter()
        logits = model(batch[row : row + 1])
        elapsed = 1000 * (time.perf_counter() - start)
        best = logits.softmax(1)[0].topk(min(top, logits.shape[1]))
        macs = float(chosen.macs[row])
        records.append(
            {
                "image": str(path),
                "classes": [
                    {"name": model.bundle.class_names[i], "probability": p}
                    for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                ],
                "macs": macs,
                "macs_share": macs / model.network.base_macs,
                "milliseconds": elapsed,
            }
        )
    tables.show_choices(records)
    options.write_json(json, {"predictions": records})


@app.command()
def bench(
    bundle: Bundle,
    data: options.Data,
    split: Annotated[str, typer.Option(help="Images like those of the application.")] = "test",
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes; may be repeated [default: 1 and 32].")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Measurements of each, base and ours in turns.")] = 200,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    engine: Annotated[str, typer.Option(help="What runs both: torch or onnxruntime (batch 1).")] = "torch",
    threads: options.Threads = 1,
    allow_factory: options.AllowFactory = False,
    json: options.Json = None,
) -> None:
    """Latency of base and ours, in turns in one process and one engine."""
    from sinf import measure
    from sinf.dynamic.onnx import open_engine
    from sinf.report import tables
    from sinf.timing import latency

    pinned = options.set_threads(threads)
    start = time.perf_counter()
    model = _load(bundle, allow_factory)
    base, ours = open_engine(model, engine, pinned)
    load_seconds = time.perf_counter() - start
    images = options.images(data, split, image_column, label_column, None)
    options.require_classes(model, images.classes)
    empty = images.warn_of_empty_classes("the benchmark")
    sizes = batch or ([1, 32] if engine == "torch" else [1])
    for size in sizes:
        if not 1 <= size <= len(images) or (size > 1 and engine != "torch"):
            limit = len(images) if engine == "torch" else 1
            raise ConfigError(f"a batch must be between 1 and {limit} here", got=size, remedy="change --batch")
    preprocessing = model.bundle.spec.preprocessing
    x = preprocessing.normalise(images.pixels(preprocessing, 0, min(len(images), 2000)))
    rows = []
    with options.Steps() as steps:
        for size in sizes:
            rows.append(
                latency(
                    base,
                    ours,
                    x if engine == "torch" else x.numpy(),
                    batch=size,
                    pairs=pairs if size == 1 else max(10, pairs // 4),
                    threads=pinned,
                    progress=lambda done, total, name=f"batch {size}": steps(name, done, total),  # type: ignore[misc]
                )
            )
    facts = measure.facts(bundle, load_seconds, engine)
    tables.show_bench(rows, facts)
    options.write_json(json, {"latency": [row.to_json() for row in rows], "empty_classes": empty, **facts})


@app.command()
def export(
    context: typer.Context,
    bundle: Bundle,
    out: Annotated[Path, typer.Argument(help="The file, which ends in .onnx.")],
    allow_factory: options.AllowFactory = False,
) -> None:
    """Write a bundle as one ONNX file for batches of one; it is compared with the bundle first."""
    from sinf.dynamic.onnx import export as run
    from sinf.report import tables

    options.write_alone(context, out)
    run(_load(bundle, allow_factory), out)
    tables.show_export(out, out.stat().st_size)


def _load(folder: Path, allow_factory: bool) -> DynamicModel:
    from sinf.dynamic.model import DynamicModel

    return DynamicModel.from_pretrained(folder, allow_factory=allow_factory, key=options.key())
