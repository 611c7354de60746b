"""Times as shares of each other, and how that is said."""

from __future__ import annotations

import pytest

from sinf.measure.shares import percent_less, relative, times_less
from times import latency


def test_times_of_two_runs_are_compared_by_the_base_model_beside_each() -> None:
    """The second run was on a machine that was three times as slow."""
    assert relative(latency(2.0, base=10.0), latency(24.0, base=30.0)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("share", "percent", "times"),
    [
        (0.4, "60.0 % less", ("2.5 times", "less time")),
        (1.05, "5.0 % more", ("1.1 times", "more time")),
        (1.0, "0.0 % less", ("1.0 times", "less time")),
        (4.0, "300.0 % more", ("4.0 times", "more time")),
    ],
)
def test_what_is_slower_takes_more(share: float, percent: str, times: tuple[str, str]) -> None:
    assert percent_less(share) == percent
    assert times_less(share) == times
