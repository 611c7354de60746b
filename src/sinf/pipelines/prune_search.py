"""The smallest budget whose loss is within a limit, and the largest whose time is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sinf.errors import ConfigError

LEAST = 0.1  # of the base model's cost: less is not tried
TRIALS = 5  # the budget is known to three per cent then


class Trial(NamedTuple):
    """A budget, and the loss that a network of it has, in points."""

    budget: float
    points: float


def smallest_budget(
    loss: Callable[[float], float], most: float, *, low: float = LEAST, high: float = 1.0, trials: int = TRIALS
) -> Trial | None:
    """By bisection between ``low`` and ``high``, the smallest budget tried with a loss of at most ``most`` points, None
    where none is. ``loss`` makes a network of a budget and returns its loss in points; where it raises a ConfigError,
    no network is so small."""
    found: Trial | None = None
    for _ in range(trials):
        budget = (low + high) / 2
        try:
            points = loss(budget)
        except ConfigError:
            low = budget
            continue
        if points <= most:
            found, high = Trial(budget, points), budget
        else:
            low = budget
    return found


_TIMED = 7  # trials: the budget is known to one per cent then
_LEAST_TIMED = 0.01


def largest_in_time(
    ratio: Callable[[float], float], target: float, progress: Callable[[int, int], None] | None = None
) -> float:
    """By bisection, the largest budget that takes at most ``target`` of the base model's time. ``ratio`` makes a
    network of a budget and returns its share of that time; where it raises a ConfigError, no network is so small.

    Raises:
        ConfigError: none of the networks tried is so fast.
    """
    low, high, found, least = _LEAST_TIMED, 1.0, None, 1.0
    for trial in range(_TIMED):
        if progress is not None:
            progress(trial, _TIMED)
        budget = (low + high) / 2
        try:
            share = ratio(budget)
        except ConfigError:
            low = budget
            continue
        least = min(least, share)
        if share <= target:
            low, found = budget, budget
        else:
            high = budget
    if progress is not None:
        progress(_TIMED, _TIMED)
    if found is None:
        raise ConfigError(
            "the latency budget must be within reach",
            got=f"{target:g} of the base model's time; the fastest network tried takes {least:.2f}",
            remedy="raise it",
        )
    return found
