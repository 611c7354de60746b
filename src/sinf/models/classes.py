"""Labels of some data as the classes of a model."""

from __future__ import annotations

from pathlib import Path

from sinf.data.images import LabelledImages
from sinf.data.labels import Matched, match_labels
from sinf.models.load import BaseModel
from sinf.models.tells import IMAGENET_CLASSES, imagenet_classes


def match_to(base: BaseModel, images: LabelledImages, file: str | Path | None = None) -> Matched:
    """The images with the model's classes (see :func:`sinf.data.labels.match_labels`). A model of 1,000 classes without
    names has ImageNet's, where they hold all labels of the data and those are fewer.

    Raises:
        DataError: a label is none of the model's classes, or may be several.
    """
    count = base.spec.classes
    guess = base.classes is None and count == IMAGENET_CLASSES != images.classes and not images.numbered
    return match_labels(images, count, base.classes, file=file, likely=imagenet_classes() if guess else None)
