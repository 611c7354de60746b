"""Labelled images: from a hub id, a folder of parquet shards, or an image folder, to normalised batches of tensors.

``splits`` finds the files and reads what a split names (``train``, ``test[:50%]``, ``train[:5000]+test``); this module
finds the columns, checks labels, and gives the images in batches as ``preprocessing`` decodes and normalises them.
"""

from __future__ import annotations

import copy
import hashlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sinf.data.preprocessing import Preprocessing
from sinf.data.splits import open_splits, select_rows
from sinf.errors import DataError, DataWarning

_DECODE_CHUNK = 512
_HEADERS = 64  # images that tell the size of all
_CACHE_BYTES = 1 << 30  # decoded images are kept when the whole split fits in this

#: Images a pass: few enough that activations stay in the processor's cache, which is faster than large batches.
BATCH = 50


class LabelledImages:
    """Images with labels, decoded when asked for. Make it with :func:`load_images`.

    ``labels`` is ``(N,)`` int64; ``cluster_of_class`` is ``(classes,)`` int64 when a cluster column is there.
    ``shuffled`` says why rows were put into a random order before the split was taken from them, or is None.
    ``labelled`` is False where the data has no labels: they are 0 then, or what a model answered.
    """

    def __init__(
        self,
        table: Any,
        *,
        name: str,
        image_column: str,
        labels: Tensor,
        class_names: list[str],
        cluster_of_class: Tensor | None = None,
        cluster_names: list[str] | None = None,
        rows: Tensor | None = None,
        shuffled: str | None = None,
        labelled: bool = True,
    ) -> None:
        self.name, self.labels, self.class_names = name, labels, class_names
        self._rows = torch.arange(len(labels)) if rows is None else rows  # as they are numbered in the named split
        self.shuffled, self.labelled = shuffled, labelled
        self.cluster_of_class, self.cluster_names = cluster_of_class, cluster_names
        self._table, self._image_column = table, image_column
        self._cache: tuple[Preprocessing, Tensor] | None = None
        self.batch, self.cache_bytes = BATCH, _CACHE_BYTES
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def numbered(self) -> bool:
        """Whether classes have no names, but their numbers."""
        return all(name == str(number) for number, name in enumerate(self.class_names))

    def used_classes(self) -> list[int]:
        """Numbers of the classes that have images."""
        return self.labels.unique().tolist()

    def select(self, rows: Tensor | list[int]) -> LabelledImages:
        """The given rows, in the given order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        part = self._with(_table=self._table.select(index.tolist()), labels=self.labels[index], _rows=self._rows[index])
        if self._cache is not None:
            part._cache = self._cache[0], self._cache[1][index]
        part.batch, part.cache_bytes = self.batch, self.cache_bytes
        return part

    def relabelled(self, classes: list[int | None], names: list[str]) -> LabelledImages:
        """The images with the labels of other classes, which ``names`` lists: ``classes`` has the new one of each
        class. Where it has None, images are left out."""
        new = torch.tensor([-1 if number is None else number for number in classes])
        labels = new[self.labels]
        clusters = self.cluster_of_class
        if clusters is not None:
            clusters = torch.full((len(names),), -1, dtype=torch.int64)
            for number in self.used_classes():
                if new[number] >= 0 and self.cluster_of_class is not None:
                    clusters[new[number]] = self.cluster_of_class[number]
        rows = torch.nonzero(labels >= 0).flatten()
        kept = self if len(rows) == len(self) else self.select(rows)
        return kept._with(labels=labels[rows], class_names=names, cluster_of_class=clusters)

    def labelled_by(self, labels: Tensor, names: list[str]) -> LabelledImages:
        """The images with these labels (N,) instead of none."""
        return self._with(labels=labels, class_names=names)

    def _with(self, **changes: Any) -> LabelledImages:
        other = copy.copy(self)
        vars(other).update(changes, _fingerprint=None)
        return other

    def common_size(self) -> tuple[int, int, int] | None:
        """Channels, height and width of the images, where those of the first few are all the same: 1 channel where all
        are grey, or else 3."""
        sizes, grey = set(), True
        for row in self._table[:_HEADERS][self._image_column]:
            try:
                with Image.open(io.BytesIO(_encoded(row, self.name))) as image:
                    sizes.add((image.height, image.width))
                    grey = grey and image.mode in ("1", "L")
            except Exception:  # a damaged file, of which an error tells when it is decoded
                return None
        return (1 if grey else 3, *sizes.pop()) if len(sizes) == 1 else None

    def limit(self, cache_bytes: int, batch: int) -> None:
        """Keep decoded images only where they take at most ``cache_bytes``, and give at most ``batch`` at once where no
        number is asked for; so will every selection of these images."""
        self.cache_bytes, self.batch = cache_bytes, min(self.batch, batch)

    def inputs(self, preprocessing: Preprocessing) -> Inputs:
        """All images as a model reads them, normalised when they are asked for."""
        return Inputs(self, preprocessing)

    def sample(self, count: int, seed: int = 0) -> LabelledImages:
        """About ``count`` images, equally many of every class (as far as there are), in an order drawn by ``seed``."""
        return self if count >= len(self) else self.select(self.sample_rows(count, seed))

    def sample_rows(self, count: int, seed: int = 0) -> list[int]:
        """The rows that :meth:`sample` takes."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        by_class = [order[self.labels[order] == label] for label in range(self.classes)]
        rank = torch.cat([torch.arange(len(rows)) for rows in by_class])
        return torch.cat(by_class)[torch.argsort(rank, stable=True)[:count]].tolist()

    def digests(self) -> list[bytes]:
        """A hash of every encoded image: what two sets of images share can be found without decoding them."""
        rows = self._table[:][self._image_column]
        names = (f"{self.name}, row {row}" for row in self._rows.tolist())
        return [hashlib.sha256(_encoded(row, name)).digest() for row, name in zip(rows, names, strict=True)]

    def fingerprint(self) -> str:
        """A hash of all images and labels, in their order."""
        if self._fingerprint is None:
            labels = self.labels.numpy().tobytes()
            self._fingerprint = hashlib.sha256(b"".join(self.digests()) + labels).hexdigest()
        return self._fingerprint

    def empty_classes(self) -> list[str]:
        """Names of the classes without an image."""
        counts = torch.bincount(self.labels, minlength=self.classes)
        return [self.class_names[i] for i in torch.nonzero(counts == 0).flatten().tolist()]

    def require_every_class(self, purpose: str) -> None:
        """Refuse a split in which a class has no image."""
        if empty := self.empty_classes():
            raise DataError(
                f"{self.name}: {purpose} needs images of every class",
                got=f"no image of {self._count(empty)}",
                remedy="take a larger or another split",
            )

    def warn_of_empty_classes(self, purpose: str, cost: str | None = None) -> list[str]:
        """Names of the classes without an image, with a :class:`DataWarning` that names them if there are any, and what
        that may cost."""
        if (empty := self.empty_classes()) and self.labelled:
            text = f"{self.name}: {purpose} says nothing of {self._count(empty)}, which have no image"
            warnings.warn(text if cost is None else f"{text}; {cost}", DataWarning, stacklevel=2)
        return empty

    def require_labels(self, purpose: str) -> None:
        """Refuse images without labels."""
        if not self.labelled:
            raise DataError(
                f"{self.name}: {purpose} needs labels",
                got="none",
                remedy="put images in folders named by their classes, or name the label column",
            )

    def _count(self, empty: list[str]) -> str:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        return f"{len(empty)} of {self.classes} classes: {shown}"

    def pixels(self, preprocessing: Preprocessing, start: int = 0, stop: int | None = None) -> Tensor:
        """Decoded rows ``start..stop`` as ``(n, H, W, C)`` uint8."""
        stop = len(self) if stop is None else min(stop, len(self))
        if self._cache is not None and self._cache[0] == preprocessing:
            return self._cache[1][start:stop]
        if len(self) * int(np.prod(preprocessing.size)) > self.cache_bytes:
            return self._decode(preprocessing, start, stop)
        chunks = [self._decode(preprocessing, i, i + _DECODE_CHUNK) for i in range(0, len(self), _DECODE_CHUNK)]
        self._cache = preprocessing, torch.cat(chunks)
        return self._cache[1][start:stop]

    def batches(self, preprocessing: Preprocessing, batch: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """``(b, C, H, W)`` float32 normalised images and ``(b,)`` labels, in order."""
        batch = self.batch if batch is None else batch
        for start in range(0, len(self), batch):
            pixels = self.pixels(preprocessing, start, start + batch)
            yield preprocessing.normalise(pixels), self.labels[start : start + batch]

    def _decode(self, preprocessing: Preprocessing, start: int, stop: int) -> Tensor:
        rows = self._table[start:stop][self._image_column]
        images = []
        for offset, row in enumerate(rows):
            name = f"{self.name}, row {int(self._rows[start + offset])}"
            if row is None or (row["bytes"] is None and row["path"] is None):
                raise DataError(f"{name}: there is no image", remedy="remove the row")
            source = row["bytes"] if row["bytes"] is not None else row["path"]
            images.append(preprocessing.decode(source, f"{name} {row['path'] or ''}".strip()))
        return torch.from_numpy(np.stack(images))


class Pixels:
    """``pixels[rows]`` are the decoded images of some rows (numbers, in any order), ``(n, H, W, C)`` uint8 on a device:
    all of them are kept where they fit into the images' cache, and decoded again each time where they do not."""

    def __init__(self, images: LabelledImages, preprocessing: Preprocessing, device: str = "cpu") -> None:
        self._images, self._preprocessing, self._device = images, preprocessing, device
        size = len(images) * int(np.prod(preprocessing.size))
        self._all = images.pixels(preprocessing).to(device) if size <= images.cache_bytes else None

    def __getitem__(self, rows: Tensor) -> Tensor:
        if self._all is not None:
            return self._all[rows]
        return self._images.select(rows.cpu()).pixels(self._preprocessing).to(self._device)


class Inputs:
    """``inputs[a:b]`` are images a to b, ``(n, C, H, W)`` float32: none is in memory before."""

    def __init__(self, images: LabelledImages, preprocessing: Preprocessing) -> None:
        self._images, self._preprocessing = images, preprocessing

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        return self._preprocessing.normalise(self._images.pixels(self._preprocessing, start, stop))


def load_images(
    source: str | Path,
    split: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    cluster_column: str | None = None,
    need_labels: bool = True,
) -> LabelledImages:
    """Open one split of a data set.

    ``source`` is a folder of parquet shards, a folder of images (``split/class/file`` or ``class/file``) or a hub id;
    ``split`` uses the syntax of ``datasets``. Rows that are stored class by class are shuffled by a fixed seed before
    the split is taken from them (see :mod:`sinf.data.splits`); ``shuffled`` of the result says so. Columns are found by
    their type when not named: the image column holds images, the label column is the one with most classes, the
    cluster column another one that is a function of the label. ``need_labels=False`` takes images without labels, too:
    a folder of nothing but images (or ``split/file``), or a table without such a column.

    Raises:
        DataError: the data cannot be opened, the split is empty, a column is missing, or a label is out of range.
    """
    splits = open_splits(str(source))
    name = f"{source} {split}"
    whole = next(iter(splits.values()))
    columns = list(whole.features)
    image_column = _find_image_column(whole, image_column, name)
    label_column = _find_label_column(whole, label_column, name, columns, need_labels)
    selected = select_rows(splits, split, label_column, str(source))
    table = selected.table
    if len(table) == 0:
        raise DataError(f"{name}: a split must hold images", got="0 images", remedy="widen the split")
    if label_column is None:
        return LabelledImages(
            _undecoded(table, image_column),
            name=name,
            image_column=image_column,
            labels=torch.zeros(len(table), dtype=torch.int64),
            class_names=["unknown"],
            rows=selected.numbers,
            shuffled=selected.shuffled,
            labelled=False,
        )
    labels, class_names = _read_classes(table, label_column, name)
    cluster_of_class = cluster_names = None
    candidates = [cluster_column] if cluster_column else _class_columns(table, without=label_column)
    for candidate in candidates:
        _require_column(candidate, columns, name, "cluster")
        try:
            clusters, names = _read_classes(table, candidate, name)
        except DataError:
            if cluster_column:
                raise
            continue  # nobody asked for this column
        mapping = _as_function(labels, clusters, len(class_names))
        if mapping is not None:
            cluster_of_class, cluster_names = mapping, names
            break
        if cluster_column:
            raise DataError(
                f"{name}: the cluster column must give every class one cluster",
                got=f"{cluster_column}, which gives a class several",
                remedy="name another column or give a cluster file",
            )
    return LabelledImages(
        _undecoded(table, image_column),
        name=name,
        image_column=image_column,
        labels=labels,
        class_names=class_names,
        cluster_of_class=cluster_of_class,
        cluster_names=cluster_names,
        rows=selected.numbers,
        shuffled=selected.shuffled,
    )


def _encoded(row: dict[str, Any] | None, name: str) -> bytes:
    if row is None or (row["bytes"] is None and row["path"] is None):
        return b""  # said when the image is decoded
    try:
        if row["bytes"] is not None:
            return row["bytes"]
        if not Path(row["path"]).is_file():  # a device has no end, and a pipe would be waited for
            raise OSError("no such file")
        return Path(row["path"]).read_bytes()
    except OSError as error:
        raise DataError(f"{name}: the image cannot be read", got=error, remedy="repair or remove it") from error


def _undecoded(table: Any, image_column: str) -> Any:
    import datasets

    return table.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))


