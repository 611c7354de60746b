"""Small pictures of images, as data that a page holds itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from PIL import Image

from sinf.data.images import LabelledImages
from sinf.data.preprocessing import Preprocessing

_SIDE = 72  # pixels of the longer side at most, above which it is made smaller


@dataclass(frozen=True)
class Picture:
    """``source`` is a data URI; ``alt`` says what is to be seen, ``lines`` stand below."""

    source: str
    alt: str
    lines: tuple[str, ...]
    wrong: bool


def encoded(pixels: np.ndarray) -> str:
    """An image ``(H, W, C)`` uint8 of 1 or 3 channels as a data URI: PNG as it is, or JPEG of at most 72 pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    small, stream = max(image.size) <= _SIDE, io.BytesIO()
    if not small:
        image.thumbnail((_SIDE, _SIDE))
    image.save(stream, "PNG" if small else "JPEG", quality=82, optimize=True)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"


def pictures(
    images: LabelledImages,
    feed: Preprocessing,
    rows: Sequence[int],
    answers: Sequence[str | None],
    notes: Sequence[str],
) -> tuple[Picture, ...]:
    """Of some rows, with what was answered of each (None to say nothing of it) and a note; none of images that are no
    pictures (neither 1 nor 3 channels)."""
    if not rows or feed.size[0] not in (1, 3):
        return ()
    made = []
    pixels = images.select(list(rows)).pixels(feed).numpy()
    for row, picture, answer, note in zip(rows, pixels, answers, notes, strict=True):
        name = images.class_names[int(images.labels[row])]
        wrong = answer is not None and answer != name
        said = name if answer is None else f"{name}, answered {f'as {answer}' if wrong else 'right'}"
        lines = (readable(name), *([f"answered: {readable(str(answer))}"] if wrong else []), *([note] if note else []))
        made.append(Picture(encoded(picture), said, lines, wrong))
    return tuple(made)


def readable(name: str) -> str:
    """A class's name without underscores."""
    return name.replace("_", " ")


def spread(rows: torch.Tensor, count: int, labels: torch.Tensor) -> list[int]:
    """At most ``count`` of some rows (N,) about evenly far apart, the first among them; of different classes, by the
    ``labels`` of all images, as far as there are rows of others up to the next place."""
    if len(rows) <= count:
        return rows.tolist()
    positions = torch.linspace(0, len(rows), count + 1).long().tolist()
    taken: list[int] = []
    shown: set[int] = set()
    for start, stop in pairwise(positions):
        part = rows[start:stop].tolist()
        row = next((row for row in part if int(labels[row]) not in shown), part[0])
        shown.add(int(labels[row]))
        taken.append(row)
    return taken


def one_of_each(labels: torch.Tensor, classes: Sequence[int], count: int) -> list[int]:
    """Rows of ``count`` images of some classes, as many of each as can be, by their labels (N,)."""
    by_class = [torch.nonzero(labels == number).flatten().tolist() for number in classes]
    turns = max(map(len, by_class), default=0)
    taken = [rows[turn] for turn in range(turns) for rows in by_class if turn < len(rows)]
    return taken[:count]
