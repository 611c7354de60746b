"""Images that estimate are not among those that fit or choose."""

from __future__ import annotations

import warnings

from sinf.data.images import LabelledImages
from sinf.errors import DataError, DataWarning

_BY_CHANCE = 0.01  # public data sets hold a few images twice


def require_disjoint(images: LabelledImages, kind: str, others: LabelledImages, purpose: str) -> None:
    """Refuse images that are among others, e.g. the "calibration" images among the "scoring" ones.

    Raises:
        DataError: more are than public data sets hold twice.
    """
    shared = _shared(images, others)
    if shared:
        raise DataError(
            f"{kind} images must not be among the {purpose} images",
            got=f"{shared} shared by {images.name} and {others.name}",
            remedy="name disjoint splits",
        )


def warn_of_shared(images: LabelledImages, kind: str, others: LabelledImages, purpose: str) -> None:
    """Say of images that report, and are among those that fit or choose, that what they report is too good."""
    shared = _shared(images, others)
    if shared:
        warnings.warn(
            f"{shared} of {len(images)} {kind} images ({images.name}) are among the {purpose} images ({others.name}): "
            "new images lose more than these report; name disjoint splits",
            DataWarning,
            stacklevel=3,
        )


def _shared(images: LabelledImages, others: LabelledImages) -> int:
    """How many of the images are among the others, 0 where they may be so by chance."""
    digests = set(others.digests())
    shared = sum(digest in digests for digest in images.digests())
    return shared if shared > _BY_CHANCE * len(images) else 0
