"""``sinf prune``: a base model made smaller for all its classes, and saved as a plain model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinf.cli import options
from sinf.errors import ConfigError

if TYPE_CHECKING:
    from sinf.pruning import LatencyBudget
    from sinf.subgraph.select import Budget, Schedule
    from sinf.train import EpochReport, TrainConfig


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
    low_rank: Annotated[
        bool,
        typer.Option("--low-rank", help="Write convolutions as two smaller ones, instead of removing channels."),
    ] = False,
    criterion: options.Criterion = None,
    score: Annotated[str, typer.Option(help="Images that decide which channels go.")] = "train",
    images: Annotated[int, typer.Option(min=1, help="How many of them, equally many of every class.")] = 4000,
    test: Annotated[str, typer.Option(help="Images to report on, which nothing else has seen.")] = "test[50%:]",
    weight_cost: Annotated[
        float | None,
        typer.Option(help="MACs that loading a weight counts for [default: 0 with --macs, 32 with --latency]."),
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
    pairs: Annotated[int, typer.Option(min=2, help="Measurements of time, base and pruned in turns.")] = 200,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    threads: options.Threads = 1,
    json: options.Json = None,
) -> None:
    """Make a model smaller for all its classes, and save it as a plain one: safetensors and a config, no pickle."""
    from rich.console import Console

    from sinf import pruned as saved
    from sinf.pruning import PruneConfig
    from sinf.pruning import prune as run
    from sinf.report import tables

    pinned = options.set_threads(threads)
    saved.check_target(out)
    options.write_alone(context, out, _work(out))
    config = PruneConfig(
        rule=_rule(ratio, macs, latency, weight_cost, pinned),
        low_rank=low_rank,
        criterion=criterion,
        images=images,
        reconstruct=reconstruct,
        recalibrate=recalibrate,
        finetune=_recipe(finetune, learning_rate, batch, bf16, seed, device),
        round_to=round_to,
        seed=seed,
    )
    columns = (image_column, label_column, None)
    scoring, tested = options.images(data, score, *columns), options.images(data, test, *columns)
    empty = tested.warn_of_empty_classes("the comparison")
    training = None if not finetune else scoring if train == score else options.images(data, train, *columns)
    base = options.base_model(model, weights, classes or scoring.classes, size, mean, std, width)
    console, work = Console(), _work(out)

    def report(epoch: EpochReport) -> None:
        console.print(f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.3f}  {epoch.seconds:.0f} s")

    with options.Steps() as steps:
        smaller = run(base, scoring, config, work, training=training, report=report, progress=steps)
        compared = saved.compare(base, smaller, tested, pairs=pairs, threads=pinned, progress=steps)
    made_by = {
        **({"method": "low rank"} if low_rank else {"criterion": config.criterion_name}),
        "budget": _said(ratio, macs, latency),
        "scoring images": f"{len(scoring.sample(images))} of {score}",
        "reconstructed": "yes" if reconstruct else "no",
        "recalibrated": "yes" if recalibrate else "no",
        "fine-tuned": f"{finetune} epochs on {train}" if finetune else "no",
        "test images": test,
        "seed": seed,
    }
    saved.save(smaller, out, scoring.class_names, made_by=made_by, comparison=compared)
    shutil.rmtree(work, ignore_errors=True)
    tables.show_pruned(compared, out, pinned)
    options.write_json(json, {"folder": str(out), **made_by, **compared.to_json(), "empty_classes": empty})


def _work(out: Path) -> Path:
    return out.with_name(out.name + ".prune")


def _rule(
    ratio: float | None, macs: float | None, latency: float | None, weight_cost: float | None, threads: int
) -> Schedule | Budget | LatencyBudget:
    from sinf.pipeline import WEIGHT_COST
    from sinf.pruning import LatencyBudget
    from sinf.subgraph.select import Budget, Schedule

    given = [
        name for name, value in (("--ratio", ratio), ("--macs", macs), ("--latency", latency)) if value is not None
    ]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ConfigError("give one of --ratio, --macs and --latency", got=got, remedy="e.g. --macs 0.5 to keep half")
    if latency is not None:
        return LatencyBudget(latency, WEIGHT_COST if weight_cost is None else weight_cost, threads)
    if macs is not None:
        return Budget(macs, weight_cost or 0.0)
    if weight_cost is not None:
        raise ConfigError("--weight-cost goes with --macs or --latency", got="--ratio", remedy="leave it out")
    return Schedule(ratio or 0.0, ratio or 0.0)


def _recipe(epochs: int, learning_rate: float, batch: int, bf16: bool, seed: int, device: str) -> TrainConfig | None:
    from sinf.train import TrainConfig

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


def _said(ratio: float | None, macs: float | None, latency: float | None) -> str:
    if ratio is not None:
        return f"{100 * ratio:g} % of the channels removed"
    return f"{100 * macs:g} % of the MACs kept" if macs is not None else f"{100 * (latency or 0):g} % of the time kept"
