"""Networks that may be delivered in place of a base model: made once, opened in every precision that is tried.

One that is delivered for another engine than torch is written twice: as a model of torch, and as what that engine ran
when it was timed and tested, for :mod:`sinf.edge`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sinf import edge
from sinf.bundle.semantic import Bundle
from sinf.data.images import LabelledImages
from sinf.engine.engines import native, open_engine
from sinf.engine.network_engine import open_network
from sinf.engine.runtime import Network
from sinf.engine.torch_engine import SemanticModel
from sinf.export.plain import export_network
from sinf.export.split import export_split
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.measure.delivery import answers_of
from sinf.measure.in_engine import TailAnswers, tail_answers
from sinf.measure.timing import Progress
from sinf.models import BaseModel
from sinf.pipelines.comparison import save
from sinf.pipelines.place import Place, Running, open_bytes
from sinf.pipelines.prune_config import describe
from sinf.pipelines.pruned import Pruned
from sinf.routing.router import FeatureRouter
from sinf.routing.threshold import BOUND, NEVER, Threshold, candidate_thresholds
from sinf.storage.files import hash_tensors

#: Normalised images (B, C, H, W), torch tensors -> logits (B, classes).
Run = Callable[[Tensor], Tensor]
Opened = TypeVar("Opened")

#: What is written for an engine, beside the model of torch.
FORMATS = {engine: file_format for file_format, engine in edge.ENGINES.items()}

#: How many answers of a small tail or subgraph may differ from those of the full tail, as multiples of the limit of the
#: loss: most such answers are about images that the base model is wrong about too.
_DIFFERING = (0.25, 0.5, 1.0, 1.5, 2.0, 2.4, 2.8, 3.2, 3.6, 4.0, 4.8, 5.6)


@dataclass(frozen=True)
class Promise:
    """What the calibration images say: ``loss`` is a fraction; ``confidence`` is that with which the expected
    loss is within ``max_loss``, None without a guarantee. ``likely`` is what it likely loses at most, as a fraction, by
    all that is known (:func:`sinf.pipelines.optimize_choice.likely_loss`)."""

    max_loss: float
    confidence: float | None
    loss: float
    images: int
    engine: str
    precision: str
    likely: float | None = None

    def __str__(self) -> str:
        limit, where = f"{100 * self.max_loss:g} points", f"{self.engine} {self.precision}"
        if self.confidence is None:
            lost = f"on the {self.images:,} calibration images that tested it {100 * self.loss:.2f} points were lost"
            if self.likely is None:
                return f"No promise for new images: {lost}."
            return (
                f"No promise for new images: {lost}; by these, those that chose, and how many answers differ, it "
                f"likely loses at most {100 * self.likely:.2f} (two to one)."
            )
        return (
            f"With confidence {self.confidence:g}, the expected loss of top-1 against the base model is at most "
            f"{limit} in {where}, on images drawn as the {self.images:,} calibration images ({BOUND})."
        )


@dataclass(frozen=True)
class Delivery:
    """What is written with a network: the promise, the images that tested it, the names of the classes, and the key
    that signs it."""

    promise: Promise
    tested_on: LabelledImages
    class_names: list[str]
    key: bytes | None = None


@dataclass(frozen=True)
class Candidate:
    """A network as it runs in its engine, in a precision; ``answers`` are its classes (N,) for images, ``save`` writes
    it to a folder. ``running`` is what ``run`` opens."""

    name: str
    kind: str
    precision: str
    running: Running[Any]
    run: Run
    answers: Callable[[LabelledImages, Progress], Tensor]
    save: Callable[[Path, Delivery], None]

    @property
    def full_name(self) -> str:
        return f"{self.name}, {self.precision}"


class Design(ABC):
    """A network that was made, before it runs anywhere."""

    name: str

    @cached_property
    def identity(self) -> str:
        """By which a place knows it: names are of budgets, and the same budget makes other networks of other images."""
        return f"{self.name}, {hash_tensors(self._tensors())}"

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """All that it differs by from other networks of the same base model."""

    @abstractmethod
    def open(
        self, place: Place, precision: str, selection: LabelledImages, max_loss: float, progress: Progress
    ) -> list[Candidate]:
        """As it runs there. What is set in its engine is set for a loss of ``max_loss`` at most (a fraction) by images
        of the ``selection``."""


class Static(Design):
    """One network for all inputs. ``method`` is what made it smaller, None for the base model itself."""

    def __init__(self, model: BaseModel, name: str, method: str | None = None) -> None:
        self.model, self.name, self.method = model, name, method

    def _tensors(self) -> dict[str, Tensor]:
        return self.model.module.state_dict()

    def open(
        self, place: Place, precision: str, selection: LabelledImages, max_loss: float, progress: Progress
    ) -> list[Candidate]:
        running = self._running(place, precision)
        running.get()  # what the engine cannot run is refused here
        run, answers = self.run_in(place, precision)
        return [Candidate(self.name, "static", precision, running, run, answers, partial(self._save, place=place))]

    def run_in(self, place: Place, precision: str) -> tuple[Run, Callable[[LabelledImages, Progress], Tensor]]:
        """The network as it runs there, and what it answers."""
        running = self._running(place, precision)

        def run(x: Tensor) -> Tensor:
            return torch.as_tensor(running.get()(native(place.engine, x)))

        def answers(images: LabelledImages, progress: Progress) -> Tensor:
            classes = answers_of(run, images, self.model.spec.preprocessing, progress)
            running.rest()
            return classes

        return place.once(f"{self.identity}, run", precision, lambda: (run, once_a_set(answers)))

    def _running(self, place: Place, precision: str) -> Running[Network]:
        def running() -> Running[Network]:
            graph = trace(self.model.module, self.model.spec.preprocessing)
            return Running(place, lambda: self._opened(place, precision), open_bytes(graph))

        return place.once(self.identity, precision, running)

    def _opened(self, place: Place, precision: str) -> Network:
        fed = self.model.spec.preprocessing
        return open_network(
            prepare(trace(self.model.module, fed)), fed.size, place.engine, threads=place.threads,
            precision=precision, calibration=place.ranges, keep=place.keep(self.identity, precision),
        )  # fmt: skip

    def _save(self, folder: Path, delivery: Delivery, place: Place) -> None:
        promise, key = delivery.promise, delivery.key
        provenance = {"made": self.name, "runs in": f"{promise.engine} {promise.precision}", "promise": str(promise)}
        method = {} if self.method is None else {"method": self.method}
        if isinstance(self.model, Pruned):
            method["asked for"] = describe(self.model.rule)
        model = save(self.model, folder, delivery.class_names, provenance=method | provenance, key=key)
        if promise.engine in FORMATS:
            export_network(
                model, folder / promise.engine, FORMATS[promise.engine], precision=promise.precision,
                ranges=place.ranges, promise=str(promise), key=key, running=self.run_in(place, promise.precision)[0],
            )  # fmt: skip


class Routed(Design):
    """A small tail for every input, or the subgraph of its cluster, and the full tail for those that it is unsure of;
    with one cluster a cascade."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.bundle, self.name = bundle, name
        self.kind = "cascade" if bundle.cascade else "semantic"
        self.early = 0.0 if bundle.threshold is None else bundle.threshold.early

    def _tensors(self) -> dict[str, Tensor]:
        bundle, coupling = self.bundle, self.bundle.network().coupling
        tensors = {f"router.{name}": tensor for name, tensor in bundle.router.state_dict().items()}
        for name, part in bundle.parts.items():
            tensors |= part.to_tensors(coupling, f"{name}.")
        numbers = (self.early, *asdict(bundle.deferral).values())
        return tensors | {"routing": torch.tensor(numbers), "clusters": bundle.clusters.of_class()}

    def open(
        self, place: Place, precision: str, selection: LabelledImages, max_loss: float, progress: Progress
    ) -> list[Candidate]:
        """With a few thresholds, set by the answers in this very engine and precision."""
        network = self.bundle.network()
        size = open_bytes(network.graph, self.bundle.tail_bytes(network))
        running = place.once(
            self.identity, precision, lambda: Running(place, lambda: self._opened(place, precision), size)
        )  # fmt: skip
        running.get()
        fed = self.bundle.spec.preprocessing

        def answers(images: LabelledImages, progress: Progress) -> TailAnswers:
            both = tail_answers(running.get(), place.engine, images, fed, progress)
            running.rest()
            return both

        tails = place.once(f"{self.identity}, tails", precision, lambda: once_a_set(answers))
        chosen_by = tails(selection, progress)
        values = few_thresholds(chosen_by, max_loss, self.early)
        made = [self._at(value, chosen_by, running, tails, place, precision) for value in values]
        return list({each.name: each for each in made}.values())  # the same inputs fall back: the same candidate

    def _opened(self, place: Place, precision: str) -> FeatureRouter:
        return open_engine(
            SemanticModel(self.bundle), place.engine, threads=place.threads, precision=precision,
            calibration=place.ranges, keep=place.keep(self.identity, precision),
        ).one_by_one()  # fmt: skip

    def _at(
        self,
        value: float,
        answers: TailAnswers,
        running: Running[FeatureRouter],
        tails: Callable[[LabelledImages, Progress], TailAnswers],
        place: Place,
        precision: str,
    ) -> Candidate:
        early = self.early

        def router() -> FeatureRouter:
            opened = running.get()
            return FeatureRouter(opened.engine, opened.size, value, early, cascade=opened.cascade)

        def write(folder: Path, delivery: Delivery) -> None:
            promise, key = delivery.promise, delivery.key
            fallback, ran = tails(delivery.tested_on, lambda done, total: None).shares(value, early)
            threshold = Threshold(
                value, early, promise.max_loss, promise.loss, fallback, ran, promise.confidence, promise.images,
                engine=promise.engine, precision=promise.precision, only_tested=True,
            )  # fmt: skip
            bundle = replace(self.bundle, threshold=threshold)
            bundle.save(folder, key=key)
            if place.engine in FORMATS:
                export_split(
                    SemanticModel(bundle), folder / place.engine, FORMATS[place.engine], precision=precision,
                    ranges=place.ranges, key=key, running=running.get().engine,
                )  # fmt: skip

        fallback, _ = answers.shares(value, early)
        name = f"{self.name} for {100 * fallback:.3g} % of the inputs"
        return Candidate(
            name, self.kind, precision, running,
            lambda x: torch.as_tensor(running.made(value, router)(native(place.engine, x))),
            lambda images, progress: tails(images, progress).at(value, early), write,
        )  # fmt: skip


