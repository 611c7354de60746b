"""What the verbs do with each kind of artefact: a class a method, found by the method in its config.json."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sinf.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from sinf.bundle.classifier import Classifier
    from sinf.cli.room import Need
    from sinf.data.images import LabelledImages
    from sinf.data.preprocessing import Preprocessing
    from sinf.models import BaseModel

CALIBRATION = 256  # images of int8
COMPARED = 3  # images, answered by a model and by what was exported
_TIMED = 2000  # images at most: what is timed runs over them in turns
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Bench:
    """What ``sinf bench`` is asked for. ``load_seconds`` is what loading the artefact took."""

    source: Path
    images: LabelledImages
    data: str
    split: str
    batches: tuple[int, ...] | None
    pairs: int
    engine: str
    precision: str
    held_out: LabelledImages | None
    threads: int
    stages: bool
    energy: bool
    base: BaseModel | None
    load_seconds: float
    empty: list[str]
    memory: int

    def plan(
        self, need: Need, feed: Preprocessing, default: tuple[int, ...], largest: int | None = None
    ) -> tuple[list[int], Tensor]:
        """Batch sizes, and the normalised images that they are made of. A size that there are no images for, that the
        engine cannot take or that does not fit into memory is refused; only of the ``default`` are sizes made smaller.
        """
        from sinf.cli.room import Room

        room = Room(self.memory, need, feed, self.images, self.held_out)
        if self.held_out is not None:
            room.calibrate(CALIBRATION)
        sizes = room.sizes(self._sizes(default, largest), named=bool(self.batches))
        count = room.kept("timed images", min(len(self.images), _TIMED), sizes)
        room.limit("evaluation")
        room.announce()
        return sizes, feed.normalise(self.images.pixels(feed, 0, count))

    def _sizes(self, default: tuple[int, ...], largest: int | None) -> list[int]:
        limit = len(self.images) if largest is None else min(largest, len(self.images))
        sizes = list(self.batches or default)
        for size in sizes:
            if not 1 <= size <= limit:
                raise ConfigError(f"a batch must be between 1 and {limit} here", got=size, remedy="change --batch")
        return sizes


@dataclass(frozen=True)
class Export:
    """What ``sinf export`` is asked for. ``images`` set the ranges of int8."""

    out: Path
    file_format: str
    layout: str | None
    precision: str
    runtime: Path | None
    data: str | None
    split: str
    images: LabelledImages | None = None

    def fit(self, memory: int, need: Need, feed: Preprocessing) -> None:
        """Say what it takes to write a model with that need, and refuse what does not fit."""
        from sinf.cli.room import Room

        room = Room(memory, need.exported(), feed, self.images)
        if self.images is not None:
            room.calibrate(CALIBRATION)
        room.limit("export", COMPARED, least=COMPARED)
        room.announce()

    def ranges(self, preprocessing: Preprocessing) -> Tensor | None:
        """Of int8: normalised images that set its ranges."""
        return None if self.images is None else self.images.sample(CALIBRATION).inputs(preprocessing)[:]


class Kind(ABC):
    """What differs between methods; what they have in common is in :class:`sinf.bundle.classifier.Classifier`."""

    #: Options that are refused, with the rule that says why.
    refuses: ClassVar[dict[str, str]] = {}

    @abstractmethod
    def evaluate(self, model: Any, images: LabelledImages, base: BaseModel | None, progress: Progress) -> Any:
        """A result with ``to_json``."""

    @abstractmethod
    def show_evaluation(self, result: Any) -> None:
        """Print it."""

    @abstractmethod
    def need(self, model: Any) -> Need:
        """What it takes to run the model, and the base model that it holds, over images."""

    @abstractmethod
    def bench(self, model: Any, asked: Bench) -> dict[str, Any]:
        """Measure and print; the record for programs is returned."""

    @abstractmethod
    def export(self, model: Any, asked: Export) -> None:
        """Write and print."""

    @abstractmethod
    def show_predictions(self, records: list[dict[str, Any]]) -> None:
        """Print a table; records are those of :meth:`sinf.bundle.classifier.Prediction.to_json` without error."""

    def parts(self, model: Any) -> dict[str, dict[str, float]]:
        """For ``sinf profile``: of every part beside the base model, its MACs and parameters; none where all of the
        model is profiled."""
        return {}


KINDS = {
    "semantic": "sinf.cli.semantic:Semantic",
    "dynamic": "sinf.cli.dynamic:Dynamic",
    "static": "sinf.cli.plain:Plain",
}


def kind_of(source: str | Path, **given: object) -> Kind:
    """The kind of an artefact, from a folder or the hub; of options ``given`` that it does not take, those that are set
    are refused.

    Raises:
        ConfigError: such an option is set.
    """
    from sinf.load import method_of

    module, _, name = KINDS[method_of(source)].partition(":")
    kind: Kind = getattr(importlib.import_module(module), name)()
    for option, value in given.items():
        if value is not None and option in kind.refuses:
            option_name = "--" + option.replace("_", "-")
            raise ConfigError(kind.refuses[option], got=option_name, remedy="leave it out")
    return kind


def is_bundle(folder: Path) -> bool:
    """Whether a folder here holds a bundle, whose parts are not one network."""
    if not folder.is_dir():
        return False
    from sinf.load import method_of

    return method_of(folder) != "static" and (folder / "config.json").is_file()


def open_artefact(source: Path, threshold: float | None, allow_factory: bool) -> Classifier:
    """The model, with another threshold where one is given and it has one."""
    from sinf.cli import options
    from sinf.load import from_pretrained

    model: Any = from_pretrained(source, allow_factory=allow_factory, key=options.key())
    if threshold is not None:
        model.threshold = threshold
    return model
