"""The search behind optimize(): what is made, what it loses and takes where it will run, what keeps the limit.

Static networks go down a ladder of budgets until they lose too much; what they keep decides how small the tails of
bundles are. Everything is opened in the engine and in every precision, and answers there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sinf.compress.select import Budget
from sinf.data.clusters import Clusters, one_cluster
from sinf.data.images import LabelledImages, Preprocessing
from sinf.engine.network_engine import open_network
from sinf.errors import ConfigError, CutError, DependencyError, ModelError, OutOfReachError, SinfError
from sinf.graph.cost import WEIGHT_COST
from sinf.graph.price import LayerTimes
from sinf.graph.trace import trace
from sinf.machine.memory import Memory
from sinf.measure.delivery import ExpectedLoss, answers_of, answers_with_margins
from sinf.measure.timed_images import timed_images
from sinf.measure.timing import Latency, interleaved, pinned_threads
from sinf.models import BaseModel
from sinf.models.described import described
from sinf.pipelines.build import BuildConfig, Images, make_bundle
from sinf.pipelines.candidates import Candidate, Design, Promise, Routed, Run, Static
from sinf.pipelines.compression_options import TimedIn
from sinf.pipelines.optimize_choice import FIRST_ROUNDS, LOST, Row, aim, contenders, kept_at, likely_loss, tested
from sinf.pipelines.optimize_config import OptimizeConfig
from sinf.pipelines.optimize_time import TimeLimit, layer_precision
from sinf.pipelines.place import Place, open_bytes, ranges_of
from sinf.pipelines.prune import Amount, PruneConfig, Pruned, pruner
from sinf.pipelines.times import network_times
from sinf.storage.steps import StepStore

Progress = Callable[[str, int, int], None]

BASE = "base model"
OWN = "your model, as loaded (torch)"
COMPILED = "your model, torch.compile"
_WELL = 0.6  # of the cost: a method that keeps no more within the limit needs no other beside it
_BETWEEN = (1 / 3, 2 / 3)  # of the way, in factors, from the last network within the limit to the first beyond
_LEAST = 0.05  # of the cost of its tail: no subgraph is smaller
_ABOVE = 1e-3  # of it: so much above the least that must stay, a budget is within reach
_SAFER = 0.5  # of the limit: what extractor and full tail of a bundle may lose, so that the small tail has the rest
_OPEN = 4  # of the memory, networks that are open may take one such part


@dataclass(frozen=True)
class _Rung:
    """A static network of the ladder, and what it loses on the selection images, in torch."""

    network: Pruned
    kept: float
    loss: ExpectedLoss

    @property
    def likely(self) -> float:
        """Points that it loses, by how many answers differ: a few hundred images tell that far more surely than who is
        right."""
        return 100 * LOST * self.loss.disagreement


class Search:
    """Candidates of a base model, made from ``scoring`` images, chosen by ``selection`` images, tested on
    ``calibration`` images. Steps are kept in the folder ``work``, what was opened in the ``place``."""

    def __init__(
        self,
        base: BaseModel,
        scoring: LabelledImages,
        selection: LabelledImages,
        calibration: LabelledImages,
        config: OptimizeConfig,
        work: Path,
        progress: Progress,
        place: Place,
    ) -> None:
        self.limit = TimeLimit(config.minutes)
        self.base, self.own = described(base), base.module
        self.config, self.work, self.progress = config, work, self.limit.watched(progress)
        self.scoring, self.selection, self.calibration = scoring, selection, calibration
        self.preprocessing = base.spec.preprocessing
        self.place = place
        _require_same(place, config)
        held = Memory(config.memory).decoded(self.preprocessing.size, selection, calibration)
        self.memory = config.memory - most_open(base, config) - held  # for making networks
        self.aim = aim(config.max_loss, config.confidence, len(calibration))
        self.left_out: list[str] = []
        self.candidates: dict[str, Candidate] = {}  # all that was opened, by full name
        (self.reference,) = Static(self.base, BASE).open(
            self.place, "f32", selection, config.max_loss, self._reporter("base model")
        )

    # ---- what is made

    def designs(self) -> Iterator[Design]:
        """The base model itself, smaller networks, and cascades."""
        yield Static(self.base, BASE)
        ladders: dict[str, list[_Rung]] = {}
        for method in self.config.methods:
            well = next((name for name in ladders if self._least(ladders[name], 1.0) <= _WELL), None)
            if well is not None:
                self.left_out.append(f"{method}: not tried, since {well} do well")
                continue
            if any(ladders.values()) and self._too_late(method):
                continue
            ladders[method] = []
            for rung in self._ladder(method):
                ladders[method].append(rung)
                yield Static(rung.network, f"{method}, {100 * rung.kept:.3g} %", method)
        smallest = {method: self._least(rungs, 1.0) for method, rungs in ladders.items()}
        method = min(smallest, key=lambda each: smallest[each])
        if ladders[method]:  # where each loses too much by itself, a full tail near to the base model may have the rest
            yield from self._bundles(method, smallest[method], self._least(ladders[method], _SAFER))
        elif self.config.cuts or self.config.clusters is not None:
            self.left_out.append("cascades and clusters: not tried, since nothing can be made smaller")

    def _budget(self, share: float) -> Budget:
        """That share of the cost: of time where it is known what layers take."""
        return Budget(share, WEIGHT_COST, self._times)

    @cached_property
    def _times(self) -> LayerTimes | None:
        """Of the base model's layers in the engine, in the precision that is fastest; None where they are not wanted,
        or would take too long."""
        config, precision = self.config, layer_precision(self.config)
        if precision is None:
            return None
        where = TimedIn(config.engine, precision, config.batch, config.threads)

        def measured() -> LayerTimes:
            run, _ = Static(self.base, BASE).run_in(self.place, precision)
            return network_times(self.base, where, StepStore(self.work), self.progress, run=run)

        times: LayerTimes = self.place.once("times of layers", precision, measured)
        return times

    @cached_property
    def _own(self) -> tuple[Tensor, Tensor]:
        """``(N,), (N,)`` the base model's answers for the images that choose, in torch, and their margins."""
        return answers_with_margins(self.base.module, self.selection, self.preprocessing, self._reporter("base model"))

    def _too_late(self, what: str) -> bool:
        """Whether ``what`` is left out because the time is over."""
        if self.limit.over:
            self.left_out.append(f"{what}: not begun, since {self.limit.minutes:g} minutes were over")
        return self.limit.over

    def _ladder(self, method: str) -> Iterator[_Rung]:
        """Smaller and smaller networks, to the first that loses more than is aimed at by both its own loss and what is
        likely, and a few between the last two; the first whatever the time."""
        config = self.config
        asked = PruneConfig(
            Amount(macs=config.budgets[0]),
            method,
            None,
            images=config.images,
            seed=config.seed,
            memory=self.memory,
        )
        told: list[str] = [""]
        try:
            make = pruner(
                self.base, self.scoring, asked, self.work,
                progress=lambda step, done, total: self.progress(f"{method}, {told[0]}: {step}", done, total),
            )  # fmt: skip
        except CutError as reason:  # it has nothing that this method could make smaller
            self.left_out.append(f"{method}: {reason}")
            return
        base, _ = self._own

        def rung(kept: float) -> _Rung | None:
            told[0], budget = f"{100 * kept:.3g} %", self._budget(kept)
            try:
                network = make(budget)
            except (ConfigError, CutError) as reason:  # out of reach, or nothing goes
                self.left_out.append(f"{method}, {told[0]}: {reason}")
                return None
            answers = answers_of(network.module, self.selection, self.preprocessing, self._reporter(method))
            return _Rung(network, kept, ExpectedLoss.of(base, answers, self.selection.labels))

        def loses_too_much(made: _Rung) -> bool:
            return min(made.loss.points, made.likely) > 100 * self.aim

        last = 1.0  # that loses little enough
        for kept in config.budgets:
            if last < 1 and self._too_late(f"{method}, {100 * kept:.3g} % and less"):
                return
            made = rung(kept)
            if made is not None:
                yield made
            if made is None or loses_too_much(made):
                break
            last = kept
        else:
            return
        some = made is not None or last < 1
        for share in _BETWEEN:
            between = last * (kept / last) ** share
            if some and self._too_late(f"{method}, {100 * between:.3g} %"):
                return
            made = rung(between)
            if made is not None:
                some = True
                yield made
                if loses_too_much(made):
                    return

    def _least(self, rungs: list[_Rung], share: float) -> float:
        """What a network keeps that likely loses a share of what is aimed at."""
        return kept_at(100 * share * self.aim, {rung.kept: rung.likely for rung in rungs})

    def _bundles(self, method: str, least: float, whole: float) -> Iterator[Routed]:
        """Cascades, and bundles of the clusters where there are some. Extractor and full tail keep ``whole`` of their
        cost, small tails and subgraphs a share of ``least``."""
        config, sizes = self.config, [max(_LEAST, tail * least) for tail in self.config.tails]
        one = one_cluster(self.base.spec.classes)
        for cut in config.cuts:
            for size in sizes:
                yield from self._bundle(one, method, cut, whole, size, 1 - 1e-9)
        if config.clusters is None or not sizes:
            return
        for cut in config.routed_cuts:
            yield from self._bundle(config.clusters, method, cut, whole, min(sizes), self.aim)

    def _bundle(
        self, clusters: Clusters, method: str, cut: float, whole: float, size: float, max_loss: float
    ) -> Iterator[Routed]:
        """Subgraphs keep ``size`` of the tail, or the least that they can."""
        config, kind = self.config, "cascade" if len(clusters) == 1 else f"{len(clusters)} clusters"
        name = f"{kind} at {100 * cut:g} %: {100 * size:.3g} % of the tail, then {100 * whole:.3g} %"
        if self._too_late(name):
            return
        asked = BuildConfig(
            method=method, cut_at=cut, whole=whole, macs=size, weight_cost=WEIGHT_COST, times=self._times,
            max_loss=max_loss, whole_images=config.images, seed=config.seed, memory=self.memory, keep_anyway=True,
        )  # fmt: skip
        images = self.scoring.sample(config.images, config.seed)
        routing = images if len(clusters) == 1 else self.scoring
        try:
            bundle = make_bundle(
                self.base, Images(images, routing, self.selection), clusters, asked, StepStore(self.work),
                lambda step, done, total: self.progress(f"{name}: {step}", done, total),
            )  # fmt: skip
        except SinfError as reason:
            least = reason.least if isinstance(reason, OutOfReachError) else 0.0
            if least <= size:
                self.left_out.append(f"{name}: {reason}")
                return
            yield from self._bundle(clusters, method, cut, whole, least + _ABOVE, max_loss)
            return
        yield Routed(bundle, name)

    # ---- what it does

    def opened(self) -> Iterator[Candidate]:
        """All designs in all precisions, but for the base model that the others are compared with. What they answer for
        the images that choose is remembered at once, so that after a time limit only times are missing."""
        for design in self.designs():
            for precision in self.config.precisions:
                if (design.name, precision) == (BASE, "f32"):
                    continue
                reporter = self._reporter(f"{design.name}, {precision}")
                try:
                    for made in design.open(self.place, precision, self.selection, self.aim, reporter):
                        self._answers(made, self.selection)
                        self.candidates[made.full_name] = made
                        yield made
                except SinfError as reason:
                    self.left_out.append(f"{design.name}, {precision}: {reason}")

    @cached_property
    def _in_torch(self) -> dict[str, Run]:
        """What a user would run instead without another engine: the base model as it was loaded, and compiled."""
        runs: dict[str, Run] = {OWN: self.own}
        if not self.config.compiled or self.config.engine == "torch-compile" or self._too_late(COMPILED):
            return runs
        one = torch.zeros(self.config.batch, *self.preprocessing.size)
        try:
            compiled = open_network(self.own, self.preprocessing.size, "torch-compile")
            with pinned_threads(self.config.threads), torch.no_grad():  # threads are part of what is compiled
                compiled(one)
            runs[COMPILED] = compiled
        except (DependencyError, ModelError) as reason:
            self.left_out.append(f"{COMPILED}: {reason}")
        return runs

    def measure(self, candidates: list[Candidate]) -> tuple[list[Row], dict[str, Latency]]:
        """Loss and time of every candidate, and times of the base model in torch, by name. A few rounds tell which may
        win; those are timed again, in all rounds of one run."""
        expected = self._answers(self.reference, self.selection)
        losses = [
            ExpectedLoss.of(expected, self._answers(candidate, self.selection), self.selection.labels)
            for candidate in candidates
        ]
        pairs = self.config.pairs
        rows, in_torch = self._timed(candidates, losses, max(2, round(FIRST_ROUNDS * pairs)))
        worth = contenders(rows, self.config.max_loss)
        again = [i for i, row in enumerate(rows) if row.time.pairs < pairs and (row in worth or row.name == BASE)]
        if again:
            timed, in_torch = self._timed([candidates[i] for i in again], [losses[i] for i in again], pairs)
            for i, row in zip(again, timed, strict=True):
                rows[i] = row
        return rows, in_torch

    def _timed(
        self, candidates: list[Candidate], losses: list[ExpectedLoss], pairs: int
    ) -> tuple[list[Row], dict[str, Latency]]:
        """Rows of candidates that are timed in one run with the base model in torch, the base model in its engine in
        between; in a few runs where not all may be open at once."""
        config = self.config
        x = timed_images(
            self.selection, self._own[1], self.preprocessing, batch=config.batch, pairs=pairs, seed=config.seed
        )  # fmt: skip
        times: dict[str, Latency] = {}
        for group in self.place.together(self.reference.running, (each.running for each in candidates)):
            runs = {each.full_name: each.run for each in candidates if each.running in group}
            times |= interleaved(
                self.reference.run, self._in_torch | runs, x, batch=config.batch, pairs=pairs,
                warmup=max(2, pairs // 10), threads=config.threads, progress=self._reporter("time"),
            )  # fmt: skip
        rows = [
            Row(each.name, each.kind, each.precision, loss, times[each.full_name])
            for each, loss in zip(candidates, losses, strict=True)
        ]
        return rows, {name: times[name] for name in self._in_torch}

    def test(self, rows: list[Row]) -> list[Row]:
        """Rows that may win, as the calibration images say: see :func:`tested`."""
        config = self.config
        timed = [row for row in rows if row.time.pairs == config.pairs]
        return [
            replace(row, accepted=accepted, promise=self._promise(row, losses))
            for row, accepted, losses in tested(timed, self.losses, config.max_loss, config.confidence)
        ]

    def _promise(self, row: Row, losses: Tensor) -> Promise:
        config, mean = self.config, float(losses.double().sum()) / len(losses)
        return Promise(
            config.max_loss, config.confidence, mean, len(losses), config.engine, row.precision,
            likely_loss(row.loss, losses),
        )  # fmt: skip

    def losses(self, row: Row) -> Tensor:
        """``(N,)`` in {-1, 0, 1}: what a candidate loses on the calibration images."""
        base, labels = self._base_answers, self.calibration.labels
        answers = self._answers(self.candidates[row.full_name], self.calibration)
        return (base == labels).float() - (answers == labels).float()

    @cached_property
    def _base_answers(self) -> Tensor:
        """For the calibration images."""
        return self._answers(self.reference, self.calibration)

    def _answers(self, candidate: Candidate, images: LabelledImages) -> Tensor:
        """``(N,)`` the classes that a candidate answers in its engine."""
        return candidate.answers(images, self._reporter(f"answers of {candidate.full_name}"))

    def _reporter(self, step: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(step, done, total)


def place_of(config: OptimizeConfig, scoring: LabelledImages, preprocessing: Preprocessing) -> Place:
    """Where a config's networks will run."""
    ranges = ranges_of(scoring, preprocessing, config.seed)
    return Place(config.engine, config.threads, ranges, config.memory // _OPEN)


def _require_same(place: Place, config: OptimizeConfig) -> None:
    """A promise says where its networks ran."""
    if (place.engine, place.threads) != (config.engine, config.threads):
        raise ConfigError(
            f"networks are promised and timed in {config.engine} with {config.threads} thread(s)",
            got=f"a place of {place.engine} with {place.threads}",
            remedy="make the place by place_of() of this config",
        )


def most_open(base: BaseModel, config: OptimizeConfig) -> int:
    """Bytes that networks take while they are open, at most: all of them, where they are small."""
    bundles = len(config.cuts) * len(config.tails) + len(config.routed_cuts) * (config.clusters is not None)
    networks = len(config.precisions) * (1 + len(config.methods) * (len(config.budgets) + len(_BETWEEN)) + 2 * bundles)
    return min(config.memory // _OPEN, (1 + networks) * open_bytes(trace(base.module, base.spec.preprocessing)))
