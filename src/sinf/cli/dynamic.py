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
from sinf.dynamic.recipe import LABELS_ALONE, TrainConfig
from sinf.errors import ConfigError
from sinf.machine.sizes import DEFAULT
from sinf.option import RUN, Option

if TYPE_CHECKING:
    from sinf.cli.room import Need
    from sinf.data.images import LabelledImages
    from sinf.dynamic.model import DynamicModel
    from sinf.models import BaseModel

Bundle = Annotated[Path, Option("A bundle: a folder made by sinf dynamic train, or a hub id.", positional=True)]


def train(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: options.BundleOut,
    config: TrainConfig,
    threads: options.Threads = None,
    split: options.TrainingSplit = "train",
    validation: options.Validation = None,
    keep_anyway: Annotated[
        bool,
        Option("Write a bundle that takes no less time than the base model all the same, for its fewer MACs.", RUN),
    ] = False,
) -> None:
    """Put gates on a pretrained network and train both. Resumes after a kill; torchrun makes several processes one."""
    from sinf.bundle.folder import require_place
    from sinf.dynamic.bundle import DynamicBundle
    from sinf.dynamic.trainer import EpochReport
    from sinf.dynamic.trainer import train as run
    from sinf.dynamic.verdict import require_faster
    from sinf.models.described import described
    from sinf.report.terminal import Terminal

    distillation, memory = config.distillation, config.memory
    if not distillation.weight and distillation != LABELS_ALONE:
        rule, got = "--temperature softens the answers of the base model", "no --teacher-weight"
        raise ConfigError(rule, got=got, remedy="give it, e.g. 0.9, or leave both out")
    options.set_threads(threads)
    require_place(out)
    work, first = out.with_name(out.name + ".train"), int(os.environ.get("RANK", "0")) == 0
    if first:
        options.write_alone(context, out, work)
    images = data.images(split)
    checked = None if validation is None else data.images(validation)
    base = described(model.load(images))
    images = data.for_model(base, images, memory)
    checked = data.for_model(base, checked, memory)
    images.require_every_class("training")
    if checked is not None:
        checked.warn_of_empty_classes("the validation")
    before = {key: value.detach().clone() for key, value in base.module.state_dict().items()}
    console = Terminal()

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
            expect=(lambda expected: options.announce(expected.line())) if first and config.device == "cpu" else None,
            notice=options.announce,
        )
    if first:
        provenance = {
            "training images": split,
            "epochs": str(config.epochs),
            "target": str(config.target),
            "seed": str(config.seed),
        }
        if distillation.weight:
            provenance["distillation"] = str(distillation)
        bundle = DynamicBundle.of(network, base.spec, before, images.class_names, provenance)
        with options.Steps() as steps:
            require_faster(
                bundle, images, report=options.announce, keep_anyway=keep_anyway,
                progress=lambda done, total: steps("time", done, total),
            )  # fmt: skip
        bundle.save(out, key=options.key())
        console.print(f"bundle: {out} (checkpoint: {work})")


def evaluate(
    bundle: Bundle,
    data: options.Data,
    machine: options.Machine,
    split: Annotated[str, Option("Images that were not used to train.")] = "test",
    allow_factory: options.AllowFactory = False,
    figure: Annotated[
        Path | None, Option("Also draw MACs by difficulty, similarities, and classes by layer: a PNG.")
    ] = None,
) -> dict[str, Any]:
    """Accuracy of base model and bundle, and how the MACs of inputs are spread."""
    from sinf.cli.room import fit
    from sinf.dynamic.manifold import explore
    from sinf.report import dynamic_figure

    if figure is not None:
        dynamic_figure.require()  # before the work

    machine.pin()
    model = _load(bundle, allow_factory)
    images = data.for_artefact(model, split)
    kind = Dynamic()
    fit(machine.memory, "evaluation", kind.need(model), model.preprocessing, images)
    with options.Steps() as steps:
        result = kind.evaluate(model, images, None, lambda done, total: steps("evaluating", done, total))
    kind.show_evaluation(result)
    if figure is not None:
        print(f"figure: {dynamic_figure.draw(explore(model, images), list(model.bundle.class_names), figure)}")
    record: dict[str, Any] = result.to_json()
    return record


def bench(
    bundle: Bundle,
    data: options.Data,
    machine: options.Machine = options.ONE_THREAD,
    split: options.BenchSplit = "test",
    batch: options.Batches = None,
    pairs: options.Pairs = 200,
    engine: Annotated[str, Option("What runs both: torch or onnxruntime (batch 1).")] = "torch",
    allow_factory: options.AllowFactory = False,
) -> dict[str, Any]:
    """Latency of base model and bundle, in turns in one process and one engine."""
    pinned = machine.pin()
    start = time.perf_counter()
    model = _load(bundle, allow_factory)
    load_seconds = time.perf_counter() - start
    images = data.for_artefact(model, split)
    asked = Bench(
        bundle, images, data.data, split, batch, pairs, engine, "f32", None, pinned, False, False, None, load_seconds,
        images.warn_of_empty_classes("the benchmark"), machine.memory,
    )  # fmt: skip
    return {**Dynamic().bench(model, asked), "empty_classes": asked.empty}


def export(
    context: typer.Context,
    bundle: Bundle,
    out: Annotated[Path, Option("The file, which ends in .onnx.", positional=True)],
    memory: options.Memory = DEFAULT,
    allow_factory: options.AllowFactory = False,
) -> None:
    """Write a bundle as one ONNX file for batches of one; it is compared with the bundle first."""
    options.write_alone(context, out)
    model, kind, asked = _load(bundle, allow_factory), Dynamic(), Export(out, "onnx", None, "f32", None, None, "test")
    asked.fit(memory, kind.need(model), model.preprocessing)
    kind.export(model, asked)


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
        from sinf.dynamic.onnx import largest_batch, open_engine
        from sinf.engine.engines import native
        from sinf.measure import accuracy as measure
        from sinf.measure.timing import latency
        from sinf.report import tables

        if asked.precision != "f32":
            raise ConfigError("dynamic bundles compute in f32", got=asked.precision, remedy="leave out --precision")
        largest = largest_batch(asked.engine)
        default = (1, 32) if largest is None else (1,)
        sizes, x = asked.plan(self.need(model), model.preprocessing, default, largest)
        base, gated = open_engine(model, asked.engine, asked.threads)
        rows = []
        with options.Steps() as steps:
            for size in sizes:
                rows.append(
                    latency(
                        base,
                        gated,
                        native(asked.engine, x),
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
        if asked.precision != "f32":
            raise ConfigError("a dynamic bundle computes in f32", got=asked.precision, remedy="leave out --precision")
        with options.Steps() as steps, steps.once("exporting"):
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
