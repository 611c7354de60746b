"""Image files of a folder, found without holding all of their names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sinf.errors import DataError

#: Endings of names that are taken for images in a folder; a file that is named itself is always taken.
ENDINGS = frozenset([
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
])  # fmt: skip


def image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as they are named, and of folders every image below, by name; links to folders are not followed."""
    for path in paths:
        if path.is_dir():
            yield from (Path(file) for file in _below(str(path)) if _is_image(file))
        else:
            yield path


@dataclass(frozen=True)
class Count:
    """Of what :func:`image_files` looks at: how many files it gives, and how many others there are in the folders."""

    images: int
    others: int


def count_files(paths: Iterable[Path]) -> Count:
    """The count of what :func:`image_files` would give."""
    images = others = 0
    for path in paths:
        if path.is_dir():
            for file in _below(str(path)):
                images, others = (images + 1, others) if _is_image(file) else (images, others + 1)
        else:
            images += 1
    return Count(images, others)


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in ENDINGS


def _below(folder: str) -> Iterator[str]:
    """All files below a folder, folder by folder."""
    try:
        with os.scandir(folder) as entries:
            children = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError as error:
        raise DataError("a folder of images must be readable", got=error, remedy="name another") from error
    for name, is_folder in children:
        path = os.path.join(folder, name)
        if is_folder:
            yield from _below(path)
        else:
            yield path
