"""Options that several pipelines have in common. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sinf.criteria import NAMES
from sinf.errors import ConfigError
from sinf.option import COMPRESSION, POINTS, Option

MaxLoss = Annotated[float, Option("Accuracy that may be lost, in percentage points.", unit=POINTS)]
Confidence = Annotated[float | None, Option("Guarantee --max-loss for new images with this probability, e.g. 0.95.")]
Criterion = Annotated[
    str | None,
    Option(
        f"Rule that gives channels an importance: {', '.join(NAMES)}.",
        COMPRESSION,
        otherwise="residual, with --no-reconstruct joint",
    ),
]
Reconstruct = Annotated[bool, Option("Let the weights that stay make up for removed channels.", COMPRESSION)]
RoundTo = Annotated[
    int, Option("Widths of layers are multiples of this; 16 suits processors with AVX-512.", COMPRESSION)
]
TimedPrecision = Annotated[str, Option("Precision of that measurement: f32, bf16 (openvino) or int8.", COMPRESSION)]
TimedBatch = Annotated[int, Option("Images in a batch of that measurement.", COMPRESSION, low=1)]


@dataclass(frozen=True)
class TimedIn:
    """Where layers are timed, for budgets that are shares of time."""

    engine: str
    precision: str = "f32"
    batch: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        from sinf.engine.engines import require_precision, runtime_of

        require_precision(self.engine, self.precision)
        if not runtime_of(self.engine).quick:
            raise ConfigError(
                "layers are timed one by one, in an engine that opens each in a moment", got=self.engine,
                remedy="name another, or leave budgets to MACs",
            )  # fmt: skip
        if min(self.batch, self.threads) < 1:
            raise ConfigError("batch and threads must be at least 1", got=f"{self.batch}, {self.threads}")
