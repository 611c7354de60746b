"""What subgraphs and the full tail cost on this machine, by batch: what :mod:`sinf.routing.grouping` decides by."""

from __future__ import annotations

import time
from statistics import median

import torch

from sinf.engine.engines import native
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError
from sinf.measure.accuracy import machine
from sinf.measure.timing import Progress, pinned_threads
from sinf.routing.grouping import TailTimes
from sinf.routing.router import FRONT, FULL_TAIL, FeatureRouter, part_name

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@torch.no_grad()
def measure_tails(
    model: SemanticModel,
    router: FeatureRouter,
    engine: str,
    precision: str,
    threads: int,
    *,
    batches: tuple[int, ...] = BATCHES,
    turns: int = 5,
    progress: Progress | None = None,
) -> TailTimes:
    """Time the tails of a bundle, which ``router`` runs in ``engine``, in turns on random images.

    Every subgraph has ``turns`` turns at each batch size, and the full tail as many as half of them together.
    """
    if model.bundle.cascade:
        raise ConfigError(
            "only a bundle of several clusters has groups to tune", got="a cascade", remedy="leave it as it is"
        )
    if turns < 1:
        raise ConfigError("turns must be at least 1", got=turns, remedy="take 5")
    size = model.bundle.spec.preprocessing.size
    images = native(engine, torch.randn(batches[-1], *size, generator=torch.Generator().manual_seed(0)))
    names = [part_name(cluster) for cluster in range(len(model.bundle.clusters))]
    subgraph, full_tail = [], []
    with pinned_threads(threads):
        features, log_clusters, *_ = router.engine.run(FRONT, images)

        def milliseconds(part: str, count: int) -> float:
            given = (features[:count],) if part == FULL_TAIL else (features[:count], log_clusters[:count])
            start = time.perf_counter()
            router.engine.run(part, *given)
            return 1000 * (time.perf_counter() - start)

        for place, count in enumerate(batches):
            for part in (*names, FULL_TAIL):
                milliseconds(part, count)  # makes the part, and what an engine keeps for this batch size
            subgraph_times: list[float] = []
            full_tail_times: list[float] = []
            for turn in range(turns):
                for number, name in enumerate(names):
                    subgraph_times.append(milliseconds(name, count))
                    if number % 2 == turn % 2 or len(names) == 1:
                        full_tail_times.append(milliseconds(FULL_TAIL, count))
                if progress is not None:
                    progress(place * turns + turn + 1, len(batches) * turns)
            subgraph.append(median(subgraph_times))
            full_tail.append(median(full_tail_times))
    processor = machine()["processor"]
    return TailTimes(
        engine, precision, threads, processor, batches, tuple(subgraph), tuple(full_tail), _returning(model)
    )


def _returning(model: SemanticModel) -> float:
    """Share of the calibration images whose subgraph ran that fell back after all."""
    calibrated = model.bundle.threshold
    if calibrated is None or not calibrated.subgraph_ran:
        return 0.0
    return min(1.0, max(0.0, (calibrated.fallback - (1 - calibrated.subgraph_ran)) / calibrated.subgraph_ran))
