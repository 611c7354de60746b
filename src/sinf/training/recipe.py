"""Options of a training. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sinf.errors import ConfigError
from sinf.option import TRAINING, Option, Seed, require_ranges

Batch = Annotated[int, Option("Images a step.", TRAINING)]
LearningRate = Annotated[float, Option("Peak of the one-cycle schedule.", TRAINING)]
BFloat16 = Annotated[bool, Option("Compute in bfloat16.", TRAINING)]
Device = Annotated[str, Option("Where it trains: cpu, cuda, cuda:1, ...", TRAINING)]

#: Of the options that every training has, from the least to the most.
RANGES = {
    "epochs": (1, 10_000), "batch": (2, 65_536), "learning_rate": (1e-8, 100), "weight_decay": (0, 1),
    "momentum": (0, 0.9999),
}  # fmt: skip


@dataclass(frozen=True)
class Distillation:
    """How much the answers of a teacher count beside the labels, see :class:`sinf.training.teacher.Teacher`; with a
    ``weight`` of 0 there is none."""

    weight: Annotated[
        float,
        Option("How much the base model's answers count beside the labels, 0 to 1.", TRAINING, flag="teacher_weight"),
    ] = 0.9
    temperature: Annotated[float, Option("Softens the answers that are learned from.", TRAINING)] = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1 or not 0.1 <= self.temperature <= 100:
            raise ConfigError(
                "a teacher's weight must be in 0..1 and its temperature in 0.1..100",
                got=f"{self.weight}, {self.temperature}",
                remedy="take 0.9 and 4",
            )

    def __str__(self) -> str:
        return f"weight {self.weight:g}, temperature {self.temperature:g}"


@dataclass(frozen=True)
class TrainConfig:
    """The recipe; ``warmup`` is the share of the steps before the peak."""

    epochs: Annotated[int, Option("Passes over the images.")] = 30
    batch: Batch = 128
    learning_rate: LearningRate = 0.1
    weight_decay: Annotated[float, Option("L2 penalty of weights; norms and biases have none.", TRAINING)] = 5e-4
    momentum: float = 0.9
    label_smoothing: Annotated[float, Option("Share of the label spread over all classes.", TRAINING)] = 0.1
    warmup: float = 0.2
    average: Annotated[float, Option("Decay of an average of the weights, in an epoch; 0 for none.", TRAINING)] = 0.0
    bf16: BFloat16 = False
    seed: Seed = 0
    device: Device = "cpu"

    def __post_init__(self) -> None:
        require_ranges(
            self,
            **RANGES,
            warmup=(0, 0.99),
            average=(0, 0.99999),
            label_smoothing=(0, 0.99),
        )
        from sinf.training.checkpoint import require_device

        require_device(self.device)
