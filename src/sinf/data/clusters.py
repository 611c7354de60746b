"""Semantic clusters: a partition of the classes, from a column of the data or from a file, and to a file; or one of all
classes."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from sinf.data.images import LabelledImages
from sinf.errors import ClusterError, ConfigError
from sinf.storage.files import replacing, write_json
from sinf.storage.schema import MAX_BYTES, parse_file

_JSON = '{"fruit": ["apple", "pear"]}'
_CSV = "a line class,cluster, then a line for every class"
_COLUMNS = ["class", "cluster"]


@dataclass(frozen=True)
class Clusters:
    """``members[m]`` are the classes of cluster ``m``, ascending; every class is in exactly one."""

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.members) or len(set(self.names)) != len(self.names):
            raise ClusterError("every cluster must have a name of its own", got=", ".join(self.names))
        empty = [name for name, classes in zip(self.names, self.members, strict=True) if not classes]
        if empty:
            raise ClusterError("a cluster must have classes", got=f"none in {empty[0]}", remedy="remove it")
        if not self.names:
            raise ClusterError("there must be a cluster", got="none", remedy="take all classes as one")
        unordered = [name for name, classes in zip(self.names, self.members, strict=True) if not _ascends(classes)]
        if unordered:
            raise ClusterError("classes of a cluster must ascend", got=unordered[0], remedy="sort them, each once")
        flat = sorted(c for classes in self.members for c in classes)
        repeated = [c for c, after in pairwise(flat) if c == after]
        if repeated:
            raise ClusterError("a class must be in one cluster only", got=f"class {repeated[0]} in several")
        missing = next((place for place, c in enumerate(flat) if place != c), None)
        if missing is not None:
            raise ClusterError("clusters must cover all classes", got=f"class {missing} in none", remedy="add it")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> int:
        return sum(len(classes) for classes in self.members)

    def of_class(self) -> Tensor:
        """``(classes,)`` int64: the cluster of every class."""
        mapping = torch.empty(self.classes, dtype=torch.int64)
        for cluster, classes in enumerate(self.members):
            mapping[list(classes)] = cluster
        return mapping


def _ascends(classes: tuple[int, ...]) -> bool:
    return all(a <= b for a, b in pairwise(classes))


def one_cluster(classes: int) -> Clusters:
    """All classes in one cluster: a cascade of a subgraph for every input and the full tail, without routes."""
    return Clusters(("all classes",), (tuple(range(classes)),))


def from_column(images: LabelledImages, *others: LabelledImages) -> Clusters:
    """Clusters from the images' cluster column; ``others``, of the same data, tell the clusters of classes without an
    image among these."""
    if images.cluster_of_class is None or images.cluster_names is None:
        raise ClusterError(
            f"{images.name} has no column that groups its classes",
            remedy="name a cluster column, give a cluster file, or take what the model shows (--clusters found)",
        )
    mapping = images.cluster_of_class.tolist()
    for other in others:
        if other.cluster_of_class is not None and other.cluster_names == images.cluster_names:
            more = other.cluster_of_class.tolist()
            mapping = [of if of >= 0 else more[c] for c, of in enumerate(mapping)]
    unknown = [images.class_names[c] for c, cluster in enumerate(mapping) if cluster < 0]
    if unknown:
        raise ClusterError(
            "the cluster column must tell the cluster of every class",
            got=f"no image of {unknown[0]} in {images.name}",
            remedy="take a larger split or give a cluster file",
        )
    used = sorted(set(mapping))
    if len(used) < 2:
        raise ClusterError(
            "a column must group the classes in at least two clusters",
            got=images.cluster_names[used[0]] if used else "none",
            remedy="name another, or build a cascade without clusters",
        )
    return Clusters(
        tuple(images.cluster_names[cluster] for cluster in used),
        tuple(tuple(c for c, of in enumerate(mapping) if of == cluster) for cluster in used),
    )


def from_file(path: str | Path, class_names: list[str]) -> Clusters:
    """Clusters from a JSON file ``{"cluster name": ["class name" or number, ...], ...}``, or from a CSV file with the
    columns ``class`` (a name, or the number of a class where none has that name) and ``cluster``.

    Raises:
        ClusterError: the file cannot be read, names an unknown class, or misses or repeats a class.
    """
    path = Path(path)
    number = {name: i for i, name in enumerate(class_names)}
    record = _read_csv(path, number) if path.suffix.lower() == ".csv" else parse_file(path, ClusterError, remedy=_JSON)
    if not isinstance(record, dict) or not all(isinstance(v, list) for v in record.values()):
        raise ClusterError(f"{path}: a cluster file must be an object of lists", remedy=_JSON)
    members = []
    for cluster, classes in record.items():
        for c in classes:
            exists = (
                c in number
                if isinstance(c, str)
                else isinstance(c, int) and not isinstance(c, bool) and 0 <= c < len(class_names)
            )
            if not exists:
                raise ClusterError(f"{path}: no such class in cluster {cluster!r}", got=repr(c), remedy="correct it")
        members.append([number[c] if isinstance(c, str) else c for c in classes])
    times = Counter(c for classes in members for c in classes)
    missing = [name for i, name in enumerate(class_names) if not times[i]]
    repeated = [name for i, name in enumerate(class_names) if times[i] > 1]
    if missing:
        raise ClusterError(f"{path}: clusters must cover all classes", got=f"{missing[0]} in none", remedy="add it")
    if repeated:
        raise ClusterError(f"{path}: a class must be in one cluster only", got=f"{repeated[0]} in several")
    return Clusters(tuple(record), tuple(tuple(sorted(classes)) for classes in members))


def _read_csv(path: Path, number: dict[str, int]) -> dict[str, list[str | int]]:
    """What a JSON file would hold."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES >> 20} MB")
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (OSError, ValueError, csv.Error) as problem:
        raise ClusterError(f"{path} must be readable CSV", got=problem, remedy=_CSV) from problem
    rows = [row for row in rows if row]
    if not rows or rows[0] != _COLUMNS or any(len(row) != len(_COLUMNS) for row in rows):
        got = next((",".join(row) for row in rows if len(row) != 2), ",".join(rows[0]) if rows else "nothing")
        raise ClusterError(f"{path}: a cluster file must have the columns class and cluster", got=got, remedy=_CSV)
    record: dict[str, list[str | int]] = {}
    for name, cluster in rows[1:]:
        as_number = name not in number and name.isascii() and name.isdigit() and len(name) < 10
        record.setdefault(cluster, []).append(int(name) if as_number else name)
    return record


def to_file(clusters: Clusters, class_names: list[str], path: str | Path) -> None:
    """Write what :func:`from_file` reads, JSON or CSV by the ending of the name. Classes are written by name, or by
    number where two have the same name.

    Raises:
        ConfigError: another ending.
        StorageError: it cannot be written; what was there stays.
    """
    path = require_ending(path)
    unique = len(set(class_names)) == len(class_names)
    record = {
        name: [class_names[c] if unique else c for c in classes]
        for name, classes in zip(clusters.names, clusters.members, strict=True)
    }
    if path.suffix.lower() == ".json":
        write_json(record, path)
        return
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows((c, name) for name, classes in record.items() for c in classes)


def require_ending(path: str | Path) -> Path:
    """The path of a cluster file that can be written.

    Raises:
        ConfigError: its name has another ending than .json and .csv.
    """
    path = Path(path)
    if path.suffix.lower() not in (".json", ".csv"):
        raise ConfigError("a cluster file must end in .json or .csv", got=path, remedy="name such a file")
    return path
