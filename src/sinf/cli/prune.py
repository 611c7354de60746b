"""``sinf prune``: a base model made smaller for all its classes, and saved as a plain model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinf.cli import options
from sinf.errors import ConfigError

if TYPE_CHECKING:
    from sinf.compress.select import Budget, Schedule
    from sinf.pipelines.prune import LatencyBudget
    from sinf.training.train import EpochReport, TrainConfig


def prune(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Folder for the pruned model; the same command resumes.")],
    weights: options.Weights = None,
    ratio: Annotated[float | None, typer.Option(help="Fraction of channels removed, the same in every layer.")] = None,
    macs: Annotated[
        float | None, typer.Option(help="Instead: fraction of MACs kept, spent where it costs least.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option(help="Instead: fraction of the measured time kept (batch 1), e.g. 0.7.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="channels (removed), ranks (a layer becomes two smaller ones), depth (residual branches become "
            "constants), or auto: the better of the first two."
        ),
    ] = "auto",
    max_loss: Annotated[
        float,
        typer.Option(help="Points that held-out images may lose; without a budget as much goes as this allows."),
    ] = 2.0,
    keep_anyway: Annotated[
        bool, typer.Option("--keep-anyway", help="Write a network that loses more, or is not faster, all the same.")
    ] = False,
    criterion: options.Criterion = None,
    validate: Annotated[
        str | None,
        typer.Option(
            help="Images that estimate the loss, best some that the model was not trained on [default: a share of the "
            "images that decide is held out]."
        ),
    ] = None,
    held_out: Annotated[float, typer.Option(help="That share.")] = 0.2,
    score: Annotated[str, typer.Option(help="Images that decide which channels go.")] = "train",
    images: Annotated[int, typer.Option(min=1, help="How many of them, equally many of every class.")] = 4000,
    test: Annotated[str, typer.Option(help="Images to report on, which nothing else has seen.")] = "test[50%:]",
    weight_cost: Annotated[
        float | None,
        typer.Option(help="MACs that loading a weight counts for [default: 0 with --macs, else 32]."),
    ] = None,
    round_to: Annotated[
        int, typer.Option(min=1, help="Widths of layers are multiples of this; 16 suits processors with AVX-512.")
    ] = 8,
    reconstruct: Annotated[bool, typer.Option(help="Let the weights that stay make up for removed channels.")] = True,
    recalibrate: Annotated[bool, typer.Option(help="Take batch-norm statistics from the scoring images.")] = False,
    finetune: Annotated[int, typer.Option(min=0, help="Epochs of training, with the base model as the teacher.")] = 0,
    train: Annotated[str, typer.Option(help="Images to fine-tune on.")] = "train",
    learning_rate: Annotated[float, typer.Option(help="Of fine-tuning: peak of the one-cycle schedule.")] = 0.02,
    batch: Annotated[int, typer.Option(help="Of fine-tuning: images a step.")] = 128,
    bf16: Annotated[bool, typer.Option("--bf16", help="Fine-tune in bfloat16.")] = False,
    device: Annotated[str, typer.Option(help="Of fine-tuning: cpu, cuda, cuda:1, ...")] = "cpu",
    classes: options.Classes = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    width: options.Width = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    labels: options.Labels = None,
    pairs: Annotated[int, typer.Option(min=2, help="Measurements of time, base and pruned in turns.")] = 200,
    keep_batch_norm: Annotated[
        bool, typer.Option("--keep-batch-norm", help="Save for training on: batch norms stay, which is slower to run.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Keep statistics and results of steps here: every later budget and method finds what is the same "
            "[default: beside --out, and removed at the end]."
        ),
    ] = None,
    threads: options.Threads = 1,
    memory: options.Memory = options.MEMORY,
    json: options.Json = None,
) -> None:
    """Make a model smaller for all its classes, and save it as a plain one: safetensors and a config, no pickle."""
    from rich.console import Console

    from sinf.graph.cost import WEIGHT_COST
    from sinf.machine.memory import parse
    from sinf.measure.delivery import Limits, describe_times
    from sinf.pipelines import comparison as saved
    from sinf.pipelines.prune import PruneConfig
    from sinf.pipelines.prune import prune as run
    from sinf.pipelines.prune_config import describe
    from sinf.report import tables

    pinned = options.set_threads(threads)
    saved.check_target(out)
    options.write_alone(context, out, *([] if work else [_work(out)]))
    config = PruneConfig(
        rule=_rule(ratio, macs, latency, weight_cost, pinned),
        method=method,
        limits=Limits(max_loss / 100, held_out, threads=pinned, keep_anyway=keep_anyway),
        criterion=criterion,
        images=images,
        reconstruct=reconstruct,
        recalibrate=recalibrate,
        finetune=_recipe(finetune, learning_rate, batch, bf16, seed, device),
        round_to=round_to,
        weight_cost=WEIGHT_COST if weight_cost is None else weight_cost,
        seed=seed,
        memory=parse(memory),
    )
    columns = (image_column, label_column, None, bool(finetune))
    scoring, tested = options.images(data, score, *columns), options.images(data, test, *columns)
    training = None if not finetune else scoring if train == score else options.images(data, train, *columns)
    validation = None if validate is None else options.images(data, validate, *columns)
    base = options.base_model(model, weights, classes, size, mean, std, width, images=scoring)
    same = training is scoring
    scoring, tested = (options.as_classes_of(base, part, labels, memory) for part in (scoring, tested))
    training = scoring if same else options.as_classes_of(base, training, labels, memory)
    validation = options.as_classes_of(base, validation, labels, memory)
    empty = tested.warn_of_empty_classes("the comparison")
    console, steps_folder = Console(), work or _work(out)

    def report(epoch: EpochReport) -> None:
        console.print(f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.3f}  {epoch.seconds:.0f} s")

    with options.Steps() as steps:
        smaller = run(
            base,
            scoring,
            config,
            steps_folder,
            validation=validation,
            training=training,
            report=report,
            progress=steps,
            expect=lambda expected: options.announce(expected.line()),
            notice=options.announce,
        )  # fmt: skip
        expected = f"by {smaller.method}, {describe(smaller.rule)}: expected loss {smaller.expected}"
        console.print(f"{expected}; {describe_times(smaller.times)}")
        compared = saved.compare(
            base,
            smaller,
            tested,
            pairs=pairs,
            threads=pinned,
            keep_batch_norm=keep_batch_norm,
            progress=steps,
            memory=config.memory,
        )
    made_by = {
        "method": smaller.method,
        **({"criterion": config.criterion_name} if smaller.method == "channels" else {}),
        "asked for": describe(config.rule) + f", at most {max_loss:g} points",
        "made": describe(smaller.rule),
        "expected loss": str(smaller.expected),
        "scoring images": f"{len(scoring.sample(images))} of {score}",
        "reconstructed": "yes" if reconstruct else "no",
        "recalibrated": "yes" if recalibrate else "no",
        "fine-tuned": f"{finetune} epochs on {train}" if finetune else "no",
        "test images": test,
        "seed": seed,
    }
    saved.save(
        smaller, out, scoring.class_names, made_by=made_by, comparison=compared, keep_batch_norm=keep_batch_norm,
        key=options.key(),
    )  # fmt: skip
    if work is None:
        shutil.rmtree(steps_folder, ignore_errors=True)
    tables.show_pruned(compared, out, pinned)
    estimate = {"expected_loss": None if smaller.expected is None else smaller.expected.to_json()}
    options.write_json(json, {"folder": str(out), **made_by, **estimate, **compared.to_json(), "empty_classes": empty})


def _work(out: Path) -> Path:
    return out.with_name(out.name + ".prune")


def _rule(
    ratio: float | None, macs: float | None, latency: float | None, weight_cost: float | None, threads: int
) -> Schedule | Budget | LatencyBudget | None:
    from sinf.compress.select import Budget, Schedule
    from sinf.graph.cost import WEIGHT_COST
    from sinf.pipelines.prune import LatencyBudget

    given = [
        name for name, value in (("--ratio", ratio), ("--macs", macs), ("--latency", latency)) if value is not None
    ]
    if len(given) > 1:
        got = " and ".join(given)
        raise ConfigError("give one of --ratio, --macs and --latency", got=got, remedy="e.g. --macs 0.5 to keep half")
    if not given:
        return None
    if latency is not None:
        return LatencyBudget(latency, WEIGHT_COST if weight_cost is None else weight_cost, threads)
    if macs is not None:
        return Budget(macs, weight_cost or 0.0)
    if weight_cost is not None:
        raise ConfigError("--weight-cost goes with --macs or --latency", got="--ratio", remedy="leave it out")
    return Schedule(ratio or 0.0, ratio or 0.0)


def _recipe(epochs: int, learning_rate: float, batch: int, bf16: bool, seed: int, device: str) -> TrainConfig | None:
    from sinf.training.train import TrainConfig

    if not epochs:
        return None
    return TrainConfig(
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        label_smoothing=0.0,
        bf16=bf16,
        seed=seed,
        device=device,
    )
