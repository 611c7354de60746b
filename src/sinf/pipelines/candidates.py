"""Networks that may be delivered in place of a base model, opened where they will run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinf.bundle.semantic import Bundle
from sinf.compress.select import Budget
from sinf.data.images import LabelledImages
from sinf.engine.engines import native, open_engine
from sinf.engine.network_engine import open_network
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.models import BaseModel
from sinf.pipelines.comparison import save
from sinf.routing.threshold import BOUND

#: Normalised images (B, C, H, W), torch tensors -> logits (B, classes).
Run = Callable[[Tensor], Tensor]


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


class Candidate(ABC):
    """A network that answers in the place of the base model."""

    name: str
    kind: str

    @abstractmethod
    def open(self, place: Place, precision: str) -> Run:
        """The network as it runs there."""

    @abstractmethod
    def write(self, folder: Path, promise: Promise, class_names: list[str], key: bytes | None) -> None:
        """Save it, with what is promised of it."""


class Static(Candidate):
    """One network for all inputs. ``budget`` is what it keeps, None for the base model itself."""

    kind = "static"

    def __init__(self, model: BaseModel, method: str, budget: Budget | None) -> None:
        self.model, self.budget = model, budget
        self.name = "base model" if budget is None else f"{method}, {100 * budget.macs:.3g} %"
        self._method = method

    def open(self, place: Place, precision: str) -> Run:
        network = prepare(trace(self.model.module, self.model.spec.preprocessing))
        size = self.model.spec.preprocessing.size
        run = open_network(
            network, size, place.engine, threads=place.threads, precision=precision, calibration=place.ranges
        )
        return lambda x: torch.as_tensor(run(native(place.engine, x)))

    def write(self, folder: Path, promise: Promise, class_names: list[str], key: bytes | None) -> None:
        made_by = {"method": self._method, "made": self.name, "runs in": f"{promise.engine} {promise.precision}"}
        save(self.model, folder, class_names, made_by={**made_by, "promise": str(promise)}, key=key)


class Cascade(Candidate):
    """A small tail for every input, and the full tail for those that it is unsure of."""

    kind = "cascade"

    def __init__(self, bundle: Bundle, name: str) -> None:
        if bundle.threshold is None:
            raise ConfigError("a cascade needs a threshold", got="none", remedy="calibrate it")
        self.bundle, self.name, self.threshold = bundle, name, bundle.threshold

    def open(self, place: Place, precision: str) -> Run:
        router = open_engine(
            SemanticModel(self.bundle), place.engine, threads=place.threads, precision=precision,
            calibration=place.ranges,
        ).one_by_one()  # fmt: skip
        return lambda x: torch.as_tensor(router(native(place.engine, x)))

    def write(self, folder: Path, promise: Promise, class_names: list[str], key: bytes | None) -> None:
        threshold = replace(
            self.threshold, max_loss=promise.max_loss, loss=promise.loss, confidence=promise.confidence,
            images=promise.images, engine=promise.engine, precision=promise.precision,
        )  # fmt: skip
        replace(self.bundle, threshold=threshold).save(folder, key=key)


def ranges_of(images: LabelledImages, preprocessing: Any, count: int, seed: int) -> Tensor:
    """``(N, C, H, W)`` normalised images that set the ranges of int8."""
    return images.sample(count, seed).inputs(preprocessing)[:]
