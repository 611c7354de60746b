"""Which units go: by the paper's schedule of ratios, or by a budget of MACs spent where it costs least, across layers
and, where several subgraphs share one, across those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sinf.compress.budget import Budget as Budget
from sinf.compress.budget import Schedule as Schedule
from sinf.compress.budget import identity as identity
from sinf.compress.prices import Prices
from sinf.errors import ConfigError, OutOfReachError
from sinf.graph.cost import MacCount
from sinf.graph.coupling import CoupledGroup
from sinf.graph.widths import WidthTable


def select(
    rule: Schedule | Budget,
    groups: list[CoupledGroup],
    importance: dict[str, Tensor],
    macs: MacCount,
    keep: Tensor,
    round_to: int = 8,
) -> Tensor:
    """``keep`` (units,) bool with units of ``groups`` taken away, the least important first.

    Widths are rounded up to a multiple of ``round_to`` (other widths are often slower than the full layer); a group
    never loses its last units.
    """
    part = Candidates(groups, importance, macs, keep)
    if isinstance(rule, Budget):
        return select_together(rule, [part], [1.0], round_to)[0]
    _require_round_to(round_to)
    widths = {}
    for depth, group in enumerate(groups):
        ratio = rule.first + (rule.last - rule.first) * depth / max(1, len(groups) - 1)
        widths[group.name] = _round_up(group.size * (1 - ratio), round_to, group.size)
    return _chosen(part, widths)


class Candidates(NamedTuple):
    """What may go from one part: ``groups`` with the importance of their units by name, how its MACs are counted, and
    ``keep`` (units,) bool, what is there to begin with."""

    groups: list[CoupledGroup]
    importance: dict[str, Tensor]
    macs: MacCount
    keep: Tensor


def select_together(
    budget: Budget, parts: Sequence[Candidates], shares: Sequence[float], round_to: int = 8
) -> list[Tensor]:
    """What :func:`select` finds, for several parts under one budget: of their mean MACs, each part counting by its
    share of the inputs. It is spent in the layer and part that loses least importance per MAC, so that importances must
    compare between parts; parts end with different MACs.

    Raises:
        ConfigError: no widths are within the budget.
    """
    _require_round_to(round_to)
    descents = [_Descent(part, round_to, Prices(budget, part.macs)) for part in parts]

    def mean() -> float:
        return sum(share * descent.cost for share, descent in zip(shares, descents, strict=True))

    start = mean()
    while mean() > budget.macs * start:
        able = [descent for descent in descents if descent.can_go_down]
        if not able:
            raise OutOfReachError(
                "the MAC budget must be within reach", got=f"{budget.macs:g} of the part's MACs", least=mean() / start,
                remedy="raise the budget, or cut earlier",
            )  # fmt: skip
        min(able, key=lambda descent: descent.price).go_down()
    return [_chosen(part, descent.widths) for part, descent in zip(parts, descents, strict=True)]


def _require_round_to(round_to: int) -> None:
    if round_to < 1:
        raise ConfigError("round_to must be at least 1", got=round_to, remedy="take 8")


def _chosen(part: Candidates, widths: dict[str, int]) -> Tensor:
    chosen = part.keep.clone()
    for group in part.groups:
        chosen[_least(group, part.importance[group.name], widths[group.name])] = False
    return _never_empty(chosen, part)


def _never_empty(chosen: Tensor, part: Candidates) -> Tensor:
    """Give a layer that would lose everything its most important unit back: where a group joins layers with different
    channels (a sum after a concatenation), the group's width says nothing of a single layer's."""
    score, coupling = torch.zeros(len(chosen)), part.macs.coupling
    for group in part.groups:
        score[group.units] = part.importance[group.name].float()
    for slot in (*coupling.reads.values(), *coupling.writes.values()):
        there = slot.units[part.keep[slot.units]]
        if len(there) and not bool(chosen[there].any()):
            chosen[there[score[there].argmax()]] = True
    return chosen


def _round_up(width: float, round_to: int, size: int) -> int:
    return min(size, max(1, math.ceil(round(width, 6) / round_to)) * round_to)


def _least(group: CoupledGroup, importance: Tensor, width: int) -> Tensor:
    """The units that go when ``width`` stay; ties fall to the later channels."""
    order = torch.argsort(importance, descending=True, stable=True)
    return group.units[order[width:]]


class _Step(NamedTuple):
    """A group made narrower: its width then, the units (n,) that go, the cost that this saves, and the importance that
    is lost for each of them. ``back`` says that a layer would lose everything and gets a unit back: ``keep`` (units,)
    bool is then what stays."""

    group: CoupledGroup
    width: int
    going: Tensor
    saved: float
    price: float
    back: Tensor | None = None


class _Descent:
    """A part on its way down, in steps of ``round_to`` units, each from the group that loses least importance per MAC
    saved. ``price`` is that of the next step.

    A step is renewed when what it saves may have changed: when another group of the same layers has gone down.
    """

    def __init__(self, part: Candidates, round_to: int, prices: Prices) -> None:
        self._part, self._round_to, self._rest = part, round_to, prices.rest
        self.widths = {group.name: group.size for group in part.groups}
        self._keep = part.keep.clone()
        self._table = WidthTable(part.macs.coupling, prices.by_widths())
        self._channels = self._table.count(torch.nonzero(self._keep).flatten())  # of every slot, that stay
        self.cost = prices.rest + self._table.cost(self._channels)
        self._layers = {g.name: self._table.layers_at(self._table.count(g.units)) for g in part.groups}
        self._order = {
            g.name: torch.argsort(part.importance[g.name], descending=True, stable=True) for g in part.groups
        }
        self._lost = {
            name: torch.nn.functional.pad(torch.sort(value.double()).values.cumsum(0), (1, 0))
            for name, value in part.importance.items()
        }
        self._steps = {group.name: self._narrower(group) for group in part.groups}
        self._next = self._cheapest()

    @property
    def can_go_down(self) -> bool:
        return self._next is not None

    @property
    def price(self) -> float:
        return math.inf if self._next is None else self._next.price

    def go_down(self) -> None:
        step = self._next
        if step is None:
            return
        self.widths[step.group.name] = step.width
        if step.back is None:
            self._keep[step.going] = False
            self._channels = self._channels - self._table.count(step.going)
        else:
            self._keep = step.back
            self._channels = self._table.count(torch.nonzero(self._keep).flatten())
        self.cost -= step.saved
        changed = self._layers[step.group.name]
        for group in self._part.groups:
            if step.back is not None or group is step.group or bool((self._layers[group.name] & changed).any()):
                self._steps[group.name] = self._narrower(group)
        self._next = self._cheapest()

    def _cheapest(self) -> _Step | None:
        steps = [step for step in self._steps.values() if step is not None]
        return min(steps, key=lambda step: step.price, default=None)

    def _narrower(self, group: CoupledGroup) -> _Step | None:
        """The next smaller width of a group that saves anything."""
        width = (math.ceil(self.widths[group.name] / self._round_to) - 1) * self._round_to
        while width >= 1:
            least = group.units[self._order[group.name][width:]]
            going, back = least[self._keep[least]], None
            channels = self._channels - self._table.count(going)
            if bool(((channels == 0) & (self._channels > 0)).any()):
                trial = self._keep.clone()
                trial[going] = False
                back = _never_empty(trial, self._part)
                channels = self._table.count(torch.nonzero(back).flatten())
            saved = self.cost - self._rest - self._table.cost(channels)
            if saved > 0:
                curve = self._lost[group.name]
                lost = float(curve[group.size - width] - curve[group.size - self.widths[group.name]])
                return _Step(group, width, going, saved, lost / saved, back)
            width -= self._round_to
        return None
