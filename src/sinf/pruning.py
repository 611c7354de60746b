"""Static pruning: a trained classifier made smaller for all its classes, for good, and saved as a plain model.

The same statistics, criteria, selection, check and reconstruction as for subgraphs; then, if asked for, batch-norm
statistics from images, and fine-tuning with the base model as the teacher. :mod:`sinf.pruned` measures and saves what
comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx

from sinf.compact import Compactor, Rule, batches, counted
from sinf.criteria import best_criterion, make_criterion
from sinf.data import BATCH, LabelledImages
from sinf.engine.prepare import prepare
from sinf.errors import ConfigError, VerificationError
from sinf.files import hash_tensors
from sinf.low_rank import NEEDS, Rank, assemble, choose_ranks, factor, metrics, reconstruct_ranks
from sinf.models import BaseModel, ModelSpec, load_spec
from sinf.models.load import PLAIN
from sinf.models.to_plain import to_plain
from sinf.models.trace import trace
from sinf.network import Network, Part
from sinf.pipeline import WEIGHT_COST
from sinf.statistics import collect
from sinf.steps import StepStore, Tensors
from sinf.subgraph.recalibrate import recalibrate
from sinf.subgraph.select import Budget, Schedule
from sinf.timing import latency
from sinf.train import EpochReport, Teacher, TrainConfig, train
from sinf.version import __version__

Progress = Callable[[str, int, int], None]

_TRIALS = 7  # of a latency budget: the MAC budget is known to one per cent then
_LEAST = 0.01
_CLOSE = 1e-4


@dataclass(frozen=True)
class LatencyBudget:
    """Fraction of the base model's time at batch 1 that may stay, as measured here. The MACs that it takes are found by
    bisection, with loading a weight counted as ``weight_cost`` of them (see ``Budget``)."""

    time: float
    weight_cost: float = WEIGHT_COST
    threads: int = 1
    pairs: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.time < 1:
            raise ConfigError("a latency budget must be in (0, 1)", got=self.time, remedy="take 0.7 to keep 70 %")
        Budget(1.0, self.weight_cost)
        if self.threads < 1 or self.pairs < 2:
            raise ConfigError("threads must be at least 1 and pairs at least 2", got=f"{self.threads}, {self.pairs}")


@dataclass(frozen=True)
class PruneConfig:
    """What is made of a base model.

    Attributes:
        rule: how much goes: a schedule of ratios, a budget of MACs, or of time.
        low_rank: whether convolutions are written as two smaller ones (:mod:`sinf.low_rank`), instead of
            channels being removed.
        criterion: what says which channels go; None for the one that loses least with, or without, reconstruction.
        images: how many of the scoring images are looked at, equally many of every class.
        reconstruct: whether the weights that stay make up for the others, in closed form.
        recalibrate: whether batch norms take their statistics from the scoring images.
        finetune: how it is trained afterwards, None for not at all.
        round_to: widths of layers are multiples of this.
        reconstruct_bytes: memory that activations may take while it is reconstructed.
    """

    rule: Schedule | Budget | LatencyBudget = field(default_factory=lambda: Budget(0.5))
    low_rank: bool = False
    criterion: str | None = None
    images: int = 4000
    reconstruct: bool = True
    recalibrate: bool = False
    finetune: TrainConfig | None = None
    round_to: int = 8
    reconstruct_bytes: int = 1 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        make_criterion(self.criterion_name)
        for name in ("images", "round_to", "reconstruct_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", got=getattr(self, name), remedy="leave it out")
        if self.low_rank and (isinstance(self.rule, Schedule) or self.criterion is not None):
            got = "a ratio" if isinstance(self.rule, Schedule) else f"the criterion {self.criterion}"
            raise ConfigError("low rank removes no channels, and takes a budget", got=got, remedy="leave it out")

    @property
    def criterion_name(self) -> str:
        return best_criterion(self.reconstruct) if self.criterion is None else self.criterion


def prune(
    base: BaseModel,
    scoring: LabelledImages,
    config: PruneConfig,
    work: str | Path,
    *,
    training: LabelledImages | None = None,
    report: Callable[[EpochReport], None] | None = None,
    progress: Progress | None = None,
) -> BaseModel:
    """A smaller model with the base model's classes, whose spec describes it whole.

    Steps are kept in the folder ``work``, where the same call goes on after a kill. ``training`` are the images to
    fine-tune on; ``report`` is called after every epoch.

    Raises:
        ConfigError: a budget is out of reach, or there are no batch norms to recalibrate.
        ModelError: the model cannot be described plainly; the message names what is in the way.
    """
    return _Pruning(base, scoring, config, Path(work), progress or (lambda step, done, total: None)).run(
        training, report
    )


class _Pruning:
    def __init__(
        self, base: BaseModel, scoring: LabelledImages, config: PruneConfig, work: Path, progress: Progress
    ) -> None:
        if scoring.classes != base.spec.classes:
            raise ConfigError(
                f"{scoring.name}: the data must have the model's classes",
                got=f"{scoring.classes} instead of {base.spec.classes}",
                remedy="name another label column, or another model",
            )
        scoring.require_every_class("scoring")
        self.base, self.config, self.work, self.progress = base, config, work, progress
        self.images = scoring.sample(config.images, config.seed)
        self.store = StepStore(work)
        self.network = Network(trace(base.module, base.spec.preprocessing))

    def run(self, training: LabelledImages | None, report: Callable[[EpochReport], None] | None) -> BaseModel:
        config, network = self.config, self.network
        if config.finetune is not None and training is None:
            raise ConfigError(
                "fine-tuning needs images", got="none", remedy="give those that the base model was trained on"
            )
        depends = self._depends()
        if config.low_rank:
            graph = assemble(network.graph, self.store.get("ranks", depends, self._ranks))
        else:
            tensors = self.store.get("pruned", depends, lambda: self._part().to_tensors(network.coupling, ""))
            graph = network.whole(Part.from_tensors(tensors, network.coupling, ""))
        description, state = to_plain(graph)
        base = self.base.spec
        spec = ModelSpec(PLAIN + base.name.removeprefix(PLAIN), base.classes, base.preprocessing, description)
        pruned = BaseModel(load_spec(spec).requires_grad_(False), spec)

        def compute() -> Tensors:
            pruned.module.load_state_dict(state)
            self._check(graph, pruned)
            if config.recalibrate:
                self._recalibrate(pruned)
            return pruned.module.state_dict()

        # Stored, because fine-tuning resumes from exactly these: another number of threads would round differently.
        depends = depends | {"recalibrate": config.recalibrate}
        pruned.module.load_state_dict(self.store.get("state", depends, compute))
        if config.finetune is None or training is None:
            return pruned
        return train(
            spec,
            training,
            self.work / "finetune",
            config.finetune,
            start=pruned.module.state_dict(),
            teacher=Teacher(self.base.module),
            report=report,
            progress=lambda done, total: self.progress("fine-tuning", done, total),
        )

    def _depends(self) -> dict[str, Any]:
        config = self.config
        return {
            "sinf": __version__,
            "spec": asdict(self.base.spec),
            "weights": hash_tensors(self.base.module.state_dict()),
            "images": self.images.fingerprint(),
            "rule": {"kind": type(config.rule).__name__, **asdict(config.rule)},
            "options": {
                name: getattr(config, name)
                for name in ("low_rank", "criterion_name", "reconstruct", "round_to", "reconstruct_bytes", "seed")
            },
        }

    def _compactor(self, reconstruct: bool) -> Compactor:
        config = self.config
        options = _Options(reconstruct, config.reconstruct_bytes, config.images, config.round_to, config.seed)
        criterion = make_criterion(config.criterion_name)
        return Compactor(self.base, self.network, self.images, criterion, options, self.progress, self.store)

    def _part(self) -> Part:
        rule = self.config.rule
        if isinstance(rule, LatencyBudget):
            compactor = self._compactor(False)
            whole = self.network.whole
            macs = self._macs_for(rule, lambda budget: whole(compactor.compact([self._rule(budget)])))
            rule = Budget(macs, rule.weight_cost)
        return self._compactor(self.config.reconstruct).compact([self._rule(rule)])

    def _ranks(self) -> Tensors:
        """The tensors of :func:`sinf.low_rank.assemble`."""
        config, network, classes = self.config, self.network, self.base.spec.classes
        seen = batches(self.images, self.base, "statistics", self.progress)
        found = collect(network.graph, network.coupling, seen, classes=classes, needs=NEEDS, seed=config.seed)
        known = metrics(found)

        def within(budget: Budget) -> tuple[dict[str, Rank], Tensors]:
            ranks = choose_ranks(budget, network.macs, known, config.round_to)
            return ranks, factor(network.graph, ranks, found, known)

        rule = config.rule
        if isinstance(rule, LatencyBudget):
            made = self._macs_for(rule, lambda budget: assemble(network.graph, within(budget)[1]))
            rule = Budget(made, rule.weight_cost)
        ranks, solved = within(cast(Budget, rule))  # its configuration allows no schedule
        if not config.reconstruct:
            return solved
        inputs = torch.cat([x for x, _ in self.images.batches(self.base.spec.preprocessing)])
        progress = counted(self.progress, "reconstruction", len(network.coupling.mixers))
        return reconstruct_ranks(
            network.graph, network.coupling, solved, ranks, known, inputs,
            memory=config.reconstruct_bytes, progress=progress,
        )  # fmt: skip

    def _rule(self, rule: Schedule | Budget) -> Rule:
        return rule, self.network.groups_free(), self.network.macs

    def _macs_for(self, target: LatencyBudget, smaller: Callable[[Budget], fx.GraphModule]) -> float:
        """The largest MAC budget that is within the time. What stays is what counts for time, not its weights: nothing
        is reconstructed on the way."""
        ready = prepare(self.network.graph)
        sample = self.images.sample(200, self.config.seed)
        x = torch.cat([x for x, _ in sample.batches(self.base.spec.preprocessing)])
        low, high, found, least = _LEAST, 1.0, None, 1.0
        for trial in range(_TRIALS):
            self.progress("latency budget", trial, _TRIALS)
            budget = (low + high) / 2
            try:
                graph = smaller(Budget(budget, target.weight_cost))
            except ConfigError:  # no network is so small
                low = budget
                continue
            ours = prepare(graph)
            times = latency(ready, ours, x, pairs=target.pairs, threads=target.threads)
            ratio = times.median / times.base_median
            least = min(least, ratio)
            if ratio <= target.time:
                low, found = budget, budget
            else:
                high = budget
        self.progress("latency budget", _TRIALS, _TRIALS)
        if found is None:
            raise ConfigError(
                "the latency budget must be within reach",
                got=f"{target.time:g} of the base model's time; the fastest network tried takes {least:.2f}",
                remedy="raise it",
            )
        return found

    @torch.no_grad()
    def _check(self, graph: fx.GraphModule, pruned: BaseModel) -> None:
        """The plain model answers as the network that it describes, which was checked against the masked base model."""
        sample = self.images.sample(4, self.config.seed)
        x = torch.cat([x for x, _ in sample.batches(self.base.spec.preprocessing)])
        expected, found = graph(x.clone()), pruned.module(x.clone())
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not difference <= _CLOSE:
            raise VerificationError(
                "the plain model must answer as the pruned network does",
                got=f"a relative difference of {difference:.2g}",
                remedy="report it with the model's name",
            )

    def _recalibrate(self, pruned: BaseModel) -> None:
        total = len(self.images)

        def seen() -> Any:
            for number, (x, _) in enumerate(self.images.batches(self.base.spec.preprocessing)):
                self.progress("recalibration", number * BATCH, total)
                yield x
            self.progress("recalibration", total, total)

        if not recalibrate(pruned.module, seen()):
            raise ConfigError(
                "a model to recalibrate must have batch norms of torch",
                got=f"none in {self.base.spec.name}",
                remedy="leave --recalibrate out",
            )


@dataclass(frozen=True)
class _Options:
    """What a compactor wants to know."""

    reconstruct: bool
    reconstruct_bytes: int
    common_images: int
    round_to: int
    seed: int
