"""Images without labels, labelled by a model's own answers: what is lost against it can still be counted."""

from __future__ import annotations

import torch

from sinf.data.images import LabelledImages
from sinf.data.labels import Matched
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.models import BaseModel


@torch.no_grad()
def answered_by(base: BaseModel, images: LabelledImages) -> Matched:
    """The images, each with the class that the model answers; ``labelled`` stays False."""
    preprocessing, count = base.spec.preprocessing, base.spec.classes
    model = prepare(trace(base.module, preprocessing))
    labels = torch.cat([model(x).argmax(1) for x, _ in images.batches(preprocessing)])
    names = list(base.classes.names) if base.classes is not None else [str(number) for number in range(count)]
    said = f"{images.name}: no labels: the base model's own answers stand for them, and losses are against these"
    return Matched(images.labelled_by(labels, names), said)
