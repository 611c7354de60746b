"""optimize(): from a base model, images and a limit of the loss to the fastest network that keeps it.

    candidates   static networks, as small as the limit allows; cascades of a small tail and a milder full one; int8
    selection    their loss and their time, in the engine where they will run, on images that fitted nothing
    calibration  the promise, on images that chose nothing

Those on the front of loss and time are tested on the calibration images from the safest up, in an order that the
selection images alone decide (fixed-sequence testing, arXiv 2110.01052): the fastest one accepted before the first
refusal is delivered.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinf.compress.select import Budget
from sinf.data.clusters import one_cluster
from sinf.data.images import LabelledImages
from sinf.engine.engines import require_precision, runtime_of
from sinf.errors import ConfigError, DoesNotPayError, SinfError
from sinf.graph.cost import WEIGHT_COST
from sinf.machine.memory import DEFAULT
from sinf.measure.delivery import ExpectedLoss, Limits, answers_of, is_faster
from sinf.measure.timing import Latency, interleaved
from sinf.models import BaseModel
from sinf.pipelines.build import BuildConfig, Images, make_bundle
from sinf.pipelines.candidates import Candidate, Cascade, Place, Promise, Static, ranges_of
from sinf.pipelines.prune import PruneConfig, Pruned, prune
from sinf.routing.threshold import p_value, require_limit
from sinf.storage.steps import StepStore

Progress = Callable[[str, int, int], None]

_SAFER = 0.25  # of the limit: what extractor and full tail of a cascade may lose, so that routing has the rest
_RANGES = 200  # images that set the ranges of int8
_TIMED = 256  # images that batches are made of
CUTS, TAILS = (0.15, 0.3), (0.5, 0.3)
OWN = "your model, as loaded (torch)"


@dataclass(frozen=True)
class OptimizeConfig:
    """What is asked for.

    Attributes:
        max_loss: limit of the loss of top-1 against the base model in its engine's f32, as a fraction.
        confidence: probability with which the limit holds for new images, None for no guarantee.
        engine: where the network will run, and is timed.
        precisions: of the arithmetic, those that are tried.
        batch: images in a batch, as the application has them.
        threads: of the processor.
        images: how many of the scoring images decide what goes, and fit the weights that stay.
        cuts: where cascades are cut, as shares of the MACs; none for no cascades.
        tails: what their small tails keep, as shares of what the smallest static network keeps.
        pairs: measurements of time.
        memory: bytes that the process may take.
    """

    max_loss: float = 0.01
    confidence: float | None = None
    engine: str = "torch"
    precisions: tuple[str, ...] = ("f32",)
    batch: int = 1
    threads: int = 1
    images: int = 4000
    cuts: tuple[float, ...] = CUTS
    tails: tuple[float, ...] = TAILS
    pairs: int = 100
    seed: int = 0
    memory: int = DEFAULT

    def __post_init__(self) -> None:
        require_limit(self.max_loss, self.confidence)
        if not self.precisions:
            raise ConfigError(
                "a precision is needed", got="none", remedy=f"take {runtime_of(self.engine).precisions[0]}"
            )
        for precision in self.precisions:
            require_precision(self.engine, precision)
        for name in ("batch", "threads", "images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", got=getattr(self, name), remedy="leave it out")
        for name in ("cuts", "tails"):
            if any(not 0 < share < 1 for share in getattr(self, name)):
                raise ConfigError(f"{name} must be in (0, 1)", got=getattr(self, name), remedy="leave them out")
        if self.pairs < 2:
            raise ConfigError("pairs must be at least 2", got=self.pairs, remedy="take 100")


@dataclass(frozen=True)
class Row:
    """A candidate in a precision, on the selection images; ``time`` is beside the base model in f32, both in the
    engine. ``accepted`` says whether it kept the limit on the calibration images, None where it was not tested."""

    name: str
    kind: str
    precision: str
    loss: ExpectedLoss
    time: Latency
    accepted: bool | None = None
    promise: Promise | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Optimized:
    """What was chosen, what is promised of it, what it was chosen from, and the base model as it was loaded beside
    them."""

    chosen: Row
    promise: Promise
    rows: tuple[Row, ...]
    own: Latency
    left_out: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def optimize(
    base: BaseModel,
    scoring: LabelledImages,
    calibration: LabelledImages,
    config: OptimizeConfig,
    folder: str | Path,
    *,
    selection: LabelledImages | None = None,
    work: str | Path | None = None,
    progress: Progress | None = None,
    key: bytes | None = None,
) -> Optimized:
    """Make the candidates, choose, test, and write the chosen one to ``folder``: a plain model or a bundle.

    ``scoring`` images make the candidates. ``selection`` images choose among them; without, half of the
    ``calibration`` images do, drawn by the seed, and the other half tests. Steps are kept in ``work`` (by default
    beside ``folder``, removed at the end), where the same call goes on after a kill.

    Raises:
        DoesNotPayError: nothing that keeps the limit is faster than the base model in its engine.
        ConfigError: an option is out of range, or there are too few images.
    """
    for images, purpose in ((scoring, "scoring"), (calibration, "calibration"), (selection, "selection")):
        if images is not None:
            images.require_labels(purpose)
    if selection is None:
        selection, calibration = halves(calibration, config.seed)
    folder = Path(folder)
    steps = Path(work) if work is not None else folder.with_name(folder.name + ".optimize")
    told = progress or (lambda step, done, total: None)
    search = _Search(base, scoring, selection, calibration, config, steps, told)
    found = search.run()
    if not is_faster((found.chosen.time,)):
        raise DoesNotPayError(
            "what is delivered must be faster than the base model in its engine",
            got=f"{100 * found.chosen.time.time_saved:.1f} % less time by {found.chosen.name}",
            remedy="allow more loss, or leave the model as it is",
            numbers=found.to_json(),
        )
    search.write(found, folder, key)
    if work is None:
        shutil.rmtree(steps, ignore_errors=True)
    return found


def halves(images: LabelledImages, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Two parts drawn at random, since images that are tested must be drawn as they will occur."""
    if len(images) < 2:
        raise ConfigError("calibration needs images", got=len(images), remedy="give some thousand")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    first, second = order.tensor_split(2)
    return images.select(first.tolist()), images.select(second.tolist())


