"""What an export answers in the engine that it was written for, on labelled images: what was delivered, as it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sinf.data.images import LabelledImages
from sinf.edge import EdgeModel, EdgeNetwork
from sinf.engine.engines import native
from sinf.engine.network_engine import open_network
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.measure.delivery import ExpectedLoss, answers_of
from sinf.models import BaseModel

Progress = Callable[[int, int], None]


class Run(Protocol):
    """Normalised images (B, C, H, W) to logits (B, classes), and which of them fell back, None of one network."""

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]: ...


@dataclass(frozen=True)
class ExportEvaluation:
    """Attributes:
    top1: fraction of the images that are answered right.
    fallback: fraction that the full tail answers; None of one network.
    loss: against the base model in the same engine in f32; None where that was not given.
    promise: what is promised of the loss, in words.
    """

    images: int
    engine: str
    precision: str
    top1: float
    fallback: float | None
    loss: ExpectedLoss | None
    promise: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_export(
    export: EdgeModel | EdgeNetwork,
    images: LabelledImages,
    base: BaseModel | None = None,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> ExportEvaluation:
    """Accuracy of what :func:`sinf.edge.load` opened, image by image: no answer depends on its batch.

    Raises:
        DataError: the images have no labels.
    """
    images.require_labels("evaluation")
    fed, engine, run = export.preprocessing, export.runtime, running(export)
    answers: list[Tensor] = []
    back: list[np.ndarray] = []
    for x, _ in images.batches(fed):
        logits, fell_back = run(x.numpy())
        answers.append(torch.from_numpy(logits).argmax(1))
        back += [] if fell_back is None else [fell_back]
        if progress is not None:
            progress(sum(map(len, answers)), len(images))
    classes, loss = torch.cat(answers), None
    if base is not None:
        network = open_network(prepare(trace(base.module, fed)), fed.size, engine, threads=threads)
        expected = answers_of(lambda x: torch.as_tensor(network(native(engine, x))), images, fed, progress)
        loss = ExpectedLoss.of(expected, classes, images.labels)
    return ExportEvaluation(
        len(images), engine, export.precision, float((classes == images.labels).double().mean()),
        float(np.concatenate(back).mean()) if back else None, loss, export.promise,
    )  # fmt: skip


def running(export: EdgeModel | EdgeNetwork) -> Run:
    """What an export answers, whatever else is in a batch."""
    if isinstance(export, EdgeNetwork):
        return lambda x: (export(x), None)
    router = export.one_by_one()

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        routed = router.route(x)
        return routed.logits, routed.fell_back

    return run
