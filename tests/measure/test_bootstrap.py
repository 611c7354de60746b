"""Intervals of the bootstrap: near the normal ones, of pairs that stay together, and repeatable."""

from __future__ import annotations

import numpy as np
import pytest

from sinf.measure.bootstrap import interval


def test_the_interval_of_a_mean_is_near_the_normal_one() -> None:
    sample = np.random.default_rng(1).normal(5, 2, 2000)
    low, high = interval(np.mean, sample, draws=4000)
    spread = 1.96 * sample.std() / len(sample) ** 0.5
    assert (low, high) == pytest.approx((sample.mean() - spread, sample.mean() + spread), abs=0.01)
    assert (low, high) == interval(np.mean, sample, draws=4000)
    narrower = interval(np.mean, sample, draws=4000, share=0.5)
    assert low < narrower[0] < narrower[1] < high


def test_samples_are_drawn_together() -> None:
    """What changes both in the same way does not widen the interval of their difference."""
    first = np.random.default_rng(2).normal(100, 50, 300)

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return (y - x).mean(axis)

    assert interval(difference, first, first + 1, draws=500) == pytest.approx((1, 1))


def test_few_and_many_samples() -> None:
    """Two, and more than fit into one batch of draws at a time."""
    assert interval(np.median, [1.0, 3.0], draws=1000) == (1.0, 3.0)
    low, high = interval(np.mean, np.arange(2_100_000) % 2, draws=4)
    assert 0.499 < low <= high < 0.501
