"""The feature router: sends every input to the subgraph of its route, or to the full tail, in whatever runs the parts.

An engine runs parts by name:

    front         images (B, C, H, W) -> features (B, ...), log_clusters (B, clusters), route (B,), confidence (B,)
    cluster000    features (N, ...), log_clusters (N, clusters) -> logits (N, classes), confidence (N,)
    full_tail     features (N, ...) -> logits (N, classes)
    base          images (B, C, H, W) -> logits (B, classes)
    first         images (B, C, H, W) -> features (B, ...), logits (B, classes), confidence (B,)

``front`` is the extractor with the route predictor, which always run together; its confidence is the probability of the
route, that of a subgraph the one of :mod:`sinf.routing.deferral`. ``first`` is of a cascade, one cluster that holds all
classes: its subgraph, the small tail, runs for every input, so that both are one part, and an engine need not write out
what passes between them. Arrays are the engine's own, of numpy or torch: what is written here means the same for both,
and neither is imported. Decisions are made on plain numbers: for the few of a batch that is much cheaper than
operations on arrays.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

from sinf.errors import ConfigError, DataError
from sinf.routing.grouping import TailTimes

FRONT, FIRST, FULL_TAIL, BASE = "front", "first", "full_tail", "base"
Array = Any  # numpy.ndarray or torch.Tensor


def part_name(cluster: int) -> str:
    """Name of a cluster's part in files and engines."""
    return f"cluster{cluster:03d}"


def early_floor(early_threshold: float, threshold: float) -> float:
    """What confidence a subgraph needs to run: never more than its answer will need, and out of reach where no answer
    will do."""
    return threshold if threshold > 1 else min(early_threshold, threshold)


class Routed(NamedTuple):
    """What the model says of a batch: logits (B, classes), the cluster of each input's route (B,), how likely the route
    loses nothing (B,), whether the input fell back to the full tail (B,) and whether its subgraph ran (B,)."""

    logits: Array
    route: Array
    confidence: Array
    fell_back: Array
    subgraph_ran: Array


class Engine(Protocol):
    """Runs the parts of one bundle; each is loaded when it is first asked for."""

    def run(self, part: str, *inputs: Array) -> tuple[Array, ...]:
        """What a part makes of a batch. The outputs may be written to."""

    def array(self, values: list[float] | list[bool] | list[int]) -> Array:
        """One-dimensional array of the engine's own kind: float32, bool or int64."""

    def close(self) -> None:
        """Forget all parts; the engine may be used again, and loads them again."""


