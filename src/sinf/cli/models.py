"""``sinf profile`` and ``sinf train``: what concerns the base model alone."""

from __future__ import annotations

import csv
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinf.cli import options
from sinf.cli.kinds import is_bundle, kind_of, open_artefact
from sinf.errors import ConfigError, DataWarning
from sinf.option import RUN, TRAINING, Option
from sinf.storage import files
from sinf.training.recipe import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from sinf.models import BaseModel
    from sinf.training.loop import EpochReport


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
    start: Annotated[
        Path | None,
        Option(
            "Weights to start from, a safetensors file; layers that it lacks start at random, said by name.",
            TRAINING,
            otherwise="random ones",
        ),
    ] = None,
    half: Annotated[bool, Option("Also write the weights in float16.", RUN)] = False,
    keep_batch_norm: Annotated[
        bool, Option("Of a pruned model: write it for training on, with batch norms.", RUN)
    ] = False,
) -> None:
    """Train a network from random weights or --start, or a pruned one further, which is written as a folder again.

    SGD with Nesterov, one-cycle, label smoothing, crop, flip. Resumes after a kill; epochs.csv says how it went."""
    from sinf.bundle.plain import has_batch_norms
    from sinf.cli.room import fit_training
    from sinf.models import REFERENCE_NAMES
    from sinf.models.load import read_plain
    from sinf.pipelines import comparison as pruned
    from sinf.report.terminal import Terminal
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
    began = _started(base, start, config.seed, pruned=further is not None)
    if further is not None and not has_batch_norms(base.module):
        text = f"{name} has no batch norms, and trains badly without: sinf prune --keep-batch-norm writes them"
        warnings.warn(text, DataWarning, stacklevel=2)
    fit_training(machine.memory, base, images, checked, batch=config.batch, on_cpu=config.device == "cpu")
    console = Terminal()

    def report(r: EpochReport) -> None:
        log_epoch(r, out / "epochs.csv")
        accuracy = "" if r.top1 is None else f"  top-1 {100 * r.top1:.2f} %"
        console.print(f"epoch {r.epoch}/{r.epochs}  loss {r.loss:.3f}{accuracy}  {r.seconds:.0f} s")

    with options.Steps() as steps:
        trained = run(
            base.spec,
            images,
            out,
            config,
            start=began,
            validation=checked,
            report=report,
            progress=lambda done, total: steps("training", done, total),
        )
    if further is not None:
        place = out / "pruned"
        provenance = {**further.provenance, "trained further": f"{config.epochs} epochs on {split}"}
        pruned.save(
            trained, place, list(further.class_names), provenance=provenance, keep_batch_norm=keep_batch_norm,
            key=options.key(),
        )  # fmt: skip
        console.print(f"pruned model: {place}", soft_wrap=True)
    if half:
        save_half(trained, out / "model-half.safetensors")
    console.print(f"weights: {out / 'model.safetensors'}")


def log_epoch(report: EpochReport, path: Path) -> None:
    """A row an epoch, in the place of rows of this epoch and later ones."""
    said = asdict(report)
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < report.epoch]
    with files.replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(said), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, {key: f"{value:.6g}" if isinstance(value, float) else value
                                  for key, value in said.items()}])  # fmt: skip


def _started(base: BaseModel, path: Path | None, seed: int, *, pruned: bool) -> dict[str, Tensor] | None:
    """The weights that a training starts from, None for those that the seed draws; what is random is said."""
    from sinf.models.start import start_from
    from sinf.models.state import read_weights

    if path is None:
        return base.module.state_dict() if pruned or base.spec.is_factory else None
    if pruned:
        raise ConfigError("a pruned model starts from its own weights", got=f"--start {path}", remedy="leave it out")
    start = start_from(base, read_weights(path), seed)
    print(f"start: {start}", file=sys.stderr)
    return start.state
