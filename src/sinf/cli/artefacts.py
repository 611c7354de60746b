"""``sinf eval`` and ``predict``: what an artefact does, of whatever method."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sinf.cli import options
from sinf.cli.kinds import kind_of, open_artefact
from sinf.cli.verb import Json
from sinf.errors import ConfigError, DataError
from sinf.option import Option
from sinf.storage import files

if TYPE_CHECKING:
    from sinf.bundle.classifier import Prediction

_SHOWN = 100  # predictions on the screen
_NAMED = 3  # images in a message


def evaluate(
    artefact: options.Evaluated,
    data: options.Data,
    machine: options.Machine,
    split: options.UnseenSplit = "test[50%:]",
    base: options.Base = None,
    base_weights: options.BaseWeights = None,
    threshold: options.Threshold = None,
    allow_factory: options.AllowFactory = False,
) -> dict[str, Any]:
    """Accuracy, MACs and parameters, beside the base model's; of a bundle also by cluster, or how MACs are spread.

    Of an export, accuracy in its engine; with --base also what is lost there."""
    from sinf.cli.room import Need, fit
    from sinf.edge import ENGINES, is_export

    if is_export(artefact):
        if threshold is not None:
            raise ConfigError("an export has its own threshold", got="--threshold", remedy="leave it out")
        return _evaluate_export(artefact, data, machine, split, base, base_weights)
    kind = kind_of(artefact, threshold=threshold, base=base)
    machine.pin()
    model = open_artefact(artefact, threshold, allow_factory)
    images = data.for_artefact(model, split)
    beside = None if base is None else options.base_beside(model, base, base_weights)
    need = kind.need(model) if beside is None else kind.need(model).beside(Need.of_model(beside))
    fit(machine.memory, "evaluation", need, model.preprocessing, images)
    with options.Steps() as steps:
        result = kind.evaluate(model, images, beside, lambda done, total: steps("evaluating", done, total))
    kind.show_evaluation(result)
    for export in filter(is_export, (artefact / engine for engine in ENGINES.values())):
        print(f"{export} is what was timed and tested in its engine: sinf eval {export}")
    record: dict[str, Any] = result.to_json()
    return record


def _evaluate_export(
    folder: Path, data: options.Data, machine: options.Machine, split: str, base: str | None, base_weights: Path | None
) -> dict[str, Any]:
    from sinf import edge
    from sinf.cli.room import Need, fit
    from sinf.measure.accuracy import folder_bytes
    from sinf.pipelines.exported import evaluate_export
    from sinf.report import artefacts

    threads = machine.pin()
    export = edge.load(folder, threads=threads, key=options.key())
    images = data.for_artefact(export, split)
    beside = None if base is None else options.base_beside(export, base, base_weights)
    need = Need(0, folder_bytes(folder))  # what its values take, only its engine knows; a base model's are larger
    need = need if beside is None else need.beside(Need.of_model(beside))
    fit(machine.memory, "evaluation", need, export.preprocessing, images)
    with options.Steps() as steps:
        result = evaluate_export(
            export, images, beside, threads=threads, progress=lambda done, total: steps("evaluating", done, total)
        )
    artefacts.show_export(result)
    return result.to_json()


def predict(
    artefact: options.Artefact,
    image: Annotated[tuple[Path, ...], Option("Image files, and folders of them.", positional=True)],
    machine: options.Machine,
    out: Annotated[Path | None, Option("Write all predictions to this file: .parquet, .jsonl or .csv.")] = None,
    top: Annotated[int, Option("How many classes of an image.", low=1)] = 3,
    batch: Annotated[int, Option("Images that are in memory at once, where they fit.", low=1)] = 32,
    threshold: options.Threshold = None,
    allow_factory: options.AllowFactory = False,
    json: Json = None,
) -> None:
    """Classes with probabilities and the time of every image; of a bundle also the route, or the MACs.

    An image that cannot be read does not stop the others: it is reported at the end, with exit code 2."""
    from sinf.cli.room import fit
    from sinf.data.image_files import count_files, image_files
    from sinf.report import predictions

    if out is not None:
        predictions.check_ending(out)
    kind = kind_of(artefact, threshold=threshold)
    machine.pin()
    model = open_artefact(artefact, threshold, allow_factory)
    count = count_files(image)
    if not count.images:
        got = f"{count.others} other files" if count.others else "nothing"
        raise DataError("there must be images to predict", got=got, remedy="name image files, or a folder of them")
    batch = fit(machine.memory, "prediction", kind.need(model), model.preprocessing, most=batch)
    shown: list[Prediction] = []
    bad: list[Prediction] = []
    kept: list[dict[str, Any]] = []
    failed = 0
    with ExitStack() as stack:
        steps = stack.enter_context(options.Steps())
        add = None
        if out is not None:
            names = model.details_of_a_prediction
            add = stack.enter_context(predictions.writer(out, min(top, len(model.classes)), names))
        for done, prediction in enumerate(model.stream(image_files(image), top=top, batch=batch), 1):
            if add is not None:
                add(prediction)
            if json is not None:
                kept.append(prediction.to_json())
            failed += prediction.error is not None
            few = shown if prediction.error is None else bad
            if len(few) < _SHOWN:
                few.append(prediction)
            steps("predicting", done, count.images)
    if shown:
        kind.show_predictions([prediction.to_json() for prediction in shown])
    hidden = count.images - failed - len(shown)
    where = "" if out is None else f"; all are in {out}"
    print(f"{count.images - failed} of {count.images} images" + (f", {hidden} not shown" if hidden else "") + where)
    if count.others:
        print(f"{count.others} files of other endings were left out")
    if json is not None:  # before the error
        files.write_json({"predictions": kept}, json)
    if failed:
        said = [str(prediction.error) for prediction in islice(bad, _NAMED)]
        more = f"; and {failed - len(said)} more" if failed > len(said) else ""
        got = f"{failed} of {count.images} that cannot: {'; '.join(said)}{more}"
        raise DataError("every image must be readable", got=got, remedy="the others are done")
