"""``sinf profile`` and ``sinf train``: what concerns the base model alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from sinf.cli import options
from sinf.cli.kinds import is_bundle, kind_of, open_artefact
from sinf.errors import ConfigError, DataWarning


def profile(
    model: options.Model,
    weights: options.Weights = None,
    classes: options.Classes = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    width: options.Width = None,
    threads: options.Threads = 1,
    allow_factory: options.AllowFactory = False,
    json: options.Json = None,
) -> None:
    """Where the time of a model goes, which channels go together, and where it can be cut.

    Of a bundle it is that of its base model, and what the parts cost."""
    from sinf.measure.profile import profile as run
    from sinf.report import artefacts, tables

    parts: dict[str, dict[str, float]] = {}
    if is_bundle(Path(model)):
        if any(given is not None for given in (weights, classes, size, mean, std, width)):
            raise ConfigError(
                "a bundle says itself what its model is", got="options besides it", remedy="leave them out"
            )
        bundle = open_artefact(Path(model), None, allow_factory)
        base, parts = bundle.base_model(), kind_of(model).parts(bundle)
    else:
        base = options.base_model(model, weights, classes, size, mean, std, width)
    result = run(base, threads=options.set_threads(threads))
    tables.show_profile(result)
    artefacts.show_parts(parts)
    options.write_json(json, result.to_json() | ({"parts": parts} if parts else {}))


def train(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Folder for checkpoint and weights; the same command resumes.")],
    split: Annotated[str, typer.Option(help="Images to train on.")] = "train",
    validation: Annotated[str | None, typer.Option(help="Images to report accuracy on after every epoch.")] = None,
    width: options.Width = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    labels: options.Labels = None,
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 30,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak of the one-cycle schedule.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty of weights, norms and biases apart.")] = 5e-4,
    label_smoothing: Annotated[float, typer.Option(help="Share of the label spread over all classes.")] = 0.1,
    average: Annotated[float, typer.Option(help="Decay of the weight average an epoch; 0 for none.")] = 0.0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Also write the weights in float16.")] = False,
    keep_batch_norm: Annotated[
        bool, typer.Option("--keep-batch-norm", help="Of a pruned model: write it for training on, with batch norms.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    threads: options.Threads = None,
    memory: options.Memory = options.MEMORY,
) -> None:
    """Train a network from random weights, or a pruned one further, which is then written as a folder again.

    SGD with Nesterov, one-cycle, label smoothing, crop, flip. Resumes after a kill."""
    from rich.console import Console

    from sinf.bundle.plain import has_batch_norms
    from sinf.cli.room import fit_training
    from sinf.models import REFERENCE_NAMES
    from sinf.models.load import read_plain
    from sinf.pipelines import comparison as pruned
    from sinf.training.train import TrainConfig, save_half
    from sinf.training.train import train as run

    options.set_threads(threads)
    config = TrainConfig(
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        average=average,
        bf16=bf16,
        seed=seed,
        device=device,
    )
    options.write_alone(context, out)
    images = options.images(data, split, image_column, label_column, None)
    checked = None if validation is None else options.images(data, validation, image_column, label_column, None)
    base = options.base_model(
        model, None, None, size=size, mean=mean, std=std, width=width, images=images, pretrained=False
    )
    images = options.as_classes_of(base, images, labels, memory)
    checked = options.as_classes_of(base, checked, labels, memory)
    images.require_every_class("training")
    if checked is not None:
        checked.warn_of_empty_classes("the validation")
    further = read_plain(Path(model)) if Path(model).is_dir() and model not in REFERENCE_NAMES else None
    if further is not None and not has_batch_norms(base.module):
        text = f"{model} has no batch norms, and trains badly without: sinf prune --keep-batch-norm writes them"
        warnings.warn(text, DataWarning, stacklevel=2)
    fit_training(memory, base, images, checked, batch=batch, on_cpu=device == "cpu")
    console = Console()
    with options.Steps() as steps:
        trained = run(
            base.spec,
            images,
            out,
            config,
            start=base.module.state_dict() if further is not None or base.spec.is_factory else None,
            validation=checked,
            report=lambda r: console.print(
                f"epoch {r.epoch}/{r.epochs}  loss {r.loss:.3f}"
                + ("" if r.top1 is None else f"  top-1 {100 * r.top1:.2f} %")
                + f"  {r.seconds:.0f} s"
            ),
            progress=lambda done, total: steps("training", done, total),
        )
    if further is not None:
        place = out / "pruned"
        made_by = {**further.made_by, "trained further": f"{epochs} epochs on {split}"}
        pruned.save(
            trained, place, list(further.class_names), made_by=made_by, keep_batch_norm=keep_batch_norm,
            key=options.key(),
        )  # fmt: skip
        console.print(f"pruned model: {place}", soft_wrap=True)
    if half:
        save_half(trained, out / "model-half.safetensors")
    console.print(f"weights: {out / 'model.safetensors'}")
