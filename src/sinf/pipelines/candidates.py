"""Networks that may be delivered in place of a base model: made once, opened in every precision that is tried.

One that is delivered for another engine than torch is written twice: as a model of torch, and as what that engine ran
when it was timed and tested, for :mod:`sinf.edge`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinf import edge
from sinf.bundle.semantic import Bundle
from sinf.data.images import LabelledImages
from sinf.engine.engines import native, open_engine
from sinf.engine.network_engine import open_network
from sinf.engine.torch_engine import SemanticModel
from sinf.export.plain import export_network
from sinf.export.split import export_split
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.measure.in_engine import TailAnswers, tail_answers
from sinf.measure.timing import Progress
from sinf.models import BaseModel
from sinf.pipelines.comparison import save
from sinf.routing.router import FeatureRouter
from sinf.routing.threshold import BOUND, NEVER, Threshold, candidate_thresholds

#: Normalised images (B, C, H, W), torch tensors -> logits (B, classes).
Run = Callable[[Tensor], Tensor]

#: What is written for an engine, beside the model of torch.
FORMATS = {engine: file_format for file_format, engine in edge.ENGINES.items()}

#: How many answers of a cascade's small tail may differ from those of its full one, as multiples of the limit of the
#: loss: most such answers are about images that the base model is wrong about too.
_DIFFERING = (0.25, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Place:
    """Where a network will run: engine, threads, and normalised images (N, C, H, W) that set the ranges of int8."""

    engine: str
    threads: int
    ranges: Tensor


@dataclass(frozen=True)
class Promise:
    """What was found on the calibration images: ``loss`` is a fraction; ``confidence`` is that with which the expected
    loss is within ``max_loss``, None without a guarantee."""

    max_loss: float
    confidence: float | None
    loss: float
    images: int
    engine: str
    precision: str

    def __str__(self) -> str:
        limit, where = f"{100 * self.max_loss:g} points", f"{self.engine} {self.precision}"
        if self.confidence is None:
            return (
                f"No promise for new images: on {self.images:,} calibration images {100 * self.loss:.2f} points lost."
            )
        return (
            f"With confidence {self.confidence:g}, the expected loss of top-1 against the base model is at most "
            f"{limit} in {where}, on images drawn as the {self.images:,} calibration images ({BOUND})."
        )


@dataclass(frozen=True)
class Candidate:
    """A network as it runs in its engine, in a precision; ``save`` writes it to a folder, with what is promised of it,
    the names of the classes, and the key that signs it."""

    name: str
    kind: str
    precision: str
    run: Run
    save: Callable[[Path, Promise, list[str], bytes | None], None]

    @property
    def full_name(self) -> str:
        return f"{self.name}, {self.precision}"


class Design(ABC):
    """A network that was made, before it runs anywhere."""

    name: str

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

    def open(
        self, place: Place, precision: str, selection: LabelledImages, max_loss: float, progress: Progress
    ) -> list[Candidate]:
        network = prepare(trace(self.model.module, self.model.spec.preprocessing))
        size = self.model.spec.preprocessing.size
        run = open_network(
            network, size, place.engine, threads=place.threads, precision=precision, calibration=place.ranges
        )
        as_tensor: Run = lambda x: torch.as_tensor(run(native(place.engine, x)))  # noqa: E731
        return [Candidate(self.name, "static", precision, as_tensor, partial(self._save, place=place))]

    def _save(self, folder: Path, promise: Promise, class_names: list[str], key: bytes | None, place: Place) -> None:
        made_by = {"made": self.name, "runs in": f"{promise.engine} {promise.precision}", "promise": str(promise)}
        method = {} if self.method is None else {"method": self.method}
        model = save(self.model, folder, class_names, made_by=method | made_by, key=key)
        if promise.engine in FORMATS:
            export_network(
                model, folder / promise.engine, FORMATS[promise.engine], precision=promise.precision,
                ranges=place.ranges, promise=str(promise), key=key,
            )  # fmt: skip


class Cascade(Design):
    """A small tail for every input, and the full tail for those that it is unsure of."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.bundle, self.name = bundle, name

    def open(
        self, place: Place, precision: str, selection: LabelledImages, max_loss: float, progress: Progress
    ) -> list[Candidate]:
        """With a few thresholds, set by the answers in this very engine and precision."""
        router = open_engine(
            SemanticModel(self.bundle), place.engine, threads=place.threads, precision=precision,
            calibration=place.ranges,
        ).one_by_one()  # fmt: skip
        found = tail_answers(router, place.engine, selection, self.bundle.spec.preprocessing, progress)
        values = dict.fromkeys(least_threshold(found, share * max_loss) for share in _DIFFERING)
        return [self._at(value, found, router, place, precision) for value in values if value < NEVER]

    def _at(self, value: float, found: TailAnswers, router: FeatureRouter, place: Place, precision: str) -> Candidate:
        fallback = 1 - float(found.routed(value).double().mean())
        own = FeatureRouter(router.engine, router.size, value, 0.0)

        def write(folder: Path, promise: Promise, class_names: list[str], key: bytes | None) -> None:
            threshold = Threshold(
                value, 0.0, promise.max_loss, promise.loss, fallback, 1.0, promise.confidence, promise.images,
                engine=promise.engine, precision=promise.precision,
            )  # fmt: skip
            bundle = replace(self.bundle, threshold=threshold)
            bundle.save(folder, key=key)
            if place.engine in FORMATS:
                export_split(
                    SemanticModel(bundle), folder / place.engine, FORMATS[place.engine], precision=precision,
                    ranges=place.ranges, key=key,
                )  # fmt: skip

        name = f"{self.name} ({100 * fallback:.0f} % of the inputs)"
        return Candidate(name, "cascade", precision, lambda x: torch.as_tensor(own(native(place.engine, x))), write)


def least_threshold(found: TailAnswers, differing: float) -> float:
    """The lowest threshold with which at most a share of the answers differs from the full tail's; :data:`NEVER` where
    none is."""
    accepted = NEVER
    for threshold in candidate_thresholds(found.confidence):
        if float((found.at(threshold) != found.full).double().mean()) > differing:
            break
        accepted = threshold
    return accepted


def ranges_of(images: LabelledImages, preprocessing: Any, count: int, seed: int) -> Tensor:
    """``(N, C, H, W)`` normalised images that set the ranges of int8."""
    return images.sample(count, seed).inputs(preprocessing)[:]
