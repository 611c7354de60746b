"""What is made of a base model by static pruning, by which method, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field

from sinf.compress.methods import TRIED, kind_of, make_compressor
from sinf.compress.select import Budget, Schedule
from sinf.criteria import best_criterion, make_criterion
from sinf.data.images import LabelledImages
from sinf.errors import ConfigError
from sinf.graph.cost import WEIGHT_COST
from sinf.machine.memory import DEFAULT, Memory
from sinf.measure.delivery import ExpectedLoss, Limits
from sinf.measure.timing import Latency
from sinf.models import BaseModel
from sinf.training.train import TrainConfig

AUTO = "auto"


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
        rule: how much goes: a schedule of ratios, a budget of MACs, or of time; None for as much as the limits allow.
        method: "channels" (removed), "ranks" (layers become two, :mod:`sinf.compress.low_rank`), or "auto": what loses
            least under the rule, or saves most time within the limits.
        limits: what must hold for the network to be handed out, None for no check; all images decide then.
        criterion: what says which channels go; None for the one that loses least with, or without, reconstruction.
        images: how many of the scoring images are looked at, equally many of every class.
        reconstruct: whether the weights that stay make up for the others, in closed form.
        recalibrate: whether batch norms take their statistics from the scoring images.
        finetune: how it is trained afterwards, None for not at all.
        round_to: widths of layers are multiples of this.
        reconstruct_bytes: memory that activations may take while it is reconstructed.
        weight_cost: MACs that loading a weight counts for where there is no rule (see ``Budget``).
        memory: bytes that the process may take; batches are as large as that allows.
    """

    rule: Schedule | Budget | LatencyBudget | None = field(default_factory=lambda: Budget(0.5))
    method: str = AUTO
    limits: Limits | None = field(default_factory=Limits)
    criterion: str | None = None
    images: int = 4000
    reconstruct: bool = True
    recalibrate: bool = False
    finetune: TrainConfig | None = None
    round_to: int = 8
    reconstruct_bytes: int = 1 << 30
    weight_cost: float = WEIGHT_COST
    seed: int = 0
    memory: int = DEFAULT

    def __post_init__(self) -> None:
        make_criterion(self.criterion_name)
        Memory(self.memory)
        Budget(1.0, self.weight_cost)
        for name in ("images", "round_to", "reconstruct_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", got=getattr(self, name), remedy="leave it out")
        if self.method != AUTO and not kind_of(self.method).by_criterion and self._by_criterion:
            got = "a ratio" if isinstance(self.rule, Schedule) else f"the criterion {self.criterion}"
            raise ConfigError(f"{self.method} removes no channels, and takes a budget", got=got, remedy="leave it out")
        if self.limits is None and (self.rule is None or len(self.methods) > 1):
            raise ConfigError(
                "a method and a budget are chosen by images that are held out",
                got="no limits",
                remedy="give limits, or a method and a budget",
            )

    @property
    def _by_criterion(self) -> bool:
        """Whether it asks for what only the removal of channels by a criterion can do."""
        return isinstance(self.rule, Schedule) or self.criterion is not None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that are tried."""
        if self.method != AUTO:
            return (self.method,)
        return tuple(name for name in TRIED if kind_of(name).by_criterion or not self._by_criterion)

    @property
    def criterion_name(self) -> str:
        return best_criterion(self.reconstruct) if self.criterion is None else self.criterion


@dataclass(frozen=True, kw_only=True)
class Pruned(BaseModel):
    """A smaller model: by which method and rule it was made, its expected loss, and its time beside the base model's at
    every batch size of the limits (none of both without limits)."""

    method: str
    rule: Schedule | Budget
    expected: ExpectedLoss | None = None
    times: tuple[Latency, ...] = ()


def describe(rule: Schedule | Budget | LatencyBudget | None) -> str:
    """A rule in words."""
    if rule is None:
        return "as much as the limit of the loss allows"
    if isinstance(rule, Schedule):
        return f"{100 * rule.first:g} % of the channels removed"
    if isinstance(rule, LatencyBudget):
        return f"{100 * rule.time:g} % of the time kept"
    cost = f", a weight counted as {rule.weight_cost:g}" if rule.weight_cost else ""
    return f"{100 * rule.macs:.3g} % of the MACs kept{cost}"


def require_no_labels(config: PruneConfig, images: LabelledImages) -> None:
    """Refuse what needs labels, for images without.

    Raises:
        DataError: it is fine-tuned, or the criterion depends on labels.
    """
    if config.finetune is not None:
        images.require_labels("fine-tuning")
    for name in config.methods:
        compressor = make_compressor(name, config)
        if compressor.reads_labels:
            images.require_labels(" ".join(("the", *compressor.describe().popitem())))
