"""Static pruning: a trained classifier made smaller for all its classes, for good, and saved as a plain model.

A compressor (:mod:`sinf.compress.methods`) makes a network of a budget; where the method or the budget is not given,
those are searched that lose least, or save most, by images that fitted nothing. Then, if asked for, come batch-norm
statistics from images, and fine-tuning with the base model as the teacher. What loses too much, or is not faster than
the base model, is not handed out. :mod:`sinf.pipelines.comparison` measures and saves what comes out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from sinf.bundle.plain import deployed
from sinf.compress.methods import make_compressor
from sinf.compress.recalibrate import recalibrate
from sinf.compress.select import Budget, Schedule, identity
from sinf.data.disjoint import require_disjoint
from sinf.data.images import BATCH, LabelledImages
from sinf.errors import ConfigError, DataWarning, DoesNotPayError
from sinf.graph.network import Network
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.machine.memory import Memory, Notice, activations, near, weight_bytes
from sinf.measure.delivery import ExpectedLoss, Limits, answers_of, describe_times, hold_out, is_faster, time_beside
from sinf.measure.estimate import Estimate, Pace, prune_time
from sinf.measure.timing import Latency
from sinf.models import BaseModel
from sinf.models.described import of_graph
from sinf.pipelines.latency_budget import budget_within
from sinf.pipelines.prune_check import Check, check_all, expected_checks, part_to_check
from sinf.pipelines.prune_config import Amount as Amount
from sinf.pipelines.prune_config import FineTuning as FineTuning
from sinf.pipelines.prune_config import PruneConfig as PruneConfig
from sinf.pipelines.prune_config import describe, require_no_labels
from sinf.pipelines.prune_search import TRIALS, each, fastest, raised, smallest_budget, trial_images
from sinf.pipelines.pruned import Pruned as Pruned
from sinf.pipelines.whole import Method, Source
from sinf.storage.files import hash_tensors
from sinf.storage.steps import StepStore, Tensors
from sinf.training.train import EpochReport, Teacher, TrainConfig, train
from sinf.version import __version__

Progress = Callable[[str, int, int], None]
Chosen = tuple[Method, Budget]

_HINTS = 4  # trials for what an error proposes
_FEWER = 4  # times fewer rounds tell which of two networks is faster
_SURE_BASE = 0.985  # a base model that answers so many right has most likely been trained on these images


def prune(
    base: BaseModel,
    scoring: LabelledImages,
    config: PruneConfig,
    work: str | Path,
    *,
    validation: LabelledImages | None = None,
    training: LabelledImages | None = None,
    report: Callable[[EpochReport], None] | None = None,
    progress: Progress | None = None,
    expect: Callable[[Estimate], None] | None = None,
    notice: Notice | None = None,
) -> Pruned:
    """A smaller model with the base model's classes, whose spec describes it whole.

    Steps are kept in the folder ``work``, where the same call goes on after a kill. ``validation`` are images that
    estimate the loss, choose what is left open and fit nothing, best some that the base model was not trained on; by
    default some of the scoring images are held out for that. ``training`` are the images to fine-tune on; ``report`` is
    called after every epoch; before it begins ``expect`` is called with how long it will take (but for fine-tuning),
    and ``notice`` with how much memory.

    Raises:
        ConfigError: a budget is out of reach, the memory is too small, or there are no batch norms to recalibrate.
        ModelError: the model cannot be described plainly; the message names what is in the way.
        DoesNotPayError: it loses more than the limits allow, or is not faster than the base model.
    """
    making = _Pruning(base, scoring, validation, config, Path(work), progress or (lambda step, done, total: None))
    if notice is not None:
        making.notice = making.source.notice = notice
        notice(making.source.memory.summary())
    if expect is not None:
        expect(making.expected())
    return making.run(training, report)


def pruner(
    base: BaseModel, scoring: LabelledImages, config: PruneConfig, work: str | Path, *, progress: Progress | None = None
) -> Callable[[Schedule | Budget], Pruned]:
    """Makes one smaller model after the other by the one method of ``config``, each compared with nothing; statistics
    are collected once.

    Raises:
        ConfigError: there are several methods; or, when a model is made, its budget is out of reach.
    """
    if len(config.methods) != 1:
        raise ConfigError("one method is needed", got=", ".join(config.methods), remedy=f"name {config.methods[0]}")
    making = _Pruning(base, scoring, None, config, Path(work), progress or (lambda step, done, total: None))
    (method,) = making.methods.values()
    return lambda rule: making.plain(method, rule)


class _Pruning:
    def __init__(
        self,
        base: BaseModel,
        scoring: LabelledImages,
        validation: LabelledImages | None,
        config: PruneConfig,
        work: Path,
        progress: Progress,
    ) -> None:
        for part in (scoring, validation):
            if part is not None and part.classes != base.spec.classes:
                raise ConfigError(
                    f"{part.name}: the data must have the model's classes",
                    got=f"{part.classes} instead of {base.spec.classes}",
                    remedy="name another label column, or another model",
                )
        if not scoring.labelled:
            require_no_labels(config, scoring)
        scoring.warn_of_empty_classes("scoring", "what they need may be removed, and no loss of theirs is seen")
        self.base, self.config, self.progress = base, config, progress
        self.notice: Notice = lambda text: None
        self.held_out, self.is_own = validation, validation is not None
        if config.limits is not None and validation is None:
            scoring, self.held_out = hold_out(scoring, config.limits.held_out, config.images, config.seed)
        self.images = scoring.sample(config.images, config.seed)
        if validation is not None:
            require_disjoint(validation, "validation", self.images, "scoring")
        compressors = [make_compressor(name, config) for name in config.methods]
        self.checking, self.held_out = part_to_check(self.held_out, config, compressors)
        self.store = StepStore(work)
        self.network = Network(trace(base.module, base.spec.preprocessing))
        self.few = trial_images(self.network.graph)
        memory = Memory(config.memory)
        fixed = self._fit(memory)
        self.source = Source(
            base, self.network, self.images, config.seed, config.reconstruct_bytes, self.store, progress, memory, fixed
        )
        self.methods = {each.name: Method(self.source, each, compressors) for each in compressors}

    def run(self, training: LabelledImages | None, report: Callable[[EpochReport], None] | None) -> Pruned:
        config, recipe = self.config, self.config.recipe
        if recipe is not None and training is None:
            raise ConfigError(
                "fine-tuning needs images", got="none", remedy="give those that the base model was trained on"
            )
        method, rule = self._choose()
        pruned = self.plain(method, rule)
        if recipe is not None and training is not None:
            trained = train(
                pruned.spec,
                self._without_held_out(training),
                self._finetune_folder(method, rule, training, recipe),
                recipe,
                start=pruned.module.state_dict(),
                teacher=Teacher(self.base.module, config.distillation) if config.distillation.weight else None,
                report=report,
                progress=lambda done, total: self.progress("fine-tuning", done, total),
            )
            pruned = replace(pruned, module=trained.module)
        return pruned if config.limits is None else self._deliver(pruned, method, config.limits)

    def expected(self) -> Estimate:
        """How long all steps take, where none is stored."""
        trials = TRIALS if self.config.amount.is_open else int(len(self.methods) > 1)
        return prune_time(
            Pace.of(self.network.graph, self.base.spec.preprocessing.size, self.images.batch),
            self.network,
            images=len(self.images),
            methods=tuple(self.methods), trials=trials, trial_images=self.few,
            held_out=0 if self.held_out is None else len(self.held_out),
            checks=expected_checks(self.methods.values(), self.checking),
        )  # fmt: skip

    def _fit(self, memory: Memory) -> int:
        """Give images in batches that fit; the bytes of what is always in memory: weights, and decoded images."""
        sets = [images for images in (self.images, self.held_out, self.checking) if images is not None]
        fixed = 3 * weight_bytes(self.base.module) + memory.decoded(self.base.spec.preprocessing.size, *sets)
        most = min(BATCH, near(self.network.graph))
        forward = activations(self.network.graph).forward
        batch = memory.batch("evaluation", forward, most, fixed=fixed)
        limits = self.config.limits
        self.timed = Limits() if limits is None else limits.within(memory, forward, fixed)
        for images in sets:
            images.limit(memory.cache, batch)
        return fixed

    # ---- what is made

    def _choose(self) -> tuple[Method, Schedule | Budget]:
        """The method, and the rule of ratios or MACs."""
        methods, amount, rule = self.methods.values(), self.config.amount, self.config.amount.rule
        if self.checking is not None:
            check = Check(self.network, self.checking, self.base.spec.preprocessing, self._reporter("check of layers"))
            check_all(methods, amount, check, self._depends, self.notice)
        rules: list[tuple[Method, Schedule | Budget]]
        if amount.latency is not None:
            time = amount.latency
            rules = each(methods, lambda m: (m, self._in_time(m, time)))
        elif rule is not None:
            rules = each(methods, lambda m: (m, self._within_reach(m, rule)))
        else:
            return fastest(each(methods, lambda m: (m, self._largest(m))), self._finished, self._by_time)
        return rules[0] if len(rules) == 1 else min(rules, key=lambda pair: self._trial(*pair).order)

    def _in_time(self, method: Method, time: float) -> Budget:
        """With which a network takes that share of the base model's time."""
        return budget_within(
            time, self.config.amount, self.timed, self.network.graph,
            lambda each: method.graph(method.tensors(each, reconstruct=False)),
            self._first(200), self._reporter, self.store, self._depends(method, Budget(time)),
        )  # fmt: skip

    def _within_reach(self, method: Method, rule: Schedule | Budget) -> Schedule | Budget:
        if len(self.methods) > 1:
            self._trial(method, rule)  # a ConfigError says that it is not
        return rule

    def _largest(self, method: Method) -> Budget:
        """The smallest budget within the limit of the loss, found with fewer images that weights are fitted to."""
        cost = self.config.amount.price
        trial = smallest_budget(lambda macs: self._trial(method, Budget(macs, cost)).points, self._limit)
        return Budget(self._within(method, trial and trial.budget), cost)

    def _finished(self, pair: Chosen) -> Chosen:
        """Raised a little, where weights that are fitted to all images lose more."""
        m, rule = pair
        macs = raised(lambda x: self._expected(self._graph(m, replace(rule, macs=x))).points, rule.macs, self._limit)
        return m, replace(rule, macs=self._within(m, macs))

    def _within(self, method: Method, macs: float | None) -> float:
        if macs is not None:
            return macs
        raise DoesNotPayError(
            f"no network made by {method.name} is within the limit of the loss",
            got=f"{self._limit:g} points",
            remedy="allow more, or give more images",
            numbers={"method": method.name, "max_loss": self._limit / 100},
        )

    def _by_time(self, pairs: list[Chosen], fitted: bool) -> list[Chosen]:
        """The fastest first, timed in one run of few rounds, since what is delivered is timed again; weights say
        nothing of time, and need not be ``fitted``."""
        graphs = [self._graph(m, r) if fitted else m.graph(m.tensors(r, reconstruct=False)) for m, r in pairs]
        networks = {method.name: prepare(graph) for (method, _), graph in zip(pairs, graphs, strict=True)}
        times = self._time(networks, max(2, self.timed.pairs // _FEWER))
        return sorted(pairs, key=lambda pair: (not is_faster(times[pair[0].name]), -times[pair[0].name][0].time_saved))

    def _trial(self, method: Method, rule: Schedule | Budget) -> ExpectedLoss:
        """The loss of a network whose weights are fitted to some of the images only."""
        images = self._held_out

        def compute() -> dict[str, Tensor]:
            with self._named(f"{method.name}, {describe(rule)}"):
                tensors = method.tensors(rule, reconstruct=self.config.reconstruct, most=self.few)
                return {"answers": answers_of(prepare(method.graph(tensors)), images, self.base.spec.preprocessing)}

        depends = self._depends(method, rule) | {"most": self.few, "held out": images.fingerprint()}
        return ExpectedLoss.of(self._base_answers, self.store.get("trial", depends, compute)["answers"], images.labels)

    def _graph(self, method: Method, rule: Schedule | Budget) -> fx.GraphModule:
        """The network whose weights are fitted to all images that decide."""

        def compute() -> Tensors:
            return method.tensors(rule, reconstruct=self.config.reconstruct)

        return method.graph(self.store.get(method.name, self._depends(method, rule), compute))

    def plain(self, method: Method, rule: Schedule | Budget) -> Pruned:
        graph = self._graph(method, rule)
        made = of_graph(graph, self.base.spec)
        pruned = Pruned(made.module, made.spec, self.base.classes, method=method.name, rule=rule)

        def compute() -> Tensors:
            pruned.require_answers_of(graph, self._first(4))
            if self.config.recalibrate:
                self._recalibrate(pruned)
            return pruned.module.state_dict()

        # Stored, because fine-tuning resumes from exactly these: another number of threads would round differently.
        depends = self._depends(method, rule) | {"recalibrate": self.config.recalibrate}
        pruned.module.load_state_dict(self.store.get("state", depends, compute))
        return pruned

    def _depends(self, method: Method, rule: Schedule | Budget) -> dict[str, Any]:
        config = self.config
        return {
            "sinf": __version__,
            "spec": asdict(self.base.spec) | {"preprocessing": self.base.spec.preprocessing.to_json()},
            "weights": self._weights_hash,
            "images": self.images.fingerprint(),
            "method": method.name,
            "compressor": method.compressor.identity(),
            "rule": {"kind": type(rule).__name__, **identity(rule)},
            "options": {
                name: getattr(config, name)
                for name in ("criterion_name", "reconstruct", "round_to", "reconstruct_bytes", "seed")
            },
        }

    def _finetune_folder(
        self, method: Method, rule: Schedule | Budget, training: LabelledImages, recipe: TrainConfig
    ) -> Path:
        """One for each run, since a work folder may serve several."""
        depends = self._depends(method, rule) | asdict(recipe) | {"device": None, "training": training.fingerprint()}
        depends |= {"recalibrate": self.config.recalibrate, "distillation": asdict(self.config.distillation)}
        return self.store.folder / self.store.name("finetune", depends)

    def _without_held_out(self, training: LabelledImages) -> LabelledImages:
        """Images that estimate the loss are not trained on."""
        held = set(() if self.held_out is None else self.held_out.digests())
        rows = [row for row, digest in enumerate(training.digests()) if digest not in held] if held else []
        return training if not held or len(rows) == len(training) else training.select(rows)

    # ---- whether it is handed out

    def _deliver(self, pruned: Pruned, method: Method, limits: Limits) -> Pruned:
        network = deployed(pruned).module  # what is saved
        expected = self._expected(network)
        self._warn_of_training(expected)
        if expected.points > self._limit and not limits.keep_anyway:
            raise DoesNotPayError(
                "a pruned network must lose no more than max_loss allows",
                got=f"{expected} with {describe(pruned.rule)} by {method.name}; allowed are {self._limit:g}",
                remedy=self._what_would_do(method, pruned.rule),
                numbers={"method": method.name, "rule": describe(pruned.rule), "expected_loss": expected.to_json()},
            )
        times = self._time({"ours": network}, self.timed.pairs)["ours"]
        if not is_faster(times) and not limits.keep_anyway:
            raise DoesNotPayError(
                "a pruned network must be faster than the base model",
                got=f"{describe_times(times)}, with {describe(pruned.rule)} by {method.name}; it loses {expected}",
                remedy="allow more loss, take another method, or leave the model as it is",
                numbers={
                    "method": method.name,
                    "rule": describe(pruned.rule),
                    "expected_loss": expected.to_json(),
                    "times": [time.to_json() for time in times],
                },
            )
        return replace(pruned, expected=expected, times=times)

    def _what_would_do(self, method: Method, rule: Schedule | Budget) -> str:
        """The budget between this one and the whole network whose loss is within the limit."""

        def points(share: float) -> float:
            if isinstance(rule, Schedule):
                return self._trial(method, Schedule(1 - share, 1 - share)).points
            return self._trial(method, Budget(share, rule.weight_cost)).points

        low = 1 - max(rule.first, rule.last) if isinstance(rule, Schedule) else rule.macs
        trial = smallest_budget(points, self._limit, low=low, trials=_HINTS)
        if trial is None:
            return "allow more loss, give more images, or leave the model as it is"
        share = round(trial.budget, 3)
        milder = Schedule(round(1 - share, 3), round(1 - share, 3)) if isinstance(rule, Schedule) else Budget(share)
        return f"about {trial.points:.1f} points are lost with {describe(milder)}; take that, or allow more"

    def _warn_of_training(self, expected: ExpectedLoss) -> None:
        if not self.is_own and expected.base_top1 is not None and expected.base_top1 >= _SURE_BASE:
            warnings.warn(
                f"the base model answers {100 * expected.base_top1:.1f} % of the held-out images right: if it was "
                "trained on them, new images lose more; give images that it has not seen (--validate)",
                DataWarning,
                stacklevel=4,
            )

    def _expected(self, network: nn.Module) -> ExpectedLoss:
        answers = answers_of(network, self._held_out, self.base.spec.preprocessing, self._reporter("expected loss"))
        return ExpectedLoss.of(self._base_answers, answers, self._held_out.labels)

    def _time(self, networks: Mapping[str, nn.Module], pairs: int) -> dict[str, tuple[Latency, ...]]:
        limits, feed = replace(self.timed, pairs=pairs), self.base.spec.preprocessing
        return time_beside(self._ready, networks, self._held_out, feed, limits, self._reporter("time"))

    # ---- what is asked for more than once

    @property
    def _limit(self) -> float:
        """Of the loss, in points."""
        return 100 * (self.config.limits or Limits()).max_loss

    @property
    def _held_out(self) -> LabelledImages:
        return self.images if self.held_out is None else self.held_out

    @cached_property
    def _ready(self) -> fx.GraphModule:
        """The base model as it is timed."""
        return prepare(self.network.graph)

    @cached_property
    def _base_answers(self) -> Tensor:
        return answers_of(self._ready, self._held_out, self.base.spec.preprocessing, self._reporter("base model"))

    @cached_property
    def _weights_hash(self) -> str:
        return hash_tensors(self.base.module.state_dict())

    def _reporter(self, step: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(step, done, total)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Steps of a trial say which it is."""
        self.source.progress = lambda step, done, total: self.progress(f"{step}, {what}", done, total)
        try:
            yield
        finally:
            self.source.progress = self.progress

    def _first(self, count: int) -> Tensor:
        sample = self.images.sample(count, self.config.seed)
        return torch.cat([x for x, _ in sample.batches(self.base.spec.preprocessing)])

    def _recalibrate(self, pruned: BaseModel) -> None:
        total = len(self.images)

        def read_images() -> Any:
            for number, (x, _) in enumerate(self.images.batches(self.base.spec.preprocessing)):
                self.progress("recalibration", number * self.images.batch, total)
                yield x
            self.progress("recalibration", total, total)

        if not recalibrate(pruned.module, read_images()):
            rule, got = "a model to recalibrate must have batch norms of torch", f"none in {self.base.spec.name}"
            raise ConfigError(rule, got=got, remedy="leave --recalibrate out")
