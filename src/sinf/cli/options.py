"""Options that several verbs share, and how they become objects."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from sinf.cli.progress import Steps as Steps  # verbs find all that they share here
from sinf.cli.progress import announce as announce
from sinf.errors import ConfigError, printable
from sinf.machine.sizes import DEFAULT
from sinf.machine.sizes import MemoryLimit as Memory
from sinf.option import DATA, IMAGES, MODEL, RUN, Option, numbers
from sinf.option import AnyThreads as Threads
from sinf.storage import files

if TYPE_CHECKING:
    from sinf.bundle.classifier import Classifier
    from sinf.data.images import LabelledImages
    from sinf.data.labels import Matched
    from sinf.edge import EdgeModel, EdgeNetwork
    from sinf.engine.torch_engine import SemanticModel
    from sinf.models import BaseModel

    Exported = EdgeModel | EdgeNetwork

Part = TypeVar("Part", "LabelledImages", "LabelledImages | None")

Weights = Annotated[Path | None, Option("Weights of the base model, a safetensors file.")]
ImageColumn = Annotated[str | None, Option("Column with the images.", DATA, otherwise="found")]
LabelColumn = Annotated[str | None, Option("Column with the classes.", DATA, otherwise="the one with most classes")]
Bundle = Annotated[
    Path,
    Option("A bundle: a folder made by sinf build, or by optimize where it chose one, or a hub id.", positional=True),
]
Artefact = Annotated[
    Path, Option("A folder made by sinf optimize, build, prune or dynamic train, or a hub id.", positional=True)
]
Evaluated = Annotated[
    Path, Option("As of the other verbs, or an export: the folder onnxruntime in what optimize wrote.", positional=True)
]
Base = Annotated[str | None, Option("Of a pruned model: the MODEL that it was made from, to compare with.", MODEL)]
BaseWeights = Annotated[Path | None, Option("Weights of --base, a safetensors file.", MODEL)]
Threshold = Annotated[
    float | None, Option("Confidence below which an input falls back.", MODEL, otherwise="the bundle's")
]
AllowFactory = Annotated[bool, Option("Let the bundle import its package.module:factory.", MODEL)]
BundleOut = Annotated[Path, Option("Folder for the bundle; the same command resumes.")]
Score = Annotated[str, Option("Images that decide which channels go.", IMAGES)]
TrainingSplit = Annotated[str, Option("Images to train on.", IMAGES)]
Validation = Annotated[str | None, Option("Images to report accuracy on after every epoch.", IMAGES)]
UnseenSplit = Annotated[str, Option("Images that were not used to train, build or calibrate.")]
BenchSplit = Annotated[str, Option("Images like those of the application.")]
Batches = Annotated[tuple[int, ...] | None, Option("Batch sizes; may be repeated.", otherwise="1 and 32")]
Runtime = Annotated[
    Path | None,
    Option("Of web: folder of the npm package onnxruntime-web.", otherwise="in node_modules here"),
]
Pairs = Annotated[int, Option("Timed runs of each model, in turns.", RUN, low=2)]
_CLUSTERS = Option(
    "Semantic clusters: column (of the data), found (in the model), a file of sinf clusters, or none (cascades)."
)
Clusters = Annotated[str | None, replace(_CLUSTERS, otherwise="column")]
AlsoClusters = Annotated[str | None, replace(_CLUSTERS, otherwise="none, or column where --cluster-column names one")]


@dataclass(frozen=True)
class Network:
    """A network that may have random weights."""

    model: Annotated[
        str,
        Option(
            "vgg11/13/16/19, resnet18/20/32/34/50/56, timm:NAME, torchvision:NAME, hf:NAME, package.module:factory "
            "or a folder made by sinf prune or optimize",
            positional=True,
        ),
    ]
    size: Annotated[
        tuple[int, int, int] | None,
        Option("Input size C,H,W, where the library does not tell.", MODEL, unit=numbers(int, 3)),
    ] = None
    mean: Annotated[
        tuple[float, ...] | None, Option("Mean of each channel, e.g. 0.485,0.456,0.406.", MODEL, unit=numbers(float))
    ] = None
    std: Annotated[
        tuple[float, ...] | None, Option("Standard deviation of each channel.", MODEL, unit=numbers(float))
    ] = None
    width: Annotated[float | None, Option("Width multiplier of a reference network.", MODEL)] = None

    def load(self, images: LabelledImages | None = None) -> BaseModel:
        """The network, for ``images``."""
        return self._load(images, None, None, pretrained=False)

    def _load(
        self, images: LabelledImages | None, weights: Path | None, classes: int | None, *, pretrained: bool
    ) -> BaseModel:
        """The size of the images, and of a reference network without weights the number of classes, are the model's
        where nothing else tells. What was assumed is said."""
        from sinf.models import REFERENCE_NAMES, load_model

        made_new = weights is None and (self.model in REFERENCE_NAMES or not pretrained)
        if classes is None and images is not None and made_new and not Path(self.model).is_dir():
            classes = images.classes
        base = load_model(
            self.model, weights=weights, classes=classes, size=self.size, mean=self.mean, std=self.std,
            options={} if self.width is None else {"width": self.width}, pretrained=pretrained, images=images,
        )  # fmt: skip
        for note in base.notes:
            print(printable(note), file=sys.stderr)
        return base


@dataclass(frozen=True)
class Model(Network):
    """A trained network."""

    weights: Weights = None
    classes: Annotated[int | None, Option("Number of classes, where neither weights nor library tell.", MODEL)] = None

    def load(self, images: LabelledImages | None = None) -> BaseModel:
        return self._load(images, self.weights, self.classes, pretrained=True)


@dataclass(frozen=True)
class Data:
    """Images with labels."""

    data: Annotated[str, Option("Images: a hub id, a folder of parquet shards, or an image folder.")]
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    labels: Annotated[
        str | None,
        Option(
            'Which class of the model each label is: a JSON or CSV file of pairs, or "numbers": they are the model\'s.',
            DATA,
            otherwise="by name",
        ),
    ] = None

    @property
    def columns(self) -> dict[str, str | None]:
        return {"image_column": self.image_column, "label_column": self.label_column}

    def images(self, split: str, need_labels: bool = True) -> LabelledImages:
        """One split; that its rows are shuffled is said."""
        from sinf.data.images import load_images
        from sinf.data.splits import SEED

        part = load_images(self.data, split, **self.columns, need_labels=need_labels)
        if part.shuffled:
            print(f"{part.name}: rows are shuffled by seed {SEED} first ({part.shuffled})", file=sys.stderr)
        return part

    def for_model(self, base: BaseModel, part: Part, memory: int = DEFAULT) -> Part:
        """Images with the classes of a model, by the option ``--labels``, its names, or their numbers; what was done is
        said. Images without labels get the model's own answers, in batches that ``memory`` allows."""
        from sinf.cli.room import Need, fit
        from sinf.measure.answers import answered_by
        from sinf.models.classes import match_to

        if part is None:
            return part
        if part.labelled:
            return _said(match_to(base, part, self.labels))
        fit(memory, "answers", Need.of_model(base), base.spec.preprocessing, part)
        return _said(answered_by(base, part))

    def for_artefact(self, model: Classifier | Exported, split: str) -> LabelledImages:
        """One split, with the classes of what sinf wrote."""
        return labelled_as(model.classes, self.images(split), self.labels)


