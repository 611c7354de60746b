"""Times as shares of each other, and how that is said. Models of different runs are compared by the base model that ran
beside each: what slows the machine slows both."""

from __future__ import annotations

from sinf.measure.timing import Latency


def relative(time: Latency, other: Latency) -> float:
    """One time as a share of the other, both as shares of the base model's that ran beside them."""
    return (1 - time.time_saved) / (1 - other.time_saved)


def percent_less(share: float) -> str:
    """``60.0 % less`` of a share of 0.4, ``5.0 % more`` of one of 1.05."""
    return f"{100 * abs(1 - share):.1f} % {'less' if share <= 1 else 'more'}"


def times_less(share: float) -> tuple[str, str]:
    """``2.5 times``, ``less time`` of a share of 0.4; ``1.2 times``, ``more time`` of one of 1.2."""
    if share <= 1:
        return f"{1 / share:.1f} times", "less time"
    return f"{share:.1f} times", "more time"
