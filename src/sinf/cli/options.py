"""Options that several verbs share, and how they become objects."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sinf.cli.progress import Steps as Steps  # verbs find all that they share here
from sinf.cli.progress import announce as announce
from sinf.criteria import NAMES
from sinf.errors import ConfigError
from sinf.storage import files

if TYPE_CHECKING:
    from sinf.bundle.classifier import Classifier
    from sinf.data.images import LabelledImages
    from sinf.data.labels import Matched
    from sinf.engine.torch_engine import SemanticModel
    from sinf.models import BaseModel

Model = Annotated[
    str,
    typer.Argument(
        help="vgg11/13/16/19, resnet18/20/32/34/50/56, timm:NAME, torchvision:NAME, hf:NAME, package.module:factory "
        "or a folder made by sinf prune"
    ),
]
Weights = Annotated[Path | None, typer.Option(help="Weights of the base model, a safetensors file.")]
Classes = Annotated[int | None, typer.Option(help="Number of classes, where neither weights nor library tell.")]
Size = Annotated[str | None, typer.Option(help="Input size C,H,W, where the library does not tell.")]
Mean = Annotated[str | None, typer.Option(help="Mean of each channel, e.g. 0.485,0.456,0.406.")]
Std = Annotated[str | None, typer.Option(help="Standard deviation of each channel.")]
Width = Annotated[float | None, typer.Option(help="Width multiplier of a reference network.")]
Data = Annotated[str, typer.Option(help="Images: a hub id, a folder of parquet shards, or an image folder.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column with the images [default: found].")]
LabelColumn = Annotated[str | None, typer.Option(help="Column with the classes [default: the one with most classes].")]
Labels = Annotated[
    str | None,
    typer.Option(
        help='Which class of the model each label is: a JSON or CSV file of pairs, or "numbers": they are the model\'s '
        "[default: by name]."
    ),
]
ClusterColumn = Annotated[str | None, typer.Option(help="Column with the semantic clusters [default: found].")]
Criterion = Annotated[
    str | None,
    typer.Option(
        help=f"Rule that gives channels an importance: {', '.join(NAMES)}. [default: residual, with "
        "--no-reconstruct joint]"
    ),
]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the processor [default: all].")]
Bundle = Annotated[Path, typer.Argument(help="A bundle: a folder made by sinf build, or a hub id.")]
Artefact = Annotated[
    Path, typer.Argument(help="A folder made by sinf build, sinf prune or sinf dynamic train, or a hub id.")
]
Base = Annotated[str | None, typer.Option(help="Of a pruned model: the MODEL that it was made from, to compare with.")]
BaseWeights = Annotated[Path | None, typer.Option(help="Weights of --base, a safetensors file.")]
Threshold = Annotated[
    float | None, typer.Option(help="Confidence below which an input falls back [default: the bundle's].")
]
AllowFactory = Annotated[
    bool, typer.Option("--allow-factory", help="Let the bundle import its package.module:factory.")
]

Memory = Annotated[str, typer.Option(help="Memory that it may take: batches are made smaller to fit, or refused.")]
MEMORY = "8GB"  # sinf.machine.memory.DEFAULT, which is not imported here


#: Names the file whose bytes sign the bundles that are written, and without whose signature none is read.
KEY_FILE = "SINF_KEY_FILE"


def key() -> bytes | None:
    """The key that bundles are signed with, where :data:`KEY_FILE` names one."""
    path = os.environ.get(KEY_FILE)
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{KEY_FILE} must name a readable file", got=error, remedy="correct or unset it") from error


def base_model(
    name: str,
    weights: Path | None,
    classes: int | None = None,
    size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    width: float | None = None,
    images: LabelledImages | None = None,
    pretrained: bool = True,
) -> BaseModel:
    """The base model that the options describe, for ``images``: their size, and of a reference network without weights
    the number of classes, are the model's where nothing else tells. What was assumed is said."""
    from sinf.models import REFERENCE_NAMES, load_model

    made_new = weights is None and (name in REFERENCE_NAMES or not pretrained) and not Path(name).is_dir()
    if classes is None and images is not None and made_new:
        classes = images.classes
    base = load_model(
        name,
        weights=weights,
        classes=classes,
        size=None if size is None else numbers("size", size, int, 3),
        mean=None if mean is None else numbers("mean", mean, float, None),
        std=None if std is None else numbers("std", std, float, None),
        options={} if width is None else {"width": width},
        pretrained=pretrained,
        images=images,
    )
    for note in base.notes:
        print(note, file=sys.stderr)
    return base


