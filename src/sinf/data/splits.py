"""Splits: which rows of a data set an expression such as ``test[:50%]`` names, and in which order.

Expressions are read by ``datasets`` itself (``ReadInstruction``): percent and absolute slices, negative bounds, sums,
``(pct1_dropremainder)``. One thing differs. ``datasets`` slices the rows as they are stored, so that ``test[:50%]`` of
images stored class by class holds half of the classes. Here the rows of a split are put into a random order first,
by a fixed seed, before an expression takes a part of them, when

- the data is an image folder, whose order is that of file names, or
- the order of its rows depends on the class (:func:`in_class_order`).

Other rows keep their order, and a slice of them is what ``datasets`` gives. The order depends on the number of rows
and nothing else: parts of one split that do not overlap as expressions share no row, on any machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sinf.errors import DataError

#: Seed of the order of rows that are shuffled. It is part of what ``test[:50%]`` means and never changes.
SEED = 0
_CHANCE = 1e-5  # how rarely random rows may be taken for rows in class order, by either test
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class Rows:
    """Rows that an expression names: ``table``, a ``datasets.Dataset``; ``numbers``, (N,) int64, of every row in its
    split as stored; ``shuffled``, why the splits were shuffled, or None."""

    table: Any
    numbers: Tensor
    shuffled: str | None


def open_splits(source: str) -> dict[str, Any]:
    """All named splits of a hub id, a folder of parquet shards or an image folder, each a ``datasets.Dataset``.

    An image folder without named splits is one split, ``train``, as ``datasets`` has it.

    Raises:
        DataError: the data cannot be opened.
    """
    import datasets

    datasets.disable_progress_bars()
    folder = Path(source)
    if folder.is_file():
        raise DataError("data must be a folder or a hub id", got=source, remedy="give the folder that holds the file")
    if not folder.is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise DataError("the data folder must exist", got=source, remedy="check the path")
    shards = _shards(folder)
    images = [] if shards or not folder.is_dir() else _image_files(folder)
    if images:
        return _image_folder(folder, images)
    try:
        if shards:
            return dict(datasets.load_dataset("parquet", data_files=shards))
        return dict(datasets.load_dataset(str(folder.resolve()) if folder.is_dir() else source))
    except Exception as error:  # datasets raises many unrelated types for one cause: data that it cannot open
        raise DataError(
            f"{source} cannot be opened",
            got=_reason(error),
            remedy="give a hub id, a folder of parquet shards or an image folder",
        ) from error


def select_rows(splits: dict[str, Any], expression: str, label_column: str | None, source: str) -> Rows:
    """The rows that an expression names; ``label_column`` is None where there are no labels.

    Raises:
        DataError: the expression cannot be read, or names a split that is not there.
    """
    import datasets

    parts = read_expression(expression, {name: len(table) for name, table in splits.items()}, source)
    reasons = {name: _why_shuffled(splits[name], label_column) for name, _ in parts}
    orders = {name: row_order(len(splits[name]), shuffled=bool(why)) for name, why in reasons.items()}
    numbers = [orders[name][part.start : part.stop] for name, part in parts]
    tables = [
        splits[name].select(rows.tolist() if reasons[name] else part)
        for (name, part), rows in zip(parts, numbers, strict=True)
        if part
    ]
    table = datasets.concatenate_datasets(tables) if tables else splits[parts[0][0]].select([])
    shuffled = ", ".join(f"{name}: {why}" for name, why in reasons.items() if why)
    return Rows(table, torch.cat(numbers), shuffled or None)


def read_expression(expression: str, lengths: dict[str, int], source: str) -> list[tuple[str, range]]:
    """The parts that are added up, each a split and a range of positions in its order.

    Raises:
        DataError: the expression cannot be read, or names a split that is not there.
    """
    import datasets

    names = list(lengths)
    try:
        spec = "+".join(names) if expression == "all" and "all" not in names else expression
        pieces = datasets.ReadInstruction.from_spec(spec).to_absolute(lengths)
    except Exception as error:  # ValueError or AssertionError, by the part of the expression that is wrong
        remedy = "name one of them" if len(names) > 1 else f"name parts of it, as {names[0]}[:80%] and {names[0]}[80%:]"
        raise DataError(
            f"the split {expression!r} of {source} cannot be opened",
            got=_reason(error),
            remedy=f"its splits are: {', '.join(names)}; {remedy}",
        ) from error
    return [(piece.splitname, range(piece.from_, max(piece.from_, piece.to))) for piece in pieces]


def row_order(count: int, *, shuffled: bool) -> Tensor:
    """The (count,) int64 numbers of the rows of a split in the order in which parts of it are taken.

    A shuffled order sorts numbers of a generator whose stream numpy keeps for good: permutations of numpy and torch may
    change from version to version.
    """
    if not shuffled:
        return torch.arange(count)
    return torch.from_numpy(np.argsort(np.random.PCG64(SEED).random_raw(count), kind="stable"))


def in_class_order(labels: Tensor) -> bool:
    """Whether the order of rows with these labels, (N,) int64, depends on the class more than chance explains.

    Two tests at the level 1e-5: neighbours of one class are more than random rows have (their number is about Poisson
    distributed with mean sum n_c (n_c - 1) / N), or classes lie in different parts of the table (Kruskal and Wallis,
    1952, of the row numbers). Rows sorted by class fail the first, also when every shard is sorted by itself; rows of
    which the first half holds other classes than the second fail the second.
    """
    _, index, counts = labels.unique(return_inverse=True, return_counts=True)
    rows, classes = len(labels), len(counts)
    if classes < 2:
        return False
    n = counts.double()
    neighbours = (index[1:] == index[:-1]).sum().double()
    by_neighbours = torch.special.gammainc(neighbours, (n * (n - 1)).sum() / rows) if neighbours > 0 else 1.0
    order = torch.arange(rows, dtype=torch.double)
    positions = torch.zeros(classes, dtype=torch.double).index_add_(0, index, order) / n
    h = 12 / (rows * (rows + 1)) * (n * (positions - (rows - 1) / 2) ** 2).sum()
    by_place = torch.special.gammaincc(torch.tensor((classes - 1) / 2, dtype=torch.double), h / 2)
    return float(min(by_neighbours, by_place)) < _CHANCE


def _why_shuffled(table: Any, label_column: str | None) -> str | None:
    import pyarrow

    if table.info.builder_name == "imagefolder":
        return "an image folder"
    if label_column is None:
        return None
    labels = table.data.column(label_column)
    if not pyarrow.types.is_integer(labels.type) or labels.null_count or not len(labels):
        return None  # an error, or nothing, when labels are read
    order = torch.from_numpy(labels.to_numpy().astype(np.int64))
    return "rows were in class order" if in_class_order(order) else None


def _shards(folder: Path) -> dict[str, list[str]]:
    """Parquet files by split: ``train-00000-of-00003.parquet``, ``train.parquet``, in the folder or in its ``data``."""
    shards: dict[str, list[str]] = {}
    if folder.is_dir():
        for path in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
            split = re.sub(r"-\d+(-of-\d+)?$", "", path.stem)
            shards.setdefault(split, []).append(str(path.resolve()))
    return shards


def _image_files(folder: Path) -> list[tuple[str, ...]]:
    """Parts of the relative paths of all images in a folder, sorted, and none where a file of metadata says more than
    folders do. Hidden files are left out."""
    files = []
    for path in _visible(folder):
        if path.name in _METADATA:
            return []
        if path.suffix.lower() in Image.registered_extensions():
            files.append(path.relative_to(folder).parts)
    return sorted(files)


def _visible(folder: Path) -> Iterable[Path]:
    for path in folder.iterdir():
        if path.name.startswith((".", "__")):
            continue
        if path.is_dir():
            yield from _visible(path)
        else:
            yield path


def _image_folder(folder: Path, files: list[tuple[str, ...]]) -> dict[str, Any]:
    """``class/file`` or ``split/class/file`` as tables; ``file`` or ``split/file``, without labels.

    ``datasets`` takes every folder whose name holds the word train, test or val for a split, so that images of a
    class ``train`` in the split ``test`` become training images. Here a folder is what its depth says.
    """
    import datasets
    from datasets.data_files import SPLIT_KEYWORDS

    depth = len(files[0])
    other = next((file for file in files if len(file) != depth), files[0])
    if depth not in (1, 2, 3) or len(other) != depth:
        raise DataError(
            f"{folder}: images must all be at class/file, or all at split/class/file (without labels: all at file)",
            got=f"{'/'.join(files[0])}{'' if other == files[0] else ' and ' + '/'.join(other)}",
            remedy="move them",
        )
    split_of = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
    if depth == 1 or (depth == 2 and all(file[0] in split_of for file in files)):
        return _unlabelled_folder(folder, {file: split_of[file[0]] if depth == 2 else "train" for file in files})
    # A class whose folder is empty is a class.
    above = [folder] if depth == 2 else sorted({folder / file[0] for file in files})
    names = sorted(
        {
            path.name
            for root in above
            for path in root.iterdir()
            if path.is_dir() and not path.name.startswith((".", "__"))
        }
    )
    number = {name: index for index, name in enumerate(names)}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    splits: dict[str, dict[str, list[Any]]] = {}
    for file in files:
        split = "train" if depth == 2 else split_of.get(file[0], file[0])
        rows = splits.setdefault(split, {"image": [], "label": []})
        rows["image"].append({"bytes": None, "path": str(folder.resolve().joinpath(*file))})
        rows["label"].append(number[file[-2]])
    info = datasets.DatasetInfo(features=features, builder_name="imagefolder")
    return {split: datasets.Dataset.from_dict(rows, features=features, info=info) for split, rows in splits.items()}


def _unlabelled_folder(folder: Path, split_of: dict[tuple[str, ...], str]) -> dict[str, Any]:
    import datasets

    splits: dict[str, list[Any]] = {}
    for file, split in split_of.items():
        splits.setdefault(split, []).append({"bytes": None, "path": str(folder.resolve().joinpath(*file))})
    features = datasets.Features(image=datasets.Image())
    info = datasets.DatasetInfo(features=features, builder_name="imagefolder")
    return {
        split: datasets.Dataset.from_dict({"image": rows}, features=features, info=info)
        for split, rows in splits.items()
    }


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
