"""How wide layers are and what they cost while units go, without a walk over the graph for every choice that is tried.

Where units are is looked up once. A choice that takes some units away is then a count of their positions, and one
product for all layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from sinf.graph.coupling import Coupling, Slot
from sinf.graph.price import Widths

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

_NONE = -1  # instead of a slot


class WidthTable:
    """Where every unit is, as a table: ``slots`` S are all that layers and parameters read and write.

    ``layers`` are (target, layer, what it costs by its widths), one for every call.
    """

    def __init__(self, coupling: Coupling, layers: Iterable[tuple[str, nn.Module, Widths]]) -> None:
        slots = (*coupling.reads.values(), *coupling.writes.values())
        reads = {target: number for number, target in enumerate(coupling.reads)}
        writes = {target: len(reads) + number for number, target in enumerate(coupling.writes)}
        self.slots = len(slots)
        self._start, self._slot = _by_unit(coupling.units, slots)
        rows = [_row(target, layer, price, reads, writes, coupling) for target, layer, price in layers]
        columns = list(zip(*rows, strict=True)) or [()] * 9
        numbers = (np.array(column, dtype=np.float64) for column in columns[:7])
        self._fixed, self._by_out, self._by_into, self._by_pair, self._out, self._into, self._repeat = numbers
        self._written, self._read = (np.array(c, dtype=np.int64) for c in columns[7:])

    def count(self, units: Tensor) -> Integers:
        """``(S,)`` how many channels of each slot belong to ``units`` (n,)."""
        chosen = units.numpy()
        first, last = self._start[chosen], self._start[chosen + 1]
        lengths = last - first
        entries = np.repeat(first - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
        return np.bincount(self._slot[entries], minlength=self.slots)

    def cost(self, widths: Integers) -> float:
        """What all layers cost together when slots have ``widths`` (S,)."""
        padded = np.append(widths, 0)  # for those without a slot
        out = np.where(self._written == _NONE, self._out, padded[self._written])
        into = np.where(self._read == _NONE, self._into, padded[self._read] * self._repeat)
        return float((self._fixed + self._by_out * out + self._by_into * into + self._by_pair * out * into).sum())

    def layers_at(self, counts: Integers) -> NDArray[np.bool_]:
        """``(layers,)`` whether the cost of a layer depends on a slot where ``counts`` (S,) is not zero."""
        touched = np.append(counts > 0, False)
        return touched[self._written] | touched[self._read]


def _by_unit(units: int, slots: tuple[Slot, ...]) -> tuple[Integers, Integers]:
    """``(units + 1,)`` where the entries of each unit begin, and their slots: an entry for each channel."""
    unit = np.concatenate([slot.units.numpy() for slot in slots]) if slots else np.zeros(0, dtype=np.int64)
    number = np.repeat(np.arange(len(slots)), [len(slot.units) for slot in slots])
    start = np.zeros(units + 1, dtype=np.int64)
    np.cumsum(np.bincount(unit, minlength=units), out=start[1:])
    return start, number[np.argsort(unit, kind="stable")]


def _row(
    target: str, layer: nn.Module, price: Widths, reads: dict[str, int], writes: dict[str, int], coupling: Coupling
) -> tuple[float, float, float, float, float, float, float, int, int]:
    """Of one call: its price by widths, widths out and in, repeats, slots written and read."""
    out, into = layer.weight.shape[:2]
    by_widths = price.fixed, price.out, price.into, price.pair
    if target not in writes or target not in reads:
        return *by_widths, out, into, 1, _NONE, _NONE
    full = getattr(layer, "groups", 1) == 1
    return *by_widths, out, into, coupling.reads[target].repeat, writes[target], reads[target] if full else _NONE
