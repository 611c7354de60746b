"""How long work will take, said before it begins: from the time of a few batches, times how many passes are known to
come.

What a pass takes beside the forward pass of the base model (gradients, sums, equations) is a factor that was measured
on networks of several kinds; see ``docs/guide.md`` for how near the estimates were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sinf.compress.methods import kind_of
from sinf.data.images import BATCH
from sinf.graph.coupling import Coupling
from sinf.graph.network import Network, PartedNetwork
from sinf.graph.prepare import prepare_teacher
from sinf.machine.durations import duration
from sinf.machine.memory import near
from sinf.statistics import Fisher

LONG = 30 * 60.0  # seconds, above which the line says what would shorten the work
_STORED = 0.1  # of what steps were expected to take: those that took less were done before

ROUTER, BOTH = "route predictor", "extractor and full tail"  # the first steps of a build

# Times that of a forward pass of the same layers, as they were built.
STATISTICS, RANK_STATISTICS = 2.7, 3.3  # a forward and a backward pass, and sums, of pairs of outputs as well
_TOGETHER = 4.0  # by one pass for several methods
FIT, KERNEL_FIT = 2.2, 2.4  # both networks, and normal equations of mixes, or of whole kernels
GATED_STEP, GATED = 4.5, 1.5  # a training step with gates, and a forward pass
_CUBES = 8.0  # of a layer's inputs: factorisations in float64 while it is scored and solved
_MATRIX = 512


@dataclass(frozen=True)
class Estimate:
    """Seconds of named steps. ``shorter`` says what would make it shorter, ``what`` of what it is."""

    steps: dict[str, float]
    shorter: str
    what: str = "expected time"

    @property
    def seconds(self) -> float:
        return sum(self.steps.values())

    def rest(self, done: Collection[str], seconds: float) -> Estimate | None:
        """Of the steps that are not ``done``, of which those that are took so many seconds: as much longer or shorter.
        None where these were stored, and say nothing."""
        planned = sum(self.steps.get(name, 0.0) for name in done)
        if not planned or seconds < _STORED * planned:
            return None
        left = {name: each * seconds / planned for name, each in self.steps.items() if name not in done}
        return Estimate(left, self.shorter, "expected time of the rest")

    def line(self) -> str:
        """``expected time: about 12 min (route predictor 7 min, subgraphs 4 min)``, the longest steps first."""
        told = sorted(self.steps.items(), key=lambda step: -step[1])
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in told if seconds >= 0.05 * self.seconds)
        more = f"; to shorten it: {self.shorter}" if self.seconds > LONG else ""
        return f"{self.what}: about {duration(self.seconds)} ({parts}){more}"


@dataclass(frozen=True)
class Pace:
    """Seconds, measured: of an image's forward pass through the base model as it is (``forward``), prepared and in the
    precision of what only teaches (``teaching``), and of a billion float64 multiply-accumulates of matrices."""

    forward: float
    teaching: float
    matrix: float

    @staticmethod
    @torch.no_grad()
    def of(graph: fx.GraphModule, size: tuple[int, ...], batch: int = BATCH) -> Pace:
        """The base model runs five batches of images (C, H, W) that say nothing; as it is, of as many as run together
        best, as the passes of compression do."""
        generator = torch.Generator().manual_seed(0)  # of our own: nobody else's draws are to change
        x = torch.rand(batch, *size, generator=generator)
        teacher = prepare_teacher(graph)
        teacher(x.clone())  # what is set up at the first call is not timed
        matrix = torch.rand(_MATRIX, _MATRIX, dtype=torch.float64, generator=generator)
        few = x[: near(graph)]
        graph(few.clone())
        return Pace(
            _seconds(lambda: graph(few.clone())) / len(few),
            min(_seconds(lambda: teacher(x.clone())) for _ in range(2)) / batch,
            min(_seconds(lambda: matrix @ matrix) for _ in range(3)) / (_MATRIX**3 / 1e9),
        )

    def factorisations(self, coupling: Coupling) -> float:
        """Seconds of those of all layers of a network, once."""
        widths = [len(coupling.reads[target].units) for target in set(coupling.mixers.values())]
        return self.matrix * _CUBES * sum(width**3 for width in widths) / 1e9


def _seconds(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def build_time(
    pace: Pace,
    network: PartedNetwork,
    *,
    scoring: int,
    routing: int,
    calibration: int,
    clusters: int,
    whole: bool,
    whole_images: int,
    reconstruct: bool,
) -> Estimate:
    """Of a build from so many images; ``routing`` counts all views of them, ``whole`` says whether extractor or full
    tail are made smaller too."""
    share = network.extractor_macs.total() / max(1, network.macs.total())
    each = STATISTICS + FIT * reconstruct
    steps = {
        ROUTER: routing * pace.teaching * (1 + share * whole),
        "features": scoring * pace.forward * share * (1 + whole),
        "subgraphs": scoring * pace.forward * (1 - share) * each
        + clusters * pace.factorisations(network.coupling) * (1 - share),
        "calibration": calibration * pace.forward * 2.5,
    }
    if whole:
        steps[BOTH] = pace.factorisations(network.coupling) + pace.forward * (
            min(scoring, whole_images) * STATISTICS + scoring * KERNEL_FIT * reconstruct
        )
    return Estimate(steps, "a smaller --route-draws, fewer --score and --calibrate images, or more --threads")


def prune_time(
    pace: Pace,
    network: Network,
    *,
    images: int,
    methods: tuple[str, ...],
    trials: int,
    trial_images: int,
    held_out: int,
    checks: float = 0,
) -> Estimate:
    """Of a pruning by one or more methods, each with ``trials`` that fit weights to fewer images; then the best is
    fitted to all of them. ``checks`` is how many forward passes of an image check what is predicted."""
    few, once = trials * min(trial_images, images), pace.factorisations(network.coupling)
    steps = {}
    for method in methods:
        sums = RANK_STATISTICS if Fisher in kind_of(method).needs else STATISTICS
        sums = sums if len(methods) == 1 else _TOGETHER / len(methods)
        steps[method] = pace.forward * (images * sums + few * KERNEL_FIT) + (1 + trials) * once
    if checks:
        steps["check of layers"] = pace.forward * checks + 2 * once
    steps["weights from all images"] = pace.forward * images * KERNEL_FIT + once
    steps["held-out images"] = pace.forward * held_out * (2 + len(methods) * trials)
    return Estimate(
        steps, "fewer --images, one --method, a budget (--macs) instead of --max-loss alone, or more --threads"
    )


def gated_time(pace: Pace, *, images: int, epochs: int, finishing: int, taught: bool = False) -> Estimate:
    """Of a dynamic training; ``finishing`` images set thresholds and norms. ``taught``: the base model runs too."""
    steps = {
        "training": epochs * images * pace.forward * GATED_STEP,
        "thresholds": finishing * pace.forward * GATED,
    }
    if taught:
        steps["answers of the base model"] = epochs * images * pace.forward
    return Estimate(steps, "fewer --epochs, fewer images, --bf16, another --device, or more --threads")