@dataclass(frozen=True)
class ClusteredData(Data):
    """Images whose classes may be in clusters."""

    cluster_column: Annotated[str | None, Option("Column with the semantic clusters.", DATA, otherwise="found")] = None

    @property
    def columns(self) -> dict[str, str | None]:
        return super().columns | {"cluster_column": self.cluster_column}


@dataclass(frozen=True)
class Machine:
    """What may be taken of the machine."""

    threads: Threads = None
    memory: Memory = DEFAULT

    def pin(self) -> int:
        """How many threads torch has from now on."""
        return set_threads(self.threads)


ONE_THREAD = Machine(threads=1)


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


def base_beside(model: Classifier | Exported, name: str, weights: Path | None) -> BaseModel:
    """The base model that a plain model, or an export, is compared with; by default it is fed the same images."""
    from sinf.models import REFERENCE_NAMES, load_model

    feed, given = model.preprocessing, {}
    if name in REFERENCE_NAMES or not Path(name).is_dir():
        given = {"size": feed.size, "mean": feed.mean, "std": feed.std, "classes": len(model.classes)}
    return load_model(name, weights=weights, **given)  # type: ignore[arg-type]


def bundle(folder: Path, allow_factory: bool) -> SemanticModel:
    """A bundle in torch."""
    from sinf.engine.torch_engine import SemanticModel

    return SemanticModel.from_pretrained(folder, allow_factory=allow_factory, key=key())


def labelled_as(classes: list[str], part: LabelledImages, labels: str | None) -> LabelledImages:
    """Images with the ``classes`` of what sinf wrote, by the option ``--labels``, its names, or their numbers; what was
    done is said."""
    from sinf.data.labels import ModelClasses, match_labels

    part.require_labels("accuracy")
    return _said(match_labels(part, len(classes), ModelClasses.of(classes, "the folder"), file=labels))


def _said(matched: Matched) -> LabelledImages:
    if matched.said is not None:
        print(printable(matched.said), file=sys.stderr)
    return matched.images


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
