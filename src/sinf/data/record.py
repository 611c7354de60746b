"""What a model is fed, as every file of ours stores it. Nothing here needs torch."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sinf.storage.schema import Record

_MOST_PIXELS = 1 << 24
_Side = Annotated[int, Field(ge=1, le=16_384)]


class PreprocessingRecord(Record):
    """What a model is fed: see :class:`sinf.data.images.Preprocessing`."""

    size: tuple[
        Annotated[int, Field(ge=1, le=1024)],
        Annotated[int, Field(ge=1, le=16_384)],
        Annotated[int, Field(ge=1, le=16_384)],
    ]
    mean: Annotated[
        tuple[Annotated[float, Field(ge=-1e4, le=1e4)], ...], Field(fail_fast=True, min_length=1, max_length=1024)
    ]
    std: Annotated[
        tuple[Annotated[float, Field(gt=1e-6, le=1e4)], ...], Field(fail_fast=True, min_length=1, max_length=1024)
    ]

    resize: _Side | tuple[_Side, _Side] | None = None
    interpolation: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bilinear"

    @model_validator(mode="after")
    def _agrees(self) -> PreprocessingRecord:
        if not len(self.mean) == len(self.std) == self.size[0]:
            raise ValueError("every channel must have a mean and a standard deviation")
        if math.prod(self.size) > _MOST_PIXELS:  # tracing runs the model on an image of this size
            raise ValueError(f"an image must have at most {_MOST_PIXELS} values")
        sides = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        if sides is not None and (sides[0] < self.size[1] or sides[1] < self.size[2]):
            raise ValueError("an image must be resized to the model's size at least")
        return self
