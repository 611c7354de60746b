"""Options of dynamic pruning: gates, target and training. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from sinf.errors import ConfigError
from sinf.machine.sizes import DEFAULT, MemoryLimit
from sinf.option import GATES, TRAINING, Option, Seed, require_ranges
from sinf.training.recipe import RANGES, Device, Distillation

if TYPE_CHECKING:
    from sinf.dynamic.methods import Method

STARTS = ("importance", "equal")
AIM = 0.5  # of the MACs, where nothing else is aimed at
LABELS_ALONE = Distillation(weight=0.0)  # as in the paper


@dataclass(frozen=True)
class Target:
    """One of ``channels``, the share that the threshold's rank leaves (the paper); ``macs``, the mean share of the base
    model's MACs that an input costs, gates included; ``latency``, the mean share of its time on this machine, one image
    at a time, gates included. Without, half of the MACs."""

    channels: Annotated[float | None, Option("Aim at this share of channels instead of MACs, as the paper.")] = None
    macs: Annotated[float | None, Option("Aim at this share of the base model's MACs.", otherwise=f"{AIM:g}")] = None
    latency: Annotated[float | None, Option("Aim at this share of measured time instead, one image at a time.")] = None

    def __post_init__(self) -> None:
        if self.channels is self.macs is self.latency is None:
            object.__setattr__(self, "macs", AIM)
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            if not 0 < value <= 1:
                raise ConfigError(f"the target of {name} must be in (0, 1]", got=value, remedy="take 0.5 for half")
        if len(given) > 1:
            got = " and ".join(given)
            raise ConfigError("there must be one target: channels, macs or latency", got=got, remedy="give one")

    def __str__(self) -> str:
        return " ".join(f"{value:g} of {name}" for name, value in vars(self).items() if value is not None)


@dataclass(frozen=True)
class GateConfig:
    """How gates are made. ``sites`` are names of convolutions. ``block`` 1 is the paper; more make slices of weights
    cheaper to take."""

    kind: Annotated[str, Option("manidp; fbs or static as baselines.", flag="method")] = "manidp"
    squeeze: Annotated[float | None, Option("How much narrower a gate is inside.", GATES, otherwise="paper")] = None
    mask: Annotated[str, Option("scaled (by the saliency) or binary.", GATES)] = "scaled"
    block: Annotated[int, Option("Neighbouring channels that are decided together; 16 is faster.", GATES)] = 1
    sites: Annotated[
        tuple[str, ...] | None,
        Option("Convolution to gate; may be repeated.", GATES, flag="site", otherwise="all that can be"),
    ] = None

    def __post_init__(self) -> None:
        if not 1 <= self.block <= 1024:
            raise ConfigError("block must be in 1..1024", got=self.block, remedy="take 1 as in the paper")

    @property
    def method(self) -> Method:
        """What ``kind`` names."""
        from sinf.dynamic.methods import method_of

        return method_of(self.kind)


@dataclass(frozen=True)
class TrainConfig:
    """The recipe; the defaults are the paper's where it gives a number, but for ``epochs`` (400 there).

    For ``fbs``, ``complexity`` weighs its L1 penalty. ``start`` is ``importance`` (:mod:`sinf.dynamic.start`), or
    ``equal``: all saliencies 1, as in the paper. With ``bf16`` gates, losses and weights stay float32. ``distillation``
    says how much the base model's answers count beside the labels; in the paper they do not.

    ``memory`` is in bytes. A batch that does not fit runs in parts whose gradients are added: cross entropy and
    complexity are those of the whole batch, batch norms take their statistics from a part, and the similarity loss
    compares the images of a part.
    """

    target: Target = field(default_factory=Target)
    gates: GateConfig = field(default_factory=GateConfig)
    distillation: Distillation = LABELS_ALONE
    epochs: Annotated[int, Option("Passes over the images; the paper's are 400.")] = 40
    batch: Annotated[int, Option("Images a step, of all processes together.", TRAINING)] = 128
    learning_rate: Annotated[float, Option("At the start; it falls along a cosine.", TRAINING)] = 0.05
    weight_decay: Annotated[float, Option("L2 penalty of weights; gates have none.", TRAINING)] = 5e-4
    momentum: float = 0.9
    complexity: Annotated[float, Option("Weight of the complexity loss.", TRAINING)] = 0.005
    similarity: Annotated[float, Option("Weight of the similarity loss.", TRAINING)] = 1.0
    hardness: float = 0.5
    detach_weights: bool = False
    detach_features: bool = False
    ramp: Annotated[float, Option("Share of the training at which the target is reached.", TRAINING)] = 1.0
    updates: Annotated[int, Option("How often an epoch thresholds move.", TRAINING)] = 1
    start: str = "importance"
    bf16: Annotated[bool, Option("Compute in bfloat16, gates apart.", TRAINING)] = False
    seed: Seed = 0
    device: Device = "cpu"
    memory: MemoryLimit = DEFAULT

    def identity(self) -> dict[str, Any]:
        """What tells a run from others: a run may go on with more memory, and who teaches nothing is not in it."""
        recipe = asdict(self)
        del recipe["memory"]
        if not self.distillation.weight:
            del recipe["distillation"]
        return recipe

    def __post_init__(self) -> None:
        from sinf.machine.memory import Memory

        Memory(self.memory)
        require_ranges(
            self,
            **RANGES,
            complexity=(0, 1e6),
            similarity=(0, 1e6),
            hardness=(1e-3, 1e3),
            ramp=(0, 1),
            updates=(1, 10_000),
        )
        if self.start not in STARTS:
            raise ConfigError(f"start must be one of {', '.join(STARTS)}", got=self.start)
        import torch

        from sinf.training.checkpoint import require_device

        require_device(self.device)
        if self.target.latency is not None and torch.device(self.device).type != "cpu":
            raise ConfigError("time is measured on the CPU", got=self.device, remedy="train there, or aim at --macs")