class FeatureRouter:
    """A bundle as a classifier in any engine: images of ``size`` (C, H, W) -> logits, or :class:`Routed`.

    ``threshold`` is the confidence below which an input falls back to the full tail, ``early_threshold`` the one below
    which its subgraph does not even run. With ``times``, groups of a batch that are not worth their subgraphs go to the
    full tail too; without (None), an answer does not depend on what else is in the batch. A ``cascade`` has one group,
    whose subgraph always runs.

    Many threads may call one router. What is changed meanwhile counts from the next call on.
    """

    def __init__(
        self,
        engine: Engine,
        size: tuple[int, ...],
        threshold: float,
        early_threshold: float,
        times: TailTimes | None = None,
        cascade: bool = False,
    ) -> None:
        self.engine, self.size, self.cascade = engine, tuple(size), cascade
        self.early_threshold, self.times = early_threshold, times
        self._threshold = threshold
        self._floats: set[Any] = set()  # types of arrays that were found to be floats

    @property
    def threshold(self) -> float:
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not 0 <= value <= 2:
            raise ConfigError(
                "threshold must be in 0..1 (or 2: always fall back)", got=value, remedy="take the calibrated one"
            )
        self._threshold = value

    def __call__(self, images: Array) -> Array:
        return self._run(images)[0]

    def one_by_one(self) -> FeatureRouter:
        """The same routing without times: no answer depends on its batch, as it was calibrated."""
        return self.over(self.engine)

    def over(self, engine: Engine, times: TailTimes | None = None) -> FeatureRouter:
        """The same routing in another engine."""
        return FeatureRouter(engine, self.size, self.threshold, self.early_threshold, times, self.cascade)

    def base(self, images: Array) -> Array:
        """Logits of the base model in the same engine, for comparisons."""
        return self.engine.run(BASE, images)[0]

    def route(self, images: Array) -> Routed:
        """Logits and where every input went."""
        logits, route, confidence, falling, subgraph_ran = self._run(images)
        array, rows = self.engine.array, range(len(images))
        if route is None:
            route = array([0] * len(images))
        fell_back = set(falling)
        return Routed(
            logits,
            route,
            array(confidence),
            array([row in fell_back for row in rows]),
            array([row in subgraph_ran for row in rows]),
        )

    def _run(self, images: Array) -> tuple[Array, Array | None, list[float], list[int], set[int]]:
        """Logits, routes (None: all are the same), confidence, the rows that fall back and those that run a
        subgraph."""
        self._check(images)
        # Read once: another thread may change them while this one runs.
        threshold, times = self._threshold, self.times
        if self.cascade:
            return self._run_cascade(images, threshold)
        floor = early_floor(self.early_threshold, threshold)
        run = self._run_one if len(images) == 1 else self._run_groups
        return run(images, threshold, floor, times)

    def _run_one(
        self, image: Array, threshold: float, floor: float, times: TailTimes | None
    ) -> tuple[Array, Array, list[float], list[int], set[int]]:
        """What :meth:`_run_groups` comes to for one image, in as few steps as can be: they count at batch 1."""
        run = self.engine.run
        features, log_clusters, route, early = run(FRONT, image)
        confidence = early.item()
        subgraph_ran: set[int] = set()
        if confidence >= floor and (times is None or times.worth_alone):
            subgraph_ran = {0}
            logits, after = run(part_name(route.item()), features, log_clusters)
            confidence = after.item()
            if confidence >= threshold:
                return logits, route, [confidence], [], subgraph_ran
        (logits,) = run(FULL_TAIL, features)
        return logits, route, [confidence], [0], subgraph_ran

    def _run_cascade(self, images: Array, threshold: float) -> tuple[Array, None, list[float], list[int], set[int]]:
        features, logits, after = self.engine.run(FIRST, images)
        if len(images) == 1:  # as below, in as few steps as can be
            value = after.item()
            if value >= threshold:
                return logits, None, [value], [], {0}
            (logits,) = self.engine.run(FULL_TAIL, features)
            return logits, None, [value], [0], {0}
        confidence = after.tolist()
        falling = [row for row, value in enumerate(confidence) if value < threshold]
        if falling:
            (answer,) = self.engine.run(FULL_TAIL, *_take(falling, features))
            logits = _put(logits, falling, answer, len(images))
        return logits, None, confidence, falling, set(range(len(images)))

    def _run_groups(
        self, images: Array, threshold: float, floor: float, times: TailTimes | None
    ) -> tuple[Array, Array, list[float], list[int], set[int]]:
        run = self.engine.run
        features, log_clusters, route, early = run(FRONT, images)
        confidence = early.tolist()
        groups: dict[int, list[int]] = {}
        for row, cluster in enumerate(route.tolist()):
            if confidence[row] >= floor:
                groups.setdefault(cluster, []).append(row)
        logits = None
        groups = _worth(groups, len(images), times)
        for cluster, rows in groups.items():
            answer, after = run(part_name(cluster), *_take(rows, features, log_clusters))
            logits = _put(logits, rows, answer, len(images))
            for row, value in zip(rows, after.tolist(), strict=True):
                confidence[row] = value
        subgraph_ran = {row for rows in groups.values() for row in rows}
        falling = [row for row, value in enumerate(confidence) if row not in subgraph_ran or value < threshold]
        if falling:
            (answer,) = run(FULL_TAIL, *_take(falling, features))
            logits = _put(logits, falling, answer, len(images))
        return logits, route, confidence, falling, subgraph_ran

    def close(self) -> None:
        """Let go of what the engine holds."""
        self.engine.close()

    def _check(self, images: Array) -> None:
        shape = images.shape
        if len(shape) != 4 or shape[1:] != self.size or not shape[0]:
            raise DataError(
                f"images must be a batch of shape (B, {', '.join(map(str, self.size))})",
                got=tuple(shape),
                remedy="resize and normalise them as the bundle's preprocessing says",
            )
        if images.dtype not in self._floats:
            if "float" not in str(images.dtype):
                raise DataError(
                    "images must be normalised floats", got=images.dtype, remedy="use the bundle's preprocessing"
                )
            self._floats.add(images.dtype)  # a type takes as long to print as an image to add up
        if not math.isfinite(images.sum()):
            raise DataError("images must be finite", got="NaN or infinity", remedy="check the image's decoding")


def _worth(groups: dict[int, list[int]], batch: int, times: TailTimes | None) -> dict[int, list[int]]:
    """The groups whose subgraphs run."""
    if times is None or not groups:
        return groups
    largest = sorted(groups, key=lambda cluster: -len(groups[cluster]))
    sizes = [len(groups[cluster]) for cluster in largest]
    return {cluster: groups[cluster] for cluster in largest[: times.worth(sizes, batch - sum(sizes))]}


def _take(rows: list[int], *arrays: Array) -> tuple[Array, ...]:
    """Some rows of arrays; a group that is the whole batch, such as one image, is not copied."""
    return arrays if len(rows) == len(arrays[0]) else tuple(array[rows] for array in arrays)


def _put(logits: Array | None, rows: list[int], answer: Array, batch: int) -> Array:
    """The logits of a batch with those of some rows written over; all of them are at the end."""
    if len(rows) == batch:
        return answer
    if logits is None:
        logits = answer[[0] * batch]  # room for the batch, in an array of the engine's kind
    logits[rows] = answer
    return logits
