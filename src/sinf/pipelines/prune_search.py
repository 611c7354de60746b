"""The smallest budget whose loss is within a limit, and the largest whose time is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from torch import fx

from sinf.errors import ConfigError, DoesNotPayError
from sinf.machine.memory import activations

LEAST = 0.1  # of the base model's cost: less is not tried
MIDDLE = (1 + LEAST) / 2  # what is tried first
TRIALS = 5  # the budget is known to three per cent then

_IMAGES, _FEWEST, _BYTES = 800, 400, 20 << 30


def trial_images(graph: fx.GraphModule) -> int:
    """How many images weights are fitted to while methods and budgets are compared. A network whose values take much
    memory takes as long to run: it gets fewer."""
    return max(_FEWEST, min(_IMAGES, _BYTES // activations(graph).total))


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
    best: Trial | None = None
    for _ in range(trials):
        budget = (low + high) / 2
        try:
            points = loss(budget)
        except ConfigError:
            low = budget
            continue
        if points <= most:
            best, high = Trial(budget, points), budget
        else:
            low = budget
    return best


_STEP, _RAISES = 0.04, 3  # by which a budget is raised, and how often


def raised(loss: Callable[[float], float], budget: float, most: float) -> float | None:
    """``budget``, or the first of a few larger ones whose ``loss`` is at most ``most`` points, None where none is: that
    of weights fitted to all images may be more than that of a trial."""
    for step in range(_RAISES):
        larger = min(1.0, budget + step * _STEP)
        if loss(larger) <= most:
            return larger
    return None


S = TypeVar("S")
T = TypeVar("T")


def each(things: Iterable[S], find: Callable[[S], T]) -> list[T]:
    """What is found for every one of which something is.

    Raises:
        ConfigError, DoesNotPayError: nothing is found for any; why not for the first.
    """
    results: list[T] = []
    reasons: list[ConfigError | DoesNotPayError] = []
    for thing in things:
        try:
            results.append(find(thing))
        except (ConfigError, DoesNotPayError) as reason:
            reasons.append(reason)
    if not results:
        raise reasons[0]
    return results


def fastest(networks: list[T], finish: Callable[[T], T], order: Callable[[list[T], bool], list[T]]) -> T:
    """The fastest of the ``networks``, when finished. ``finish`` fits one to all images, which may make it
    slower, never faster, and raises a DoesNotPayError where it loses too much; ``order`` puts the fastest first, of
    finished ones or not. So the others need not be finished where the first stays as it was.

    Raises:
        DoesNotPayError: all lose too much.
    """
    finished: list[T] = []
    reasons: list[DoesNotPayError] = []
    for one in order(networks, False) if len(networks) > 1 else networks:
        try:
            finished.append(finish(one))
        except DoesNotPayError as reason:
            reasons.append(reason)
            continue
        if finished == [one]:
            return one
    if not finished:
        raise reasons[0]
    return finished[0] if len(finished) == 1 else order(finished, True)[0]


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
    low, high, best, least = _LEAST_TIMED, 1.0, None, 1.0
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
            low, best = budget, budget
        else:
            high = budget
    if progress is not None:
        progress(_TIMED, _TIMED)
    if best is None:
        raise ConfigError(
            "the latency budget must be within reach",
            got=f"{target:g} of the base model's time; the fastest network tried takes {least:.2f}",
            remedy="raise it",
        )
    return best
