"""What is made of a base model by static pruning, and by which method. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from sinf.compress.budget import Budget, Schedule
from sinf.criteria import best_criterion, make_criterion
from sinf.errors import ConfigError
from sinf.graph.weight_cost import WEIGHT_COST
from sinf.machine.sizes import DEFAULT, MemoryLimit
from sinf.measure.limits import Limits
from sinf.option import COMPRESSION, IMAGES, TRAINING, Option, Seed
from sinf.pipelines.compression_options import Criterion, Reconstruct, RoundTo, TimedBatch, TimedPrecision
from sinf.training.recipe import Batch, BFloat16, Device, Distillation, LearningRate, TrainConfig

if TYPE_CHECKING:
    from sinf.data.images import LabelledImages

AUTO = "auto"


@dataclass(frozen=True)
class Amount:
    """How much goes, in one of three ways; without, as much as the limit of the loss allows.

    ``latency`` is measured in an ``engine`` and ``precision``, in batches of ``latency_batch``. It is spent by the
    times of layers there (:mod:`sinf.measure.layer_times`); how much of it there is, is found by bisection with whole
    networks."""

    ratio: Annotated[float | None, Option("Fraction of channels removed, the same in every layer.")] = None
    macs: Annotated[float | None, Option("Instead of --ratio: fraction of MACs kept, where it costs least.")] = None
    latency: Annotated[float | None, Option("Instead of both: fraction of the measured time kept, e.g. 0.7.")] = None
    engine: Annotated[str, Option("Where --latency is measured.", COMPRESSION)] = "torch"
    precision: TimedPrecision = "f32"
    latency_batch: TimedBatch = 1
    weight_cost: Annotated[
        float | None,
        Option("MACs that loading a weight counts for.", COMPRESSION, otherwise="0 with --macs, 32 without a budget"),
    ] = None

    def __post_init__(self) -> None:
        given = [name for name in ("ratio", "macs", "latency") if getattr(self, name) is not None]
        if len(given) > 1:
            rule, got = "give one of ratio, macs and latency", " and ".join(given)
            raise ConfigError(rule, got=got, remedy="e.g. macs 0.5 to keep half")
        if self.weight_cost is not None and (self.ratio is not None or self.latency is not None):
            raise ConfigError("weight_cost counts MACs", got=given[0], remedy="leave it out, or give macs")
        if self.latency is None and (self.engine, self.precision, self.latency_batch) != ("torch", "f32", 1):
            rule, got = "engine, precision and latency_batch say where latency is measured", "no latency"
            raise ConfigError(rule, got=got, remedy="give it, or leave them out")
        if self.latency is not None and not 0 < self.latency < 1:
            raise ConfigError("a latency budget must be in (0, 1)", got=self.latency, remedy="take 0.7 to keep 70 %")
        if self.latency_batch < 1:
            raise ConfigError("latency_batch must be at least 1", got=self.latency_batch, remedy="leave it out")
        if self.rule is None:  # which otherwise refuses what is out of range
            Budget(1.0, self.price)

    @property
    def kept(self) -> float | None:
        """Fraction of MACs, or of time, that stays; None where no budget is given."""
        return self.latency if self.macs is None else self.macs

    @property
    def is_open(self) -> bool:
        """Whether the limit of the loss says how much goes."""
        return self.ratio is None and self.kept is None

    @property
    def price(self) -> float:
        """MACs that loading a weight counts for."""
        if self.weight_cost is not None:
            return self.weight_cost
        return WEIGHT_COST if self.macs is None else 0.0

    @property
    def rule(self) -> Schedule | Budget | None:
        """By which channels, ranks or blocks are chosen; None where measurements say it, of time or of the loss."""
        if self.ratio is not None:
            return Schedule(self.ratio, self.ratio)
        return None if self.macs is None else Budget(self.macs, self.price)

    def __str__(self) -> str:
        if self.latency is not None:
            return f"{100 * self.latency:g} % of the time in {self.engine} {self.precision} kept"
        return "as much as the limit of the loss allows" if self.rule is None else describe(self.rule)


@dataclass(frozen=True)
class FineTuning:
    """Training of what was made; none without epochs of ``finetune``."""

    finetune: Annotated[int, Option("Epochs of training, with the base model as the teacher.", TRAINING, low=0)] = 0
    learning_rate: LearningRate = 0.02
    batch: Batch = 128
    bf16: BFloat16 = False
    device: Device = "cpu"

    def recipe(self, seed: int) -> TrainConfig | None:
        """How it is trained, None for not at all."""
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
        amount: how much goes.
        method: with "auto", what loses least by a given amount, or saves most time within the limits.
        limits: what must hold for the network to be handed out, None for no check; all images decide then.
        finetuning: how it is trained afterwards.
        distillation: how much it then learns from the base model's answers.
        reconstruct_bytes: memory that activations may take while it is reconstructed.
        memory: bytes that the process may take; batches are as large as that allows.
    """

    amount: Amount = field(default_factory=Amount)
    method: Annotated[
        str,
        Option(
            "channels (removed), ranks (a layer becomes two smaller ones), depth (residual branches become constants), "
            "or auto: the better of the first two."
        ),
    ] = AUTO
    limits: Limits | None = field(default_factory=Limits)
    criterion: Criterion = None
    images: Annotated[int, Option("Use so many of the --score images, equally many of a class.", IMAGES)] = 4000
    reconstruct: Reconstruct = True
    recalibrate: Annotated[bool, Option("Take batch-norm statistics from the scoring images.", COMPRESSION)] = False
    finetuning: FineTuning = field(default_factory=FineTuning)
    distillation: Distillation = field(default_factory=Distillation)
    round_to: RoundTo = 8
    reconstruct_bytes: int = 1 << 30
    seed: Seed = 0
    memory: MemoryLimit = DEFAULT

    def __post_init__(self) -> None:
        from sinf.compress.methods import require_takes
        from sinf.machine.memory import Memory

        make_criterion(self.criterion_name)
        Memory(self.memory)
        self.finetuning.recipe(self.seed)
        for name in ("images", "round_to", "reconstruct_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", got=getattr(self, name), remedy="leave it out")
        if self.method != AUTO:
            require_takes(self.method, self.amount.rule, self.criterion)
        if self.limits is None and (self.amount.is_open or len(self.methods) > 1):
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

        return methods_for(self.amount.rule, self.criterion)

    @property
    def left_open(self) -> str:
        """What is chosen by the held-out images that report the expected loss, e.g. "method and budget"."""
        chosen = {"method": len(self.methods) > 1, "budget": self.amount.is_open}
        return " and ".join(name for name, is_open in chosen.items() if is_open)

    @property
    def criterion_name(self) -> str:
        return best_criterion(self.reconstruct) if self.criterion is None else self.criterion

    @property
    def recipe(self) -> TrainConfig | None:
        """How it is fine-tuned, None for not at all."""
        return self.finetuning.recipe(self.seed)


def describe(rule: Schedule | Budget) -> str:
    """A rule in words."""
    if isinstance(rule, Schedule):
        return f"{100 * rule.first:g} % of the channels removed"
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

    if config.recipe is not None:
        images.require_labels("fine-tuning")
    for name in config.methods:
        compressor = make_compressor(name, config)
        if compressor.reads_labels:
            images.require_labels(" ".join(("the", *compressor.describe().popitem())))