def once_a_set(
    answer: Callable[[LabelledImages, Progress], Opened],
) -> Callable[[LabelledImages, Progress], Opened]:
    """The same, computed once for every set of images."""
    kept: dict[str, Opened] = {}

    def remembered(images: LabelledImages, progress: Progress) -> Opened:
        name = images.fingerprint()
        if name not in kept:
            kept[name] = answer(images, progress)
        return kept[name]

    return remembered


def few_thresholds(answers: TailAnswers, max_loss: float, early: float = 0.0) -> list[float]:
    """Those that may be worth a test where ``max_loss`` (a fraction) is allowed, the safest first."""
    values = dict.fromkeys(least_thresholds(answers, [share * max_loss for share in _DIFFERING], early))
    return [value for value in values if value < NEVER]


def least_thresholds(answers: TailAnswers, differing: Sequence[float], early: float = 0.0) -> list[float]:
    """The lowest thresholds, down to the first that is too low, with which at most these shares of the answers differ
    from the full tail's; :data:`NEVER` where none is. ``early`` is the early threshold."""
    accepted = [NEVER] * len(differing)
    worst = 0.0  # of this threshold and all above it
    for threshold in candidate_thresholds(answers.confidence):
        worst = max(worst, float((answers.at(threshold, early) != answers.full).double().mean()))
        accepted = [threshold if worst <= most else old for most, old in zip(differing, accepted, strict=True)]
        if worst > max(differing):
            break
    return accepted
