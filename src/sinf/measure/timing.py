"""Time of a model beside that of its base model, in pairs: both take turns on the same inputs in one process and one
engine, so that whatever slows the machine slows both. What other processes take meanwhile is part of the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinf.errors import ConfigError
from sinf.measure.bootstrap import interval

Progress = Callable[[int, int], None]

SETTLED, SETTLING = 8, 10.0  # runs, and milliseconds of them, before one that counts
_DRAWS = 1000  # of the bootstrap over pairs
_COUNTERS = Path("/proc/stat")  # of Linux: processor time of all processes together
_TICKS = 100  # a second, in it


@dataclass(frozen=True)
class Latency:
    """Milliseconds a batch. ``time_saved`` is 1 - model / base of the means, since it is the mean that a server's bill
    adds up; ``*_low`` and ``*_high`` bound what they follow, ``low`` and ``high`` bound ``time_saved`` (95 %, bootstrap
    over the pairs). ``load`` is what other processes took meanwhile, in cores; None where the system does not tell."""

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
    load: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def latency(
    base: Callable[[Any], Any],
    model: Callable[[Any], Any],
    images: Tensor | np.ndarray,
    *,
    batch: int = 1,
    pairs: int = 200,
    warmup: int = 20,
    threads: int = 1,
    progress: Progress | None = None,
) -> Latency:
    """Time ``base`` and ``model`` in turns on batches of ``images`` (N, C, H, W), which are used over and over.

    ``threads`` are torch's; other engines have their own, set when they are opened.

    The inputs must be like those of the application: what an input costs depends on where it is sent.
    """
    options: dict[str, Any] = {"batch": batch, "pairs": pairs, "warmup": warmup, "threads": threads}
    return interleaved(base, {"model": model}, images, progress=progress, **options)["model"]


@torch.no_grad()
def interleaved(
    base: Callable[[Any], Any],
    candidates: Mapping[str, Callable[[Any], Any]],
    images: Tensor | np.ndarray,
    *,
    batch: int = 1,
    pairs: int = 200,
    warmup: int = 20,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Latency]:
    """Time several candidates in one run, by name: what is compared must be timed together.

    In every round each candidate runs beside a base model of its own (base, A, base, B, ...), all on the same batch of
    ``images`` (N, C, H, W). Rounds begin with another candidate each, and neither half of a pair is always first.
    ``pairs`` is the number of rounds.

    What is timed is a model that runs again and again, as where it serves. So before each run that counts it runs a few
    times more, on the batches before this one (up to :data:`SETTLED` times, and for :data:`SETTLING` milliseconds):
    the model that ran before has filled the processor's caches with its own weights, which costs a small network in
    int8 half of its time.

    Raises:
        ConfigError: an option is out of range, or there are no images or candidates.
    """
    require_timing(images, batch=batch, pairs=pairs, threads=threads, warmup=warmup)
    if not candidates:
        raise ConfigError("timing needs a model beside the base model", got="none", remedy="give at least one")
    names = list(candidates)
    times = torch.zeros(len(names), 2, pairs, dtype=torch.float64)
    took = torch.full((len(names), 2), SETTLING, dtype=torch.float64)  # by each the last time
    others = OtherProcesses()

    def of(pair: int) -> Tensor | np.ndarray:
        return images[[(abs(pair) * batch + i) % len(images) for i in range(batch)]]

    with pinned_threads(threads):
        for pair in range(-warmup, pairs):
            if pair == 0:
                others = OtherProcesses()
            x = of(pair)
            for which in ((pair + i) % len(names) for i in range(len(names))):
                for turn in (0, 1) if pair % 2 == 0 else (1, 0):
                    model = (base, candidates[names[which]])[turn]
                    for before in range(min(SETTLED, int(SETTLING / max(1e-6, float(took[which, turn])))), 0, -1):
                        model(of(pair - before))
                    start = time.perf_counter()
                    model(x)
                    took[which, turn] = elapsed = 1000 * (time.perf_counter() - start)
                    if pair >= 0:
                        times[which, turn, pair] = elapsed
            if progress is not None and pair >= 0:
                progress(pair + 1, pairs)
    load = others.load()
    return {name: replace(summary(times[i], batch, threads), load=load) for i, name in enumerate(names)}


@torch.no_grad()
def make_parts(
    model: Callable[[Any], Any], images: Tensor | np.ndarray, *, batch: int, progress: Progress | None = None
) -> None:
    """Run a model on all ``images`` (N, C, H, W) before it is timed on them: what it makes when first needed, such as
    a subgraph, takes many times what running it does."""
    for row in range(0, len(images), batch):
        model(images[row : row + batch])
        if progress is not None:
            progress(min(row + batch, len(images)), len(images))


@dataclass(frozen=True)
class Alone:
    """Milliseconds a batch of one model by itself; ``median_*`` bound the median (95 %, bootstrap), ``load`` is what
    other processes took meanwhile, in cores."""

    batch: int
    threads: int
    runs: int
    mean: float
    median: float
    median_low: float
    median_high: float
    p95: float
    load: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def alone(
    model: Callable[[Any], Any],
    images: Tensor | np.ndarray,
    *,
    batch: int = 1,
    pairs: int = 200,
    warmup: int = 20,
    threads: int = 1,
    progress: Progress | None = None,
) -> Alone:
    """Time one model ``pairs`` times. What is compared must be timed together: see :func:`latency`.

    Raises:
        ConfigError: an option is out of range, or there are no images.
    """
    beside = latency(
        lambda x: None, model, images, batch=batch, pairs=pairs, warmup=warmup, threads=threads, progress=progress
    )
    return Alone(
        beside.batch, beside.threads, beside.pairs, beside.mean, beside.median, beside.median_low, beside.median_high,
        beside.p95, beside.load,
    )  # fmt: skip


class OtherProcesses:
    """Processor time of all processes but this one, from now on. Load averages lag by minutes, this does not."""

    def __init__(self) -> None:
        self._start = self._read()

    def load(self) -> float | None:
        """In cores, since this was made; None where the system does not tell."""
        now = self._read()
        if now is None or self._start is None:
            return None
        clock, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, busy - own) / max(clock, 1 / _TICKS)

    def _read(self) -> tuple[float, float, float] | None:
        """Seconds: of the clock, of all processors (but idle and waiting for disks), of this process."""
        try:
            fields = [int(ticks) for ticks in _COUNTERS.read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        busy = sum(fields) - sum(fields[3:5])
        return time.perf_counter(), busy / _TICKS, time.process_time()


def summary(times: Tensor, batch: int, threads: int) -> Latency:
    """Of milliseconds (2, pairs): base model, and the model beside it."""
    pairs = times.shape[1]
    saved = interval(_time_saved, times[0], times[1], draws=_DRAWS)
    base_median, median = (interval(np.median, each, draws=_DRAWS) for each in times)
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


def _time_saved(base: np.ndarray, model: np.ndarray, axis: int) -> np.ndarray:
    """Of milliseconds (..., pairs)."""
    return 1 - model.mean(axis) / base.mean(axis)


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
