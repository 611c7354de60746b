"""Options that several pipelines have in common. No torch here: the command line reads this."""

from __future__ import annotations

from typing import Annotated

from sinf.criteria import NAMES
from sinf.option import COMPRESSION, POINTS, Option

MaxLoss = Annotated[float, Option("Accuracy that may be lost, in percentage points.", unit=POINTS)]
Confidence = Annotated[float | None, Option("Probability with which that holds for new images, e.g. 0.95.")]
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
