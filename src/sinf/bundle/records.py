"""What bundles and exports both store, as schemas (see :mod:`sinf.storage.schema`). Nothing here needs torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from sinf.routing.grouping import TailTimes
from sinf.storage.config import distinct
from sinf.storage.schema import MAX_CLASSES, Record, Share, Text, record_of

_MOST_PIXELS = 1 << 24


def _ascending(classes: tuple[int, ...]) -> tuple[int, ...]:
    if any(b <= a for a, b in pairwise(classes)):
        raise ValueError("classes must ascend")
    return classes


def _threshold(value: float) -> float:
    if not (0 <= value <= 1 or value == 2):
        raise ValueError("a threshold must be in 0..1, or 2: always fall back")
    return value


Number = Annotated[int, Field(ge=0, lt=MAX_CLASSES)]
#: A confidence, or 2: no input has as much.
ThresholdValue = Annotated[float, AfterValidator(_threshold)]
Weight = Annotated[float, Field(ge=-1e6, le=1e6)]


class ClusterRecord(Record):
    """One semantic cluster. They are a list, because their order is that of parts and of the route predictor."""

    name: Text
    classes: Annotated[
        tuple[Number, ...], Field(fail_fast=True, min_length=1, max_length=MAX_CLASSES), AfterValidator(_ascending)
    ]


def _partition(clusters: tuple[ClusterRecord, ...]) -> tuple[ClusterRecord, ...]:
    distinct(tuple(cluster.name for cluster in clusters))
    classes = sorted(number for cluster in clusters for number in cluster.classes)
    if classes != list(range(len(classes))):
        raise ValueError("every class must be in one cluster, and in one only")
    return clusters


ClusterList = Annotated[
    tuple[ClusterRecord, ...], Field(fail_fast=True, min_length=1, max_length=MAX_CLASSES), AfterValidator(_partition)
]


def cluster_list(names: tuple[str, ...], members: tuple[tuple[int, ...], ...]) -> list[dict[str, Any]]:
    """Clusters as they are stored."""
    return [{"name": name, "classes": list(classes)} for name, classes in zip(names, members, strict=True)]


_Side = Annotated[int, Field(ge=1, le=16_384)]


_Milliseconds = Annotated[tuple[Annotated[float, Field(gt=0, le=1e9)], ...], Field(fail_fast=True, max_length=1000)]
TIMES = record_of(
    TailTimes,
    threads=Annotated[int, Field(ge=1, le=65_536)],
    batches=Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 24)], ...], Field(fail_fast=True, max_length=1000)],
    subgraph=_Milliseconds,
    full_tail=_Milliseconds,
    returning=Share,
)
TimesList = Annotated[tuple[TIMES, ...], Field(fail_fast=True, max_length=1000)]  # type: ignore[valid-type]
