"""``sinf profile`` and ``sinf train``: what concerns the base model alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from sinf.cli import options
from sinf.cli.kinds import is_bundle, kind_of, open_artefact
from sinf.errors import ConfigError, DataWarning
from sinf.option import RUN, Option
from sinf.training.recipe import TrainConfig


def profile(
    model: options.Model, machine: options.Machine = options.ONE_THREAD, allow_factory: options.AllowFactory = False
) -> dict[str, Any]:
    """Where the time of a model goes, which channels go together, and where it can be cut.

    Of a bundle it is that of its base model, and what the parts cost."""
    from sinf.cli.room import Need, fit
    from sinf.measure.profile import profile as run
    from sinf.report import artefacts, tables

    parts: dict[str, dict[str, float]] = {}
    name = model.model
    if is_bundle(Path(name)):
        if model != options.Model(name):
            raise ConfigError(
                "a bundle says itself what its model is", got="options besides it", remedy="leave them out"
            )
        bundle = open_artefact(Path(name), None, allow_factory)
        base, parts = bundle.base_model(), kind_of(name).parts(bundle)
    else:
        base = model.load()
    fit(machine.memory, "profile", Need.of_model(base), base.spec.preprocessing, most=1)
    result = run(base, threads=machine.pin())
    tables.show_profile(result)
    artefacts.show_parts(parts)
    return result.to_json() | ({"parts": parts} if parts else {})


def train(
    context: typer.Context,
    model: options.Network,
    data: options.Data,
    out: Annotated[Path, Option("Folder for checkpoint and weights; the same command resumes.")],
    config: TrainConfig,
    machine: options.Machine,
    split: options.TrainingSplit = "train",
    validation: options.Validation = None,
    half: Annotated[bool, Option("Also write the weights in float16.", RUN)] = False,
    keep_batch_norm: Annotated[
        bool, Option("Of a pruned model: write it for training on, with batch norms.", RUN)
    ] = False,
) -> None:
    """Train a network from random weights, or a pruned one further, which is then written as a folder again.

    SGD with Nesterov, one-cycle, label smoothing, crop, flip. Resumes after a kill."""
    from rich.console import Console

    from sinf.bundle.plain import has_batch_norms
    from sinf.cli.room import fit_training
    from sinf.models import REFERENCE_NAMES
    from sinf.models.load import read_plain
    from sinf.pipelines import comparison as pruned
    from sinf.training.train import save_half
    from sinf.training.train import train as run

    machine.pin()
    options.write_alone(context, out)
    images = data.images(split)
    checked = None if validation is None else data.images(validation)
    base, name = model.load(images), model.model
    images = data.for_model(base, images, machine.memory)
    checked = data.for_model(base, checked, machine.memory)
    images.require_every_class("training")
    if checked is not None:
        checked.warn_of_empty_classes("the validation")
    further = read_plain(Path(name)) if Path(name).is_dir() and name not in REFERENCE_NAMES else None
    if further is not None and not has_batch_norms(base.module):
        text = f"{name} has no batch norms, and trains badly without: sinf prune --keep-batch-norm writes them"
        warnings.warn(text, DataWarning, stacklevel=2)
    fit_training(machine.memory, base, images, checked, batch=config.batch, on_cpu=config.device == "cpu")
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
        made_by = {**further.made_by, "trained further": f"{config.epochs} epochs on {split}"}
        pruned.save(
            trained, place, list(further.class_names), made_by=made_by, keep_batch_norm=keep_batch_norm,
            key=options.key(),
        )  # fmt: skip
        console.print(f"pruned model: {place}", soft_wrap=True)
    if half:
        save_half(trained, out / "model-half.safetensors")
    console.print(f"weights: {out / 'model.safetensors'}")
