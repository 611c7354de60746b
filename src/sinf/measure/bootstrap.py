"""Intervals of what was measured, by scipy's bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def interval(
    statistic: Callable[..., np.ndarray], *samples: Any, draws: int, share: float = 0.95
) -> tuple[float, float]:
    """What ``share`` of the bootstrapped values of a statistic lie between, by percentiles.

    ``samples`` (N,) each are drawn together: the one of number i belongs with the others of that number. ``statistic``
    takes as many arrays (..., N) and ``axis``. The draws are the same for the same N.
    """
    from scipy.stats import bootstrap  # takes half a second

    given = tuple(np.asarray(sample, dtype=np.float64) for sample in samples)
    bounds = bootstrap(
        given, statistic, paired=True, vectorized=True, n_resamples=draws, batch=_batch(given[0]),
        confidence_level=share, method="percentile", rng=0,
    ).confidence_interval  # fmt: skip
    return float(bounds.low), float(bounds.high)


def _batch(sample: np.ndarray) -> int:
    """Draws at a time, so that they take some 16 MB of each sample."""
    return max(1, 2_000_000 // len(sample))
