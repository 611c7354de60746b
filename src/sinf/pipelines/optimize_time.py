"""How long optimize() takes: an estimate before it begins, and a limit after which it begins nothing more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sinf.data.images import LabelledImages
from sinf.engine.engines import runtime_of
from sinf.graph.network import Network
from sinf.graph.trace import trace
from sinf.measure.estimate import FIT, KERNEL_FIT, RANK_STATISTICS, Estimate, Pace
from sinf.measure.layer_table import LayerTable
from sinf.measure.layer_times import probes_of
from sinf.measure.timing import SETTLED, SETTLING
from sinf.models import BaseModel
from sinf.pipelines.optimize_choice import FIRST_ROUNDS
from sinf.pipelines.optimize_config import OptimizeConfig

Progress = Callable[[str, int, int], None]

LIMIT = "time limit"
FASTEST = ("int8", "bf16", "f32")
_RUNGS = 7  # of a ladder: how many are made shows only when one loses too much
_SECOND = 0.5  # as much again: methods after the first are tried only where it does not do well
_THRESHOLDS = 10  # with which a bundle is a candidate, in the mean
_MAY_WIN = 0.25  # of the candidates: they are timed in all rounds
_TESTED = 3  # candidates, in the mean
_PROBE, _EXPORTED_PROBE = 0.05, 0.7  # seconds of a small network in which a layer is timed
_ALONE = 1.5  # times an image of a batch takes by itself
_DRAWS = 50_000  # views of the routing images
_COMPILING = 12.0  # seconds that torch.compile takes of a network


class TimeLimit:
    """So many minutes from now, None for no limit. ``clock`` is in seconds."""

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.minutes, self._clock, self._began = minutes, clock, clock()

    @property
    def over(self) -> bool:
        return self.minutes is not None and self._gone() >= 60 * self.minutes

    def watched(self, progress: Progress) -> Progress:
        """``progress`` that also tells, as a step of its own, how many seconds of the limit are gone."""
        if self.minutes is None:
            return progress
        total = max(1, round(60 * self.minutes))

        def told(step: str, done: int, all_of_it: int) -> None:
            progress(step, done, all_of_it)
            progress(LIMIT, min(total, int(self._gone())), total)

        return told

    def _gone(self) -> float:
        return self._clock() - self._began


def layer_precision(config: OptimizeConfig) -> str | None:
    """In which layers are timed, the fastest that is allowed; None where they are not: times are not wanted, or would
    take too long."""
    if not config.by_time or not runtime_of(config.engine).quick:
        return None
    return next((each for each in FASTEST if each in config.precisions), config.precisions[0])


def expected_time(
    base: BaseModel,
    config: OptimizeConfig,
    *,
    scoring: LabelledImages,
    selection: LabelledImages,
    calibration: LabelledImages,
) -> Estimate:
    """Of all steps, where none is stored; times of layers may be kept by this machine."""
    network = Network(trace(base.module, base.spec.preprocessing))
    pace = Pace.of(network.graph, base.spec.preprocessing.size, scoring.batch)
    precision, probes = layer_precision(config), 0
    if precision is not None:
        where: dict[str, Any] = {"precision": precision, "batch": config.batch, "threads": config.threads}
        probes = probes_of(network.graph, LayerTable.of_machine(), config.engine, **where)
    once = pace.factorisations(network.coupling)
    return estimate(pace, once, config, len(scoring), len(selection), len(calibration), probes)


def estimate(
    pace: Pace, once: float, config: OptimizeConfig, scoring: int, selection: int, calibration: int, probes: int = 0
) -> Estimate:
    """The same from a ``pace``, seconds of all factorisations ``once``, and numbers of images, and of small networks
    with which layers are timed."""
    images, precisions = min(config.images, scoring), len(config.precisions)
    forward, methods = pace.forward, 1 + _SECOND * (len(config.methods) - 1)
    steps = {"times of layers": probes * (_PROBE if config.engine == "torch" else _EXPORTED_PROBE)}
    steps |= {
        "smaller networks": methods
        * (images * forward * RANK_STATISTICS + once + _rungs(config) * (images * forward * KERNEL_FIT + once))
    }
    bundles = [(cut, 1, len(config.tails)) for cut in config.cuts]
    bundles += [(cut, len(config.clusters), 1) for cut in config.routed_cuts] if config.clusters is not None else []
    steps["cascades and clusters"] = sum(
        images * forward * (KERNEL_FIT + 2 * cut)
        + once
        + tails * (images * forward * (1 - cut) * (RANK_STATISTICS + FIT) + clusters * once * (1 - cut))
        for cut, clusters, tails in bundles
    )
    if config.clusters is not None:
        views = scoring * min(10, max(1, round(_DRAWS / scoring)))
        steps["route predictors"] = views * pace.teaching * sum(1 + cut for cut in config.routed_cuts)
    routed = sum(tails for _, _, tails in bundles)
    opened = 1 + precisions * (1 + methods * _rungs(config) + routed)
    steps["answers that choose"] = opened * selection * forward
    timed = 1 + precisions * (1 + methods * _rungs(config) + _THRESHOLDS * routed)
    one = config.batch * forward * _ALONE
    settled = one + min(SETTLED * one, SETTLING / 1000)
    steps["times"] = timed * (FIRST_ROUNDS + _MAY_WIN) * config.pairs * 2 * 1.1 * settled
    steps["times"] += _COMPILING * config.compiled
    steps["test"] = (1 + _TESTED) * calibration * forward
    return Estimate(steps, "--minutes, fewer --images, --no-cascades, or one --precision")


def _rungs(config: OptimizeConfig) -> int:
    return min(_RUNGS, len(config.budgets) + 2)
