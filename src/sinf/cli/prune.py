"""``sinf prune``: a base model made smaller for all its classes, and saved as a plain model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinf.cli import options
from sinf.measure.limits import Limits
from sinf.option import IMAGES, RUN, Option
from sinf.pipelines.prune_config import PruneConfig, describe

if TYPE_CHECKING:
    from sinf.training.train import EpochReport


def prune(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: Annotated[Path, Option("Folder for the pruned model; the same command resumes.")],
    config: PruneConfig,
    score: options.Score = "train",
    train: Annotated[str, Option("Images to fine-tune on.", IMAGES)] = "train",
    validate: Annotated[
        str | None,
        Option(
            "Images that estimate the loss, best some that the model was not trained on.",
            IMAGES,
            otherwise="a share of those that decide is held out",
        ),
    ] = None,
    test: Annotated[str, Option("Images to report on, which nothing else has seen.", IMAGES)] = "test[50%:]",
    pairs: options.Pairs = 200,
    keep_batch_norm: Annotated[
        bool, Option("Save for training on: batch norms stay, which is slower to run.", RUN)
    ] = False,
    work: Annotated[
        Path | None,
        Option(
            "Keep statistics and results of steps here: every later budget and method finds what is the same.",
            RUN,
            otherwise="beside --out, and removed at the end",
        ),
    ] = None,
) -> dict[str, Any]:
    """Make a model smaller for all its classes, and save it as a plain one: safetensors and a config, no pickle."""
    from sinf.bundle.folder import require_place
    from sinf.compress.methods import make_compressor
    from sinf.data.disjoint import warn_of_shared
    from sinf.measure.delivery import describe_times
    from sinf.pipelines import comparison as saved
    from sinf.pipelines.prune import prune as run
    from sinf.report import tables
    from sinf.report.terminal import Terminal

    limits, memory = config.limits or Limits(), config.memory  # there are always limits here
    options.set_threads(limits.threads)
    require_place(out)
    steps_folder = work or out.with_name(out.name + ".prune")
    options.write_alone(context, out, *([] if work else [steps_folder]))
    epochs = config.finetuning.finetune
    need_labels = epochs > 0
    scoring, tested = data.images(score, need_labels), data.images(test, need_labels)
    training = None if not epochs else scoring if train == score else data.images(train)
    validation = None if validate is None else data.images(validate, need_labels)
    base = model.load(scoring)
    same = training is scoring
    scoring, tested = (data.for_model(base, part, memory) for part in (scoring, tested))
    training = scoring if same else data.for_model(base, training, memory)
    validation = data.for_model(base, validation, memory)
    empty = tested.warn_of_empty_classes("the comparison")
    warn_of_shared(tested, "test", scoring.sample(config.images, config.seed), "scoring")
    if validation is not None:
        warn_of_shared(tested, "test", validation, "validation")
    console = Terminal()

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
        expected = str(smaller.expected) + (f", which chose {config.left_open}" if config.left_open else "")
        made = f"by {smaller.method}, {describe(smaller.rule)}"
        console.print(f"{made}: expected loss {expected}; {describe_times(smaller.times)}")
        compared = saved.compare(
            base,
            smaller,
            tested,
            pairs=pairs,
            threads=limits.threads,
            keep_batch_norm=keep_batch_norm,
            progress=steps,
            memory=memory,
        )
    provenance = make_compressor(smaller.method, config).describe() | {
        "method": smaller.method,
        "asked for": f"{config.amount}, at most {100 * limits.max_loss:g} points",
        "made": describe(smaller.rule),
        "expected loss": expected,
        "scoring images": f"{len(scoring.sample(config.images))} of {score}",
        "reconstructed": "yes" if config.reconstruct else "no",
        "recalibrated": "yes" if config.recalibrate else "no",
        "fine-tuned": f"{epochs} epochs on {train}" if epochs else "no",
        "test images": test,
        "seed": config.seed,
    }
    saved.save(
        smaller, out, scoring.class_names, provenance=provenance, comparison=compared, keep_batch_norm=keep_batch_norm,
        key=options.key(),
    )  # fmt: skip
    if work is None:
        shutil.rmtree(steps_folder, ignore_errors=True)
    tables.show_pruned(compared, out, limits.threads)
    estimate = {"expected_loss": None if smaller.expected is None else smaller.expected.to_json()}
    return {"folder": str(out), **provenance, **estimate, **compared.to_json(), "empty_classes": empty}