class _Search:
    def __init__(
        self,
        base: BaseModel,
        scoring: LabelledImages,
        selection: LabelledImages,
        calibration: LabelledImages,
        config: OptimizeConfig,
        work: Path,
        progress: Progress,
    ) -> None:
        self.base, self.config, self.work, self.progress = base, config, work, progress
        self.scoring, self.selection, self.calibration = scoring, selection, calibration
        self.preprocessing = base.spec.preprocessing
        ranges = ranges_of(scoring, self.preprocessing, _RANGES, config.seed)
        self.place = Place(config.engine, config.threads, ranges)
        self.left_out: list[str] = []
        self._open: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {}
        self._candidates: dict[str, Candidate] = {}
        self._made: dict[float, Pruned | None] = {}

    def run(self) -> Optimized:
        reference = Static(self.base, "", None)
        for candidate in (reference, *self._statics(), *self._cascades()):
            self._candidates.setdefault(candidate.name, candidate)
        rows, own = self._measure(reference)
        tested = self._test(front(rows, self.config.max_loss), reference)
        rows = [tested.get((row.name, row.precision), row) for row in rows]
        accepted = [(row, row.promise) for row in rows if row.accepted and row.promise is not None]
        if not accepted:
            raise DoesNotPayError(
                "something faster must keep the limit of the loss",
                got=f"none of {len(rows)} candidates within {100 * self.config.max_loss:g} points",
                remedy="allow more loss, ask for less confidence, or give more calibration images",
                numbers={"rows": [row.to_json() for row in rows]},
            )
        chosen, promise = min(accepted, key=lambda pair: pair[0].time.mean)
        return Optimized(chosen, promise, tuple(rows), own, tuple(self.left_out))

    def write(self, found: Optimized, folder: Path, key: bytes | None) -> None:
        self._candidates[found.chosen.name].write(folder, found.promise, self.scoring.class_names, key)

    # ---- candidates

    def _statics(self) -> list[Static]:
        """As small as the limit allows on the selection images, and safer ones."""
        made = [self._pruned(share) for share in (1.0, 0.5, _SAFER)]
        return [
            Static(model, model.method, model.rule)
            for model in made
            if model is not None and isinstance(model.rule, Budget) and model.rule.macs < 1
        ]

    def _pruned(self, share: float) -> Pruned | None:
        """The network of the smallest budget that loses at most a share of the limit."""
        if share not in self._made:
            self._made[share] = self._prune(share)
        return self._made[share]

    def _prune(self, share: float) -> Pruned | None:
        config = self.config
        limits = Limits(share * config.max_loss, threads=config.threads, pairs=2, keep_anyway=True)
        asked = PruneConfig(
            None, "ranks", limits, images=config.images, weight_cost=WEIGHT_COST, seed=config.seed, memory=config.memory
        )
        try:
            return prune(
                self.base, self.scoring, asked, self.work, validation=self.selection,
                progress=lambda step, done, total: self.progress(f"static: {step}", done, total),
            )  # fmt: skip
        except DoesNotPayError as reason:
            self.left_out.append(f"static at {100 * share * config.max_loss:g} points: {reason}")
            return None

    def _cascades(self) -> list[Cascade]:
        least, whole = kept(self._pruned(1.0)), kept(self._pruned(_SAFER))
        made = []
        for cut in self.config.cuts:
            for tail in self.config.tails:
                made += self._cascade(cut, whole, max(0.05, tail * least))
        return made

    def _cascade(self, cut: float, whole: float, tail: float) -> list[Cascade]:
        config = self.config
        asked = BuildConfig(
            method="ranks", cut_at=cut, common=whole, subgraph=Budget(tail, WEIGHT_COST), max_loss=config.max_loss,
            common_images=config.images, seed=config.seed, memory=config.memory, keep_anyway=True,
        )  # fmt: skip
        images = self.scoring.sample(config.images, config.seed)
        name = f"cascade at {100 * cut:g} %: {100 * tail:.3g} % of the tail, then {100 * whole:.3g} %"
        try:
            bundle = make_bundle(
                self.base, Images(images, images, self.selection), one_cluster(self.base.spec.classes), asked,
                StepStore(self.work), lambda step, done, total: self.progress(f"{name}: {step}", done, total),
            )  # fmt: skip
        except SinfError as reason:
            self.left_out.append(f"{name}: {reason}")
            return []
        return [Cascade(bundle, name)]

    # ---- what they do

    def _measure(self, reference: Static) -> tuple[list[Row], Latency]:
        """Loss and time of every candidate in every precision, all timed in one run, the base model in between."""
        config = self.config
        losses: dict[tuple[str, str], ExpectedLoss] = {}
        expected = self._answers(reference.name, "f32", self.selection)
        for name in self._candidates:
            for precision in config.precisions:
                if (name, precision) == (reference.name, "f32"):
                    continue
                try:
                    answers = self._answers(name, precision, self.selection)
                except SinfError as reason:
                    self.left_out.append(f"{name}, {precision}: {reason}")
                    continue
                losses[name, precision] = ExpectedLoss.of(expected, answers, self.selection.labels)
        x = self.selection.sample(_TIMED, config.seed).inputs(self.preprocessing)[:]
        runs = {f"{name}, {precision}": self._run(name, precision) for name, precision in losses}
        module = self.base.module
        times = interleaved(
            self._run(reference.name, "f32"), {OWN: module, **runs}, x, batch=config.batch, pairs=config.pairs,
            warmup=max(2, config.pairs // 10), threads=config.threads,
            progress=lambda done, total: self.progress("time", done, total),
        )  # fmt: skip
        rows = [
            Row(name, self._candidates[name].kind, precision, loss, times[f"{name}, {precision}"])
            for (name, precision), loss in losses.items()
        ]
        return rows, times[OWN]

    def _test(self, rows: list[Row], reference: Static) -> dict[tuple[str, str], Row]:
        """Rows on the calibration images, the safest first, until one is refused."""
        config, labels = self.config, self.calibration.labels
        tested: dict[tuple[str, str], Row] = {}
        if not rows:
            return tested
        base_right = self._answers(reference.name, "f32", self.calibration) == labels
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))
        for row in rows:
            right = self._answers(row.name, row.precision, self.calibration) == labels
            losses = (base_right.float() - right.float())[order]
            loss = float(losses.double().mean())
            if config.confidence is None:
                accepted = loss <= config.max_loss
            else:
                accepted = p_value(losses, config.max_loss) <= 1 - config.confidence
            promise = Promise(config.max_loss, config.confidence, loss, len(labels), config.engine, row.precision)
            tested[row.name, row.precision] = Row(
                row.name, row.kind, row.precision, row.loss, row.time, accepted, promise
            )
            if not accepted and config.confidence is not None:
                break
        return tested

    def _answers(self, name: str, precision: str, images: LabelledImages) -> Tensor:
        """``(N,)`` the classes that a candidate answers in its engine."""
        what = f"{name}, {precision}"
        return answers_of(
            self._run(name, precision), images, self.preprocessing,
            lambda done, total: self.progress(f"answers of {what}", done, total),
        )  # fmt: skip

    def _run(self, name: str, precision: str) -> Callable[[Tensor], Tensor]:
        if (name, precision) not in self._open:
            self._open[name, precision] = self._candidates[name].open(self.place, precision)
        return self._open[name, precision]


def kept(model: Pruned | None) -> float:
    """The share of the cost that a network keeps."""
    return model.rule.macs if model is not None and isinstance(model.rule, Budget) else 1.0


def front(rows: list[Row], limit: float) -> list[Row]:
    """The rows within the limit (a fraction) that nothing beats in both loss and time, the safest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.loss.points, row.time.mean)):
        if row.loss.points <= 100 * limit and (not best or row.time.mean < best[-1].time.mean):
            best.append(row)
    return best
