"""What layers cost at any width and rank: counted in MACs, or measured where they will run. No torch here: options hold
times.

Both are of one form: bilinear in the widths of a layer, and linear in the channels between the two that it may become.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What rounding adds to a variance of 1 where 255 steps cover 15 standard deviations, as they do between two layers in
#: the middle (12 to 23 in VGG16's): (15 / 255)^2 / 12.
_OF_INT8 = 3e-4


@dataclass(frozen=True)
class Line:
    """``fixed + each * rank``."""

    fixed: float
    each: float

    def at(self, rank: float) -> float:
        return self.fixed + self.each * rank


@dataclass(frozen=True)
class Widths:
    """``fixed + out * o + into * i + pair * o * i`` for o outputs and i inputs (of a group)."""

    fixed: float = 0.0
    out: float = 0.0
    into: float = 0.0
    pair: float = 0.0

    def at(self, out: float, into: float) -> float:
        return self.fixed + self.out * out + self.into * into + self.pair * out * into


@dataclass(frozen=True)
class Price:
    """Of one call of a layer: by its widths, and as two layers through channels or separable ones, None where it cannot
    become these."""

    widths: Widths
    channels: Line | None = None
    separable: Line | None = None


def blocks(together: int, groups: int, out: int, into: int) -> int:
    """How many channels are computed together, in every group of a layer of ``out`` outputs which reads ``into``
    channels a group. An engine that computes ``together`` channels at once takes none of two groups, and one by one
    those of groups that are no multiples."""
    return together if groups == 1 or out // groups % together == into % together == 0 else 1


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of the layers of one network where they will run.

    Attributes:
        where: engine, precision, batch and threads, in words.
        precision: in which they were measured.
        total: of the network as it is, and ``in_layers`` of all its calls of layers.
        layers: prices by target, of one call each; by MACs of those few that are not timed.
        together: how many channels are computed together: widths between two multiples take as long as the next, and
            these prices hold at multiples.
    """

    where: str
    precision: str
    total: float
    in_layers: float
    layers: tuple[tuple[str, Price], ...]
    together: int = 1

    @property
    def rounding(self) -> float:
        """What rounding adds to the variance of what passes between two layers, as a share of it."""
        return _OF_INT8 if self.precision == "int8" else 0.0
