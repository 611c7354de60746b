"""Time of ours beside that of the base model, in pairs: both take turns on the same inputs in one process and one
engine, so that whatever slows the machine slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinf.errors import ConfigError

Progress = Callable[[int, int], None]

_DRAWS = 1000  # of the bootstrap


@dataclass(frozen=True)
class Latency:
    """Milliseconds a batch. ``time_saved`` is 1 - ours / base of the means, since it is the mean that a server's bill
    adds up; ``*_low`` and ``*_high`` bound what they follow, ``low`` and ``high`` bound ``time_saved`` (95 %, bootstrap
    over the pairs)."""

    batch: int
    threads: int
    pairs: int
    base_mean: float
    base_median: float
    base_median_low: float
    base_median_high: float
    base_p95: float
    mean: float
    median: float
    median_low: float
    median_high: float
    p95: float
    time_saved: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def latency(
    base: Callable[[Any], Any],
    ours: Callable[[Any], Any],
    images: Tensor | np.ndarray,
    *,
    batch: int = 1,
    pairs: int = 200,
    warmup: int = 20,
    threads: int = 1,
    progress: Progress | None = None,
) -> Latency:
    """Time ``base`` and ``ours`` in turns on batches of ``images`` (N, C, H, W), which are used over and over.

    ``threads`` are torch's; other engines have their own, set when they are opened.

    The inputs must be like those of the application: what an input costs depends on where it is sent.
    """
    require_timing(images, batch=batch, pairs=pairs, threads=threads, warmup=warmup)
    times = torch.zeros(2, pairs, dtype=torch.float64)
    with pinned_threads(threads):
        for pair in range(-warmup, pairs):
            x = images[[(abs(pair) * batch + i) % len(images) for i in range(batch)]]
            turns = (0, 1) if pair % 2 == 0 else (1, 0)
            for turn in turns:
                model = (base, ours)[turn]
                start = time.perf_counter()
                model(x)
                elapsed = time.perf_counter() - start
                if pair >= 0:
                    times[turn, pair] = 1000 * elapsed
            if progress is not None and pair >= 0:
                progress(pair + 1, pairs)
    return summary(times, batch, threads)


def summary(times: Tensor, batch: int, threads: int) -> Latency:
    """Of milliseconds (2, pairs): base model, ours."""
    pairs = times.shape[1]
    draws = torch.randint(pairs, (_DRAWS, pairs), generator=torch.Generator().manual_seed(0))
    base, ours = times[0][draws], times[1][draws]
    saved = _interval(1 - ours.mean(1) / base.mean(1))
    base_median, median = _interval(base.median(1).values), _interval(ours.median(1).values)
    p95 = times.quantile(torch.tensor(0.95, dtype=times.dtype), dim=1)
    return Latency(
        batch=batch,
        threads=threads,
        pairs=pairs,
        base_mean=float(times[0].mean()),
        base_median=float(times[0].median()),
        base_median_low=base_median[0],
        base_median_high=base_median[1],
        base_p95=float(p95[0]),
        mean=float(times[1].mean()),
        median=float(times[1].median()),
        median_low=median[0],
        median_high=median[1],
        p95=float(p95[1]),
        time_saved=float(1 - times[1].mean() / times[0].mean()),
        low=saved[0],
        high=saved[1],
    )


def _interval(values: Tensor) -> tuple[float, float]:
    """What 95 % of bootstrapped values lie between."""
    return float(values.quantile(0.025)), float(values.quantile(0.975))


def require_timing(images: Tensor | np.ndarray, *, batch: int, pairs: int, threads: int, warmup: int = 0) -> None:
    """Refuse what cannot be timed.

    Raises:
        ConfigError: an option is out of range, or there are no images.
    """
    if batch < 1 or pairs < 2 or threads < 1 or warmup < 0:
        got = f"batch {batch}, pairs {pairs}, threads {threads}, warmup {warmup}"
        raise ConfigError("batch and threads must be at least 1, pairs at least 2, warmup not negative", got=got)
    if not len(images):
        raise ConfigError("timing needs images", got="none", remedy="give those of the application")


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Run with this many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
