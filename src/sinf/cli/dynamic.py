"""``sinf dynamic train``, ``eval``, ``bench`` and ``export``: dynamic pruning. The verbs without ``dynamic`` take its
bundles too."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sinf.cli import options
from sinf.cli.kinds import Bench, Export, Kind, Progress
from sinf.errors import ConfigError

if TYPE_CHECKING:
    from sinf.cli.room import Need
    from sinf.data.images import LabelledImages
    from sinf.dynamic.model import DynamicModel
    from sinf.models import BaseModel

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
    labels: options.Labels = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16, gates apart.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    threads: options.Threads = None,
    memory: options.Memory = options.MEMORY,
) -> None:
    """Put gates on a pretrained network and train both. Resumes after a kill; torchrun makes several processes one."""
    from rich.console import Console

    from sinf.bundle.folder import require_place
    from sinf.dynamic.bundle import DynamicBundle
    from sinf.dynamic.network import GateConfig
    from sinf.dynamic.targets import Target
    from sinf.dynamic.trainer import EpochReport, TrainConfig
    from sinf.dynamic.trainer import train as run
    from sinf.machine.memory import parse

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
    checked = None if validation is None else options.images(data, validation, image_column, label_column, None)
    base = options.base_model(model, weights, classes, size, mean, std, width, images=images)
    images = options.as_classes_of(base, images, labels, memory)
    checked = options.as_classes_of(base, checked, labels, memory)
    images.require_every_class("training")
    if checked is not None:
        checked.warn_of_empty_classes("the validation")
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
    memory: options.Memory = options.MEMORY,
    labels: options.Labels = None,
    allow_factory: options.AllowFactory = False,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw MACs by difficulty, similarities, and classes by layer: a PNG.")
    ] = None,
    json: options.Json = None,
) -> None:
    """Accuracy, base beside ours, and how the MACs of inputs are spread."""
    from sinf.cli.room import fit
    from sinf.dynamic.manifold import explore
    from sinf.report import dynamic_figure

    if figure is not None:
        dynamic_figure.require()  # before the work

    options.set_threads(threads)
    model = _load(bundle, allow_factory)
    images = options.images(data, split, image_column, label_column, None)
    images = options.labelled_as(model, images, labels)
    kind = Dynamic()
    fit(memory, "evaluation", kind.need(model), model.preprocessing, images)
    with options.Steps() as steps:
        result = kind.evaluate(model, images, None, lambda done, total: steps("evaluating", done, total))
    kind.show_evaluation(result)
    if figure is not None:
        print(f"figure: {dynamic_figure.draw(explore(model, images), list(model.bundle.class_names), figure)}")
    options.write_json(json, result.to_json())


@app.command()
def bench(
    bundle: Bundle,
    data: options.Data,
    split: Annotated[str, typer.Option(help="Images like those of the application.")] = "test",
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes; may be repeated [default: 1 and 32].")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Measurements of each, base and ours in turns.")] = 200,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    labels: options.Labels = None,
    engine: Annotated[str, typer.Option(help="What runs both: torch or onnxruntime (batch 1).")] = "torch",
    threads: options.Threads = 1,
    memory: options.Memory = options.MEMORY,
    allow_factory: options.AllowFactory = False,
    json: options.Json = None,
) -> None:
    """Latency of base and ours, in turns in one process and one engine."""
    pinned = options.set_threads(threads)
    start = time.perf_counter()
    model = _load(bundle, allow_factory)
    load_seconds = time.perf_counter() - start
    images = options.images(data, split, image_column, label_column, None)
    images = options.labelled_as(model, images, labels)
    asked = Bench(
        bundle, images, data, split, batch, pairs, engine, "f32", None, pinned, False, False, None, load_seconds,
        images.warn_of_empty_classes("the benchmark"), memory,
    )  # fmt: skip
    options.write_json(json, {**Dynamic().bench(model, asked), "empty_classes": asked.empty})


@app.command()
def export(
    context: typer.Context,
    bundle: Bundle,
    out: Annotated[Path, typer.Argument(help="The file, which ends in .onnx.")],
    allow_factory: options.AllowFactory = False,
) -> None:
    """Write a bundle as one ONNX file for batches of one; it is compared with the bundle first."""
    options.write_alone(context, out)
    Dynamic().export(_load(bundle, allow_factory), Export(out, "onnx", None, None, None, "test"))


class Dynamic(Kind):
    refuses: ClassVar = {
        "threshold": "a dynamic bundle has no fallback",
        "base": "a bundle holds its base model",
    }

    def evaluate(self, model: DynamicModel, images: LabelledImages, base: BaseModel | None, progress: Progress) -> Any:
        from sinf.dynamic.model import evaluate

        return evaluate(model, images, progress=progress)

    def show_evaluation(self, result: Any) -> None:
        from sinf.report import tables

        tables.show_dynamic(result)

    def need(self, model: DynamicModel) -> Need:
        from sinf.cli.room import Need

        # A mask makes a product, and what is masked is there besides.
        return Need.of(model.network.graph, copies=4, largest=3)

    def bench(self, model: DynamicModel, asked: Bench) -> dict[str, Any]:
        from sinf.dynamic.onnx import open_engine
        from sinf.measure import accuracy as measure
        from sinf.measure.timing import latency
        from sinf.report import tables

        if asked.precision != "f32":
            raise ConfigError("dynamic bundles compute in f32", got=asked.precision, remedy="leave out --precision")
        torch = asked.engine == "torch"
        default, largest = ((1, 32), None) if torch else ((1,), 1)
        sizes, x = asked.plan(self.need(model), model.preprocessing, default, largest)
        base, ours = open_engine(model, asked.engine, asked.threads)
        rows = []
        with options.Steps() as steps:
            for size in sizes:
                rows.append(
                    latency(
                        base,
                        ours,
                        x if torch else x.numpy(),
                        batch=size,
                        pairs=asked.pairs if size == 1 else max(10, asked.pairs // 4),
                        threads=asked.threads,
                        progress=lambda done, total, name=f"batch {size}": steps(name, done, total),  # type: ignore[misc]
                    )
                )
        facts = measure.facts(asked.source, asked.load_seconds, asked.engine)
        tables.show_bench(rows, facts)
        return {"model": model.bundle.spec.name, "latency": [row.to_json() for row in rows], **facts}

    def export(self, model: DynamicModel, asked: Export) -> None:
        from sinf.dynamic.onnx import export
        from sinf.report import tables

        if asked.file_format != "onnx":
            got, remedy = asked.file_format, "leave out --format"
            raise ConfigError("dynamic bundles are exported as ONNX", got=got, remedy=remedy)
        if asked.layout == "split":
            raise ConfigError("a dynamic bundle is one part", got="--layout split", remedy="leave it out")
        export(model, asked.out)
        tables.show_export(asked.out, asked.out.stat().st_size)

    def show_predictions(self, records: list[dict[str, Any]]) -> None:
        from sinf.report import tables

        tables.show_choices(records)

    def parts(self, model: DynamicModel) -> dict[str, dict[str, float]]:
        network = model.network
        gates = sum(p.numel() for index in range(len(network.sites)) for p in network.gate(index).parameters())
        return {"all gates": {"macs": network.gate_macs(), "parameters": gates}}


def _load(folder: Path, allow_factory: bool) -> DynamicModel:
    from sinf.dynamic.model import DynamicModel

    return DynamicModel.from_pretrained(folder, allow_factory=allow_factory, key=options.key())