def _require_column(column: str, columns: list[str], name: str, role: str) -> None:
    if column not in columns:
        raise DataError(
            f"{name}: no {role} column {column!r}", got=", ".join(columns), remedy=f"name the {role} column"
        )


def _find_image_column(table: Any, given: str | None, name: str) -> str:
    import datasets

    columns = list(table.features)
    holding = [
        column
        for column, feature in table.features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and {"bytes", "path"} <= feature.keys())
    ]
    if given:
        _require_column(given, columns, name, "image")
        if given not in holding:
            raise DataError(
                f"{name}: the image column must hold images",
                got=f"{given!r}, which does not",
                remedy=f"name another column ({', '.join(holding) or 'there is none'})",
            )
        return given
    for column in holding:
        return column
    raise DataError(f"{name}: no image column found", got=", ".join(columns), remedy="name the image column")


def _class_columns(table: Any, without: str | None = None) -> list[str]:
    import datasets

    return [c for c, f in table.features.items() if isinstance(f, datasets.ClassLabel) and c != without]


def _find_label_column(table: Any, given: str | None, name: str, columns: list[str], needed: bool) -> str | None:
    if given:
        _require_column(given, columns, name, "label")
        return given
    candidates = _class_columns(table)
    if candidates:
        return max(candidates, key=lambda column: table.features[column].num_classes)
    for column in ("label", "labels", "target", "class"):
        if column in columns:
            return column
    if not needed:
        return None
    remedy = "name the label column, or put images in a folder of their class: class/file or split/class/file"
    raise DataError(f"{name}: no label column found", got=", ".join(columns), remedy=remedy)