Part = TypeVar("Part", "LabelledImages", "LabelledImages | None")


def as_classes_of(base: BaseModel, part: Part, labels: str | None, memory: str = MEMORY) -> Part:
    """Images with the classes of a model, by the option ``--labels``, its names, or their numbers; what was done is
    said. Images without labels get the model's own answers, in batches that ``memory`` allows."""
    from sinf.cli.room import Need, fit
    from sinf.measure.answers import answered_by
    from sinf.models.classes import match_to

    if part is None:
        return part
    if part.labelled:
        return _said(match_to(base, part, labels))
    fit(memory, "answers", Need.of_model(base), base.spec.preprocessing, part)
    return _said(answered_by(base, part))


def base_beside(model: Classifier, name: str, weights: Path | None) -> BaseModel:
    """The base model that a plain model is compared with; it is fed the same images where it does not say itself."""
    from sinf.models import REFERENCE_NAMES, load_model

    feed, given = model.preprocessing, {}
    if name in REFERENCE_NAMES or not Path(name).is_dir():
        given = {"size": feed.size, "mean": feed.mean, "std": feed.std, "classes": len(model.classes)}
    return load_model(name, weights=weights, **given)  # type: ignore[arg-type]


def bundle(folder: Path, allow_factory: bool) -> SemanticModel:
    """A bundle in torch."""
    from sinf.engine.torch_engine import SemanticModel

    return SemanticModel.from_pretrained(folder, allow_factory=allow_factory, key=key())


def labelled_as(model: Classifier, part: LabelledImages, labels: str | None) -> LabelledImages:
    """Images with the classes of what sinf wrote, by the option ``--labels``, its names, or their numbers; what was
    done is said."""
    from sinf.data.labels import ModelClasses, match_labels

    part.require_labels("accuracy")
    names = ModelClasses.of(model.classes, "the folder")
    return _said(match_labels(part, len(model.classes), names, file=labels))


def _said(matched: Matched) -> LabelledImages:
    if matched.said is not None:
        print(matched.said, file=sys.stderr)
    return matched.images


def images(
    data: str,
    split: str,
    image_column: str | None,
    label_column: str | None,
    cluster_column: str | None,
    need_labels: bool = True,
) -> LabelledImages:
    """One split of the data that the options describe."""
    from sinf.data.images import load_images
    from sinf.data.splits import SEED

    part = load_images(
        data,
        split,
        image_column=image_column,
        label_column=label_column,
        cluster_column=cluster_column,
        need_labels=need_labels,
    )
    if part.shuffled:
        print(f"{part.name}: rows are shuffled by seed {SEED} first ({part.shuffled})", file=sys.stderr)
    return part


def numbers(option: str, text: str, kind: type, count: int | None) -> tuple[Any, ...]:
    """Numbers with commas between, such as a size or a mean."""
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or (count is not None and len(values) != count):
        raise ConfigError(f"--{option} must be numbers with commas between", got=text, remedy="e.g. 3,32,32")
    return values


def set_threads(threads: int | None) -> int:
    """Pin torch's threads, and say how many there are."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def write_alone(context: typer.Context, out: Path, *work: Path) -> None:
    """Refuse what another command writes now, and keep others from writing it until this one ends; ``work`` are folders
    that go with it."""
    context.with_resource(files.exclusive(out, *work))


def write_json(path: Path | None, record: dict[str, Any]) -> None:
    """Write a result for programs, if asked for."""
    if path is not None:
        files.write_json(record, path)
