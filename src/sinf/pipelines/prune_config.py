"""What is made of a base model by static pruning, and by which method. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from sinf.compress.budget import Budget, Schedule
from sinf.criteria import best_criterion, make_criterion
from sinf.errors import ConfigError
from sinf.graph.weight_cost import WEIGHT_COST
from sinf.machine.sizes import DEFAULT
from sinf.measure.limits import Limits
from sinf.option import COMPRESSION, IMAGES, TRAINING, Option, Seed
from sinf.pipelines.compression_options import Criterion, Reconstruct, RoundTo, TimedBatch, TimedPrecision
from sinf.training.recipe import Batch, BFloat16, Device, Distillation, LearningRate, TrainConfig

if TYPE_CHECKING:
    from sinf.data.images import LabelledImages

AUTO = "auto"


@dataclass(frozen=True)
class LatencyBudget:
    """Fraction of the base model's time that may stay, as measured here in an ``engine`` and ``precision``.

    It is spent by the times of layers there (:mod:`sinf.measure.layer_times`); how much of it there is, is found by
    bisection with whole networks."""

    time: float
    threads: int = 1
    engine: str = "torch"
    precision: str = "f32"
    batch: int = 1
    pairs: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.time < 1:
            raise ConfigError("a latency budget must be in (0, 1)", got=self.time, remedy="take 0.7 to keep 70 %")
        if min(self.threads, self.batch) < 1 or self.pairs < 2:
            got = f"{self.threads}, {self.batch}, {self.pairs}"
            raise ConfigError("threads and batch must be at least 1, and pairs at least 2", got=got)

    @property
    def where(self) -> str:
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True)
class Amount:
    """How much goes, in one of three ways; without, as much as the limit of the loss allows."""

    ratio: Annotated[float | None, Option("Fraction of channels removed, the same in every layer.")] = None
    macs: Annotated[float | None, Option("Instead: fraction of MACs kept, spent where it costs least.")] = None
    latency: Annotated[float | None, Option("Instead: fraction of the measured time kept, e.g. 0.7.")] = None
    engine: Annotated[str, Option("Where --latency is measured.", COMPRESSION)] = "torch"
    precision: TimedPrecision = "f32"
    latency_batch: TimedBatch = 1
    weight_cost: Annotated[
        float | None,
        Option("MACs that loading a weight counts for.", COMPRESSION, otherwise="0 with --macs, 32 without a budget"),
    ] = None

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in ("ratio", "macs", "latency") if getattr(self, name) is not None]
        if len(given) > 1:
            rule, got = "give one of --ratio, --macs and --latency", " and ".join(given)
            raise ConfigError(rule, got=got, remedy="e.g. --macs 0.5 to keep half")
        if self.weight_cost is not None and (self.ratio is not None or self.latency is not None):
            raise ConfigError("--weight-cost counts MACs", got=given[0], remedy="leave it out, or give --macs")
        if self.latency is None and (self.engine, self.precision, self.latency_batch) != ("torch", "f32", 1):
            rule, got = "--engine, --precision and --latency-batch say where --latency is measured", "no --latency"
            raise ConfigError(rule, got=got, remedy="give it, or leave them out")

    def rule(self, threads: int) -> Schedule | Budget | LatencyBudget | None:
        if self.latency is not None:
            return LatencyBudget(self.latency, threads, self.engine, self.precision, self.latency_batch)
        if self.macs is not None:
            return Budget(self.macs, self.weight_cost or 0.0)
        return None if self.ratio is None else Schedule(self.ratio, self.ratio)

    @property
    def price(self) -> float:
        """MACs that loading a weight counts for, but with a budget of MACs."""
        return WEIGHT_COST if self.weight_cost is None else self.weight_cost


@dataclass(frozen=True)
class FineTuning:
    """Training of what was made."""

    finetune: Annotated[int, Option("Epochs of training, with the base model as the teacher.", TRAINING, low=0)] = 0
    train: Annotated[str, Option("Images to fine-tune on.", IMAGES)] = "train"
    learning_rate: LearningRate = 0.02
    batch: Batch = 128
    bf16: BFloat16 = False
    device: Device = "cpu"

    def recipe(self, seed: int) -> TrainConfig | None:
        if not self.finetune:
            return None
        return TrainConfig(
            epochs=self.finetune, batch=self.batch, learning_rate=self.learning_rate, label_smoothing=0.0,
            bf16=self.bf16, seed=seed, device=self.device,
        )  # fmt: skip


@dataclass(frozen=True)
class PruneConfig:
    """What is made of a base model.

    Attributes:
        rule: how much goes: a schedule of ratios, a budget of MACs, or of time; None for as much as the limits allow.
        method: with "auto", what loses least under the rule, or saves most time within the limits.
        limits: what must hold for the network to be handed out, None for no check; all images decide then.
        finetune: how it is trained afterwards, None for not at all.
        distillation: how much it then learns from the base model's answers.
        reconstruct_bytes: memory that activations may take while it is reconstructed.
        weight_cost: MACs that loading a weight counts for where there is no rule (see ``Budget``).
        memory: bytes that the process may take; batches are as large as that allows.
    """

    rule: Schedule | Budget | LatencyBudget | None = field(default_factory=lambda: Budget(0.5))
    method: Annotated[
        str,
        Option(
            "channels (removed), ranks (a layer becomes two smaller ones), depth (residual branches become constants), "
            "or auto: the better of the first two."
        ),
    ] = AUTO
    limits: Limits | None = field(default_factory=Limits)
    criterion: Criterion = None
    images: Annotated[int, Option("How many scoring images, equally many of every class.", IMAGES)] = 4000
    reconstruct: Reconstruct = True
    recalibrate: Annotated[bool, Option("Take batch-norm statistics from the scoring images.", COMPRESSION)] = False
    finetune: TrainConfig | None = None
    distillation: Distillation = field(default_factory=Distillation)
    round_to: RoundTo = 8
    reconstruct_bytes: int = 1 << 30
    weight_cost: float = WEIGHT_COST
    seed: Seed = 0
    memory: int = DEFAULT

    def __post_init__(self) -> None:
        from sinf.compress.methods import require_takes
        from sinf.machine.memory import Memory

        make_criterion(self.criterion_name)
        Memory(self.memory)
        Budget(1.0, self.weight_cost)
        for name in ("images", "round_to", "reconstruct_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", got=getattr(self, name), remedy="leave it out")
        if self.method != AUTO:
            require_takes(self.method, self.rule, self.criterion)
        if self.limits is None and (self.rule is None or len(self.methods) > 1):
            raise ConfigError(
                "a method and a budget are chosen by images that are held out",
                got="no limits",
                remedy="give limits, or a method and a budget",
            )

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that are tried."""
        if self.method != AUTO:
            return (self.method,)
        from sinf.compress.methods import methods_for

        return methods_for(self.rule, self.criterion)

    @property
    def left_open(self) -> str:
        """What is chosen by the held-out images that report the expected loss, e.g. "method and budget"."""
        chosen = {"method": len(self.methods) > 1, "budget": self.rule is None}
        return " and ".join(name for name, is_open in chosen.items() if is_open)

    @property
    def criterion_name(self) -> str:
        return best_criterion(self.reconstruct) if self.criterion is None else self.criterion


def describe(rule: Schedule | Budget | LatencyBudget | None) -> str:
    """A rule in words."""
    if rule is None:
        return "as much as the limit of the loss allows"
    if isinstance(rule, Schedule):
        return f"{100 * rule.first:g} % of the channels removed"
    if isinstance(rule, LatencyBudget):
        return f"{100 * rule.time:g} % of the time in {rule.where} kept"
    if rule.times is not None:
        return f"{100 * rule.macs:.3g} % of the time in {rule.times.where} kept"
    cost = f", a weight counted as {rule.weight_cost:g}" if rule.weight_cost else ""
    return f"{100 * rule.macs:.3g} % of the MACs kept{cost}"


def require_no_labels(config: PruneConfig, images: LabelledImages) -> None:
    """Refuse what needs labels, for images without.

    Raises:
        DataError: it is fine-tuned, or the criterion depends on labels.
    """
    from sinf.compress.methods import make_compressor

    if config.finetune is not None:
        images.require_labels("fine-tuning")
    for name in config.methods:
        compressor = make_compressor(name, config)
        if compressor.reads_labels:
            images.require_labels(" ".join(("the", *compressor.describe().popitem())))
