"""Accuracy, MACs and parameters of a plain model, beside a base model where there is one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinf.bundle.plain import PlainModel
from sinf.data.images import BATCH, LabelledImages
from sinf.errors import ConfigError
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.measure.timing import Progress
from sinf.models import BaseModel


@dataclass(frozen=True)
class Size:
    """Of one input: MACs and parameters."""

    macs: int
    parameters: int

    @staticmethod
    def of(model: BaseModel) -> Size:
        graph = trace(model.module, model.spec.preprocessing)
        macs = MacCount(graph, couple(graph, free_output=True)).total()
        return Size(macs, sum(p.numel() for p in {id(p): p for p in model.module.parameters()}.values()))


@dataclass(frozen=True)
class Accuracy:
    """Shares of images, in 0..1, for which the right class is the most likely one, or one of the five most likely."""

    top1: float
    top5: float


@dataclass(frozen=True)
class PlainEvaluation:
    """A plain model on labelled images; of the base model, if it was given, the same. ``loss`` is in percentage points.
    ``empty_classes`` names the classes of which there was no image."""

    images: int
    top1: float
    top5: float
    macs: int
    parameters: int
    base: Accuracy | None = None
    base_size: Size | None = None
    loss: float | None = None
    empty_classes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def evaluate(
    model: PlainModel, images: LabelledImages, base: BaseModel | None = None, *, progress: Progress | None = None
) -> PlainEvaluation:
    """Run a plain model over labelled images, and the base model too where it is given.

    Raises:
        ConfigError: the base model has another number of classes.
    """
    if base is not None and base.spec.classes != model.spec.classes:
        got = f"{base.spec.classes} instead of {model.spec.classes}"
        raise ConfigError("the base model must have the classes of the plain model", got=got, remedy="name another")
    empty = images.warn_of_empty_classes("the evaluation")
    other = None if base is None else prepare(trace(base.module, base.spec.preprocessing))
    right, base_right, done = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), 0
    for x, y in images.batches(model.preprocessing):
        right += _right(model, x, y)
        if other is not None and base is not None:
            same = base.spec.preprocessing == model.preprocessing
            own = x if same else base.spec.preprocessing.normalise(
                images.pixels(base.spec.preprocessing, done, done + len(y))
            )  # fmt: skip
            base_right += _right(other, own, y)
        done += len(y)
        if progress is not None:
            progress(done, len(images))
    size = Size.of(model.base_model())
    (top1, top5), (base1, base5) = (right / done).tolist(), (base_right / done).tolist()
    return PlainEvaluation(
        images=done,
        top1=top1,
        top5=top5,
        macs=size.macs,
        parameters=size.parameters,
        base=None if base is None else Accuracy(base1, base5),
        base_size=None if base is None else Size.of(base),
        loss=None if base is None else 100 * (base1 - top1),
        empty_classes=empty,
    )


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """How many answers are right, by the first and by the first five classes."""
    logits = model(x)
    best = logits.topk(min(5, logits.shape[1]), 1).indices == y[:, None]
    return torch.stack([best[:, 0].sum(), best.any(1).sum()])


def right_share(run: Any, x: Any, labels: Tensor, batch: int = BATCH) -> float:
    """Share of images (N, C, H, W), in 0..1, that a network in any engine answers right, ``batch`` at once."""
    right = 0
    for row in range(0, len(x), batch):
        answers = np.asarray(run(x[row : row + batch])).argmax(1)
        right += int((answers == labels[row : row + len(answers)].numpy()).sum())
    return right / len(x)