def _read_classes(table: Any, column: str, name: str) -> tuple[Tensor, list[str]]:
    """Labels ``(N,)`` and class names; integer columns without names get their numbers as names."""
    import datasets

    feature = table.features[column]
    values = table.data.column(column).to_pylist() if table._indices is None else table[column][:]
    if not all(isinstance(value, int) for value in values):
        bad = next(i for i, value in enumerate(values) if not isinstance(value, int))
        raise DataError(
            f"{name}, row {bad}: column {column!r} must hold whole numbers", got=repr(values[bad]), remedy="encode it"
        )
    labels = torch.tensor(values, dtype=torch.int64)
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else []
    names = names or [str(i) for i in range(int(labels.max()) + 1)]
    outside = torch.nonzero((labels < 0) | (labels >= len(names))).flatten()
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{name}, row {row}: a label must be in 0..{len(names) - 1}",
            got=int(labels[row]),
            remedy="correct or remove the row",
        )
    return labels, names


def _as_function(labels: Tensor, clusters: Tensor, classes: int) -> Tensor | None:
    """``(classes,)`` cluster of every class that occurs (-1 where none does), or None if a class has two."""
    mapping = torch.full((classes,), -1, dtype=torch.int64)
    mapping[labels] = clusters
    return mapping if bool((mapping[labels] == clusters).all()) else None
