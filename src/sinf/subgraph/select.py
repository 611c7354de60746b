"""Which units go: by the paper's schedule of ratios, or by a budget of MACs spent where it costs least."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from sinf.errors import ConfigError
from sinf.models.trace import layer
from sinf.subgraph.coupling import CoupledGroup, Coupling


@dataclass(frozen=True)
class Schedule:
    """Pruning ratio growing linearly with depth: ``first`` in the first layer of the tail, ``last`` in the last
    (Semantic Inference, arXiv 2310.01259: r_l = r_M + (r_L - r_M)(l - M) / (L - M), as fractions removed)."""

    first: float
    last: float

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(f"the pruning ratio {name!r} must be in [0, 1)", got=value, remedy="take 0.1 and 0.5")


@dataclass(frozen=True)
class Budget:
    """Fraction of the MACs of a part that may stay.

    ``weight_cost`` counts loading a weight as so many MACs. Without it a budget spares the deep layers, which have few
    MACs and most of the weights; at batch 1, where every weight is loaded for one image, they have most of the time.
    """

    macs: float
    weight_cost: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.macs <= 1:
            raise ConfigError("a MAC budget must be in (0, 1]", got=self.macs, remedy="take 0.5 to keep half")
        if not 0 <= self.weight_cost < 1e6:
            raise ConfigError("weight_cost must be in 0..1,000,000", got=self.weight_cost, remedy="take 0 or about 32")


class MacCount:
    """MACs of one input, of a graph or a part of it, for any choice of units."""

    def __init__(self, graph: fx.GraphModule, coupling: Coupling) -> None:
        self.coupling = coupling
        self.nodes: list[tuple[str, nn.Module, int]] = []
        for node in graph.graph.nodes:
            if node.op != "call_module" or node.meta.get("shape") is None:
                continue
            module, shape = layer(graph, node), node.meta["shape"]
            if isinstance(module, nn.modules.conv._ConvNd):
                self.nodes.append((str(node.target), module, math.prod(shape[2:]) * math.prod(module.kernel_size)))
            elif isinstance(module, nn.Linear):
                self.nodes.append((str(node.target), module, math.prod(shape[1:-1])))

    def by_layer(self, keep: Tensor | None = None, weight_cost: float = 0) -> dict[str, int]:
        """MACs by target, with ``weight_cost`` more for every weight; a layer that is called twice counts twice."""
        counts: dict[str, int] = {}
        for target, module, positions in self.nodes:
            weight = module.weight
            out, into = weight.shape[0], weight.shape[1]
            written, read = self.coupling.writes.get(target), self.coupling.reads.get(target)
            if keep is not None and written is not None and read is not None:
                out = int(keep[written.units].sum())
                if getattr(module, "groups", 1) == 1:
                    into = int(keep[read.units].sum()) * read.repeat
            kernel = weight[0, 0].numel()
            counts[target] = counts.get(target, 0) + int((positions + weight_cost * kernel) * out * into)
        return counts

    def total(self, keep: Tensor | None = None, weight_cost: float = 0) -> int:
        return sum(self.by_layer(keep, weight_cost).values())


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
    if round_to < 1:
        raise ConfigError("round_to must be at least 1", got=round_to, remedy="take 8")
    widths = {group.name: group.size for group in groups}
    if isinstance(rule, Schedule):
        for depth, group in enumerate(groups):
            ratio = rule.first + (rule.last - rule.first) * depth / max(1, len(groups) - 1)
            widths[group.name] = _round_up(group.size * (1 - ratio), round_to, group.size)
    else:
        widths = _spend(rule, groups, importance, macs, keep, round_to)
    chosen = keep.clone()
    for group in groups:
        chosen[_least(group, importance[group.name], widths[group.name])] = False
    return _never_empty(chosen, keep, groups, importance, macs.coupling)


def _never_empty(
    chosen: Tensor, keep: Tensor, groups: list[CoupledGroup], importance: dict[str, Tensor], coupling: Coupling
) -> Tensor:
    """Give a layer that would lose everything its most important unit back: where a group joins layers with different
    channels (a sum after a concatenation), the group's width says nothing of a single layer's."""
    score = torch.zeros(len(chosen))
    for group in groups:
        score[group.units] = importance[group.name].float()
    for slot in (*coupling.reads.values(), *coupling.writes.values()):
        there = slot.units[keep[slot.units]]
        if len(there) and not bool(chosen[there].any()):
            chosen[there[score[there].argmax()]] = True
    return chosen


def _round_up(width: float, round_to: int, size: int) -> int:
    return min(size, max(1, math.ceil(round(width, 6) / round_to)) * round_to)


def _least(group: CoupledGroup, importance: Tensor, width: int) -> Tensor:
    """The units that go when ``width`` stay; ties fall to the later channels."""
    order = torch.argsort(importance, descending=True, stable=True)
    return group.units[order[width:]]


def _spend(
    budget: Budget,
    groups: list[CoupledGroup],
    importance: dict[str, Tensor],
    macs: MacCount,
    keep: Tensor,
    round_to: int,
) -> dict[str, int]:
    """Take steps of ``round_to`` units, each from the group that loses least importance per MAC saved."""
    widths = {group.name: group.size for group in groups}
    sorted_importance = {name: torch.sort(value.double()).values for name, value in importance.items()}
    lost = {
        name: torch.cat([torch.zeros(1, dtype=torch.float64), v.cumsum(0)]) for name, v in sorted_importance.items()
    }
    now, start = keep.clone(), macs.total(keep, budget.weight_cost)
    current, target = start, budget.macs * start

    def give_back(chosen: Tensor) -> Tensor:
        return _never_empty(chosen, keep, groups, importance, macs.coupling)

    while current > target:
        best: tuple[float, CoupledGroup, int, Tensor, int] | None = None
        for group in groups:
            width = widths[group.name]
            step = _next_step(group, importance[group.name], width, round_to, now, macs, budget, current, give_back)
            if step is None:
                continue
            smaller, trial, after = step
            curve = lost[group.name]
            price = float(curve[group.size - smaller] - curve[group.size - width]) / (current - after)
            if best is None or price < best[0]:
                best = (price, group, smaller, trial, after)
        if best is None:
            raise ConfigError(
                "the MAC budget must be within reach",
                got=f"{budget.macs:g} of the part's MACs; at least {current / start:.3f} must stay",
                remedy="raise the budget, or cut earlier",
            )
        _, group, width, now, current = best
        widths[group.name] = width
    return widths


def _next_step(
    group: CoupledGroup,
    importance: Tensor,
    width: int,
    round_to: int,
    now: Tensor,
    macs: MacCount,
    budget: Budget,
    current: int,
    give_back: Callable[[Tensor], Tensor],
) -> tuple[int, Tensor, int] | None:
    """The next smaller width of a group that saves anything, the units that then stay, and their cost."""
    smaller = (math.ceil(width / round_to) - 1) * round_to
    while smaller >= 1:
        trial = now.clone()
        trial[_least(group, importance, smaller)] = False
        trial = give_back(trial)
        after = macs.total(trial, budget.weight_cost)
        if after < current:
            return smaller, trial, after
        smaller -= round_to
    return None
