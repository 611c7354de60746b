"""Where the time of one image goes: extractor, route predictor, subgraph, deferral head, full tail, and what is around
them; and what every route costs.

Engines run extractor and predictor as one part, subgraph and deferral head as another. To tell them apart, the same
parts are also run *bare*, without predictor or head, on the same images; what is left of the part's time is theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinf.engine.parts import bare
from sinf.measure.timing import Progress, pinned_threads, require_timing
from sinf.routing.router import FIRST, FRONT, FULL_TAIL, Engine, FeatureRouter, part_name


@dataclass(frozen=True)
class ClusterTime:
    """Images whose route is one cluster: median milliseconds of the base model (``base``) and of the bundle (``ours``)
    on them, and of the subgraph where it ran (None where it never did); ``fallback`` is the share that fell back."""

    name: str
    images: int
    fallback: float
    subgraph: float | None
    base: float
    ours: float
    time_saved: float


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds of a batch of one: for every stage the median of its part, times the share of images that run it.

    ``glue`` is what is around the parts: comparing, choosing, copying. ``time_saved`` is that of the stages together.
    """

    images: int
    subgraph_ran: float
    fallback_share: float
    base: float
    extractor: float
    predictor: float
    subgraph: float
    deferral: float
    full_tail: float
    glue: float
    clusters: list[ClusterTime]

    @property
    def ours(self) -> float:
        return self.extractor + self.predictor + self.subgraph + self.deferral + self.full_tail + self.glue

    @property
    def overhead(self) -> float:
        """Routing, as a fraction of the base model's time: all that is neither extractor nor subgraph nor full tail."""
        return (self.predictor + self.deferral + self.glue) / self.base

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ours": self.ours, "overhead": self.overhead, "time_saved": 1 - self.ours / self.base}


@dataclass
class _Turn:
    """Milliseconds of one image: base model, bundle and its parts, and the parts when they are run bare."""

    route: int
    subgraph_ran: bool
    fell_back: bool
    base: float = 0.0
    whole: float = 0.0
    front: float = 0.0
    subgraph: float = 0.0
    full_tail: float = 0.0
    bare_front: float = 0.0
    bare_subgraph: float = 0.0


class _Clock:
    """An engine that keeps how long every part took, in milliseconds."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.times: dict[str, float] = {}

    def run(self, part: str, *inputs: Any) -> tuple[Any, ...]:
        start = time.perf_counter()
        outputs = self.engine.run(part, *inputs)
        self.times[part] = 1000 * (time.perf_counter() - start)
        return outputs

    def array(self, values: Any) -> Any:
        return self.engine.array(values)

    def close(self) -> None:
        self.engine.close()


@torch.no_grad()
def stage_times(
    router: FeatureRouter,
    names: tuple[str, ...],
    images: Tensor | np.ndarray,
    *,
    turns: int = 200,
    threads: int = 1,
    progress: Progress | None = None,
) -> StageTimes:
    """Time base model, bundle and its bare parts in turns, one image (of N, C, H, W) at a time.

    ``router`` is what :func:`sinf.engine.engines.open_engine` gives, ``names`` are those of the clusters. Every image
    is run once before it is timed, so that all parts are there.
    """
    require_timing(images, batch=1, pairs=turns, threads=threads)
    clock = _Clock(router.engine)
    timed = router.over(clock, router.times)
    records: list[_Turn] = []
    with pinned_threads(threads):
        for turn in range(turns):
            x = images[turn % len(images)][None]
            if turn < len(images):
                routed = timed.route(x)
                record = _Turn(int(routed.route[0]), bool(routed.subgraph_ran[0]), bool(routed.fell_back[0]))
                _run_bare(router.engine, x, record)
            else:
                record = replace(records[turn % len(images)])
            records.append(record)
        router.base(images[:1])
        for turn, record in enumerate(records):
            _time_turn(router, timed, clock, images[turn % len(images)][None], record, turn)
            if progress is not None:
                progress(turn + 1, turns)
    return _summary(records, names)


def _time_turn(
    router: FeatureRouter, timed: FeatureRouter, clock: _Clock, x: Tensor | np.ndarray, record: _Turn, turn: int
) -> None:
    def base() -> None:
        record.base = _milliseconds(lambda: router.base(x))

    def whole() -> None:
        clock.times = {}
        record.whole = _milliseconds(lambda: timed(x))
        record.front = clock.times[FIRST if timed.cascade else FRONT]
        record.subgraph = clock.times.get(part_name(record.route), 0.0)
        record.full_tail = clock.times.get(FULL_TAIL, 0.0)

    def bare_parts() -> None:
        record.bare_front, record.bare_subgraph = _run_bare(router.engine, x, record)

    jobs = (base, whole, bare_parts)
    for place in range(3):
        jobs[(turn + place) % 3]()  # each comes first, second and third as often: what ran before fills the caches
    if timed.cascade:  # its front and subgraph are one part
        record.front, record.subgraph = record.bare_front, record.front - record.bare_front


def _run_bare(engine: Engine, x: Any, record: _Turn) -> tuple[float, float]:
    """Milliseconds of extractor and of subgraph (0 where it does not run)."""
    outputs: list[Any] = []

    def run(part: str, given: Any) -> float:
        return _milliseconds(lambda: outputs.append(engine.run(bare(part), given)[0]))

    front = run(FRONT, x)
    return front, run(part_name(record.route), outputs[0]) if record.subgraph_ran else 0.0


def _milliseconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return 1000 * (time.perf_counter() - start)


def _summary(turns: list[_Turn], names: tuple[str, ...]) -> StageTimes:
    ran, fell_back = [t for t in turns if t.subgraph_ran], [t for t in turns if t.fell_back]
    by_route = {route: [t for t in turns if t.route == route] for route in sorted({t.route for t in turns})}
    subgraph = 0.0
    for mine in by_route.values():
        bare_times = [t.bare_subgraph for t in mine if t.subgraph_ran]
        subgraph += _median(bare_times) * len(bare_times) / len(turns)
    return StageTimes(
        images=len(turns),
        subgraph_ran=len(ran) / len(turns),
        fallback_share=len(fell_back) / len(turns),
        base=_median([t.base for t in turns]),
        extractor=_median([t.bare_front for t in turns]),
        predictor=_median([t.front - t.bare_front for t in turns]),
        subgraph=subgraph,
        deferral=_median([t.subgraph - t.bare_subgraph for t in ran]) * len(ran) / len(turns),
        full_tail=_median([t.full_tail for t in fell_back]) * len(fell_back) / len(turns),
        glue=_median([t.whole - t.front - t.subgraph - t.full_tail for t in turns]),
        clusters=[_of_cluster(names[route], mine) for route, mine in by_route.items()],
    )


def _of_cluster(name: str, turns: list[_Turn]) -> ClusterTime:
    ran = [t.subgraph for t in turns if t.subgraph_ran]
    base, whole = _median([t.base for t in turns]), _median([t.whole for t in turns])
    return ClusterTime(
        name=name,
        images=len(turns),
        fallback=sum(t.fell_back for t in turns) / len(turns),
        subgraph=_median(ran) if ran else None,
        base=base,
        ours=whole,
        time_saved=1 - whole / base,
    )


def _median(values: list[float]) -> float:
    return median(values) if values else 0.0
