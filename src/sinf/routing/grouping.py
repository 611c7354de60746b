"""Which groups of a batch are worth their subgraphs.

A subgraph that runs for one or two inputs of a batch can cost more than those inputs add to a full tail that runs for
the others anyway. What is faster depends on machine, engine and batch, so it is decided from times that were measured
there (``sinf tune``) and are stored in the bundle. Only numbers here: the routing of every engine uses it, and devices
without torch have it too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from sinf.errors import ConfigError


@dataclass(frozen=True)
class TailTimes:
    """Median milliseconds of the subgraphs and of the full tail, by batch size, in one engine.

    ``returning`` is the share of inputs that fall back although their subgraph ran, on the calibration images.
    """

    engine: str
    precision: str
    threads: int
    device: str
    batches: tuple[int, ...]
    subgraph: tuple[float, ...]
    full_tail: tuple[float, ...]
    returning: float

    @property
    def setting(self) -> tuple[str, str, int]:
        """Where these times hold: engine, precision and threads."""
        return self.engine, self.precision, self.threads

    @staticmethod
    def from_json(values: dict[str, Any]) -> TailTimes:
        lists = {name: tuple(values[name]) for name in ("batches", "subgraph", "full_tail")}
        return TailTimes(**(values | lists))

    def __post_init__(self) -> None:
        counts = {len(self.batches), len(self.subgraph), len(self.full_tail)}
        if len(counts) != 1 or len(self.batches) < 2 or any(b <= a for a, b in pairwise((0, *self.batches))):
            raise ConfigError("times of tails must be of two or more growing batch sizes", got=self.batches)
        if (
            not all(0 < time < float("inf") for time in (*self.subgraph, *self.full_tail))
            or not 0 <= self.returning <= 1
        ):
            raise ConfigError("times of tails must be positive, and a share in 0..1", got=self, remedy="measure again")

    @cached_property
    def worth_alone(self) -> bool:
        """Whether one input alone should run its subgraph."""
        return self.worth((1,), 0) == 1

    def worth(self, sizes: Sequence[int], rest: int) -> int:
        """How many of the groups, of ``sizes`` from the largest down, should run their subgraphs, when ``rest`` more
        inputs go to the full tail in any case."""
        waiting, routed = float(rest + sum(sizes)), 0.0
        best, least = 0, float("inf")
        for count in range(len(sizes) + 1):
            time = routed + _at(waiting, self.batches, self.full_tail)
            if time < least:
                best, least = count, time
            if count < len(sizes):
                routed += _at(sizes[count], self.batches, self.subgraph)
                waiting -= sizes[count] * (1 - self.returning)
        return best


def _at(size: float, batches: Sequence[int], times: Sequence[float]) -> float:
    """The time of a batch size between measured ones, or beyond them on the line of the last two. A part that runs for
    less than one input in the mean runs as often as that."""
    if size <= batches[0]:
        return times[0] * size / batches[0]
    upper = min(bisect_left(batches, size), len(batches) - 1)
    low, high = batches[upper - 1], batches[upper]
    return times[upper - 1] + (times[upper] - times[upper - 1]) * (size - low) / (high - low)
