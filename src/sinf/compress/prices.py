"""What a budget counts: MACs of layers, or their measured time."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from sinf.compress.budget import Budget
from sinf.graph.cost import MacCount
from sinf.graph.delta import groups_of
from sinf.graph.price import Line, Price, Widths, blocks


class LayerCost(NamedTuple):
    """What all calls of a layer cost: as it is, and by the channels between the two that it may become."""

    whole: float
    channels: Line | None
    separable: Line | None


class Prices:
    """What layers of a network, or of a part of it, cost as a budget counts.

    ``rest`` is what no compressor makes smaller: products of values by values, or the time of all that is no layer,
    none where layers one by one take more than the network does; ``rounding`` is that of the times."""

    def __init__(self, budget: Budget, count: MacCount) -> None:
        self._weight_cost, self._count, self._times = budget.weight_cost, count, budget.times
        self.rounding = 0.0 if budget.times is None else budget.times.rounding
        self._calls: dict[str, list[tuple[nn.Module, int]]] = {}
        for target, module, positions in count.nodes:
            self._calls.setdefault(target, []).append((module, positions))
        self._measured = {} if budget.times is None else dict(budget.times.layers)
        if self._times is None:
            self.rest = float(count.products)
        else:  # of a part, as much of the rest as it has of the layers
            layers = sum(price.at(*module.weight.shape[:2]) for _, module, price in self.by_widths())
            rest = max(0.0, self._times.total - self._times.in_layers)
            self.rest = rest * layers / (self._times.in_layers or 1.0)

    def by_widths(self) -> list[tuple[str, nn.Module, Widths]]:
        """Every call of a layer, and what it costs by its widths."""
        return [
            (target, module, self._widths(target, module, positions)) for target, module, positions in self._count.nodes
        ]

    def targets(self) -> list[str]:
        return list(self._calls)

    def module(self, target: str) -> nn.Module:
        return self._calls[target][0][0]

    def step(self, target: str, round_to: int) -> int:
        """What ranks of a layer are multiples of: ``round_to``, its groups, and of each the channels that are computed
        together where time counts."""
        module = self.module(target)
        groups, together = groups_of(module), 1 if self._times is None else self._times.together
        return math.lcm(round_to, groups * blocks(together, groups, *module.weight.shape[:2]))

    def layer_cost(self, target: str, kernel_row_positions: float) -> LayerCost:
        """``kernel_row_positions`` is how many rows of a separable kernel read an image."""
        calls, module = self._calls[target], self.module(target)
        if self._times is None:
            outputs = sum(positions // module.weight[0, 0].numel() for _, positions in calls)
            return self._counted(module, outputs, len(calls) * self._weight_cost, kernel_row_positions)
        price = self._measured.get(target, Price(Widths()))
        channels, separable = (
            line and Line(len(calls) * line.fixed, len(calls) * line.each) for line in (price.channels, price.separable)
        )
        return LayerCost(len(calls) * price.widths.at(*module.weight.shape[:2]), channels, separable)

    def _widths(self, target: str, module: nn.Module, positions: int) -> Widths:
        if self._times is None:
            return Widths(pair=positions + self._weight_cost * module.weight[0, 0].numel())
        return self._measured.get(target, Price(Widths())).widths

    @staticmethod
    def _counted(module: nn.Module, positions: float, weights: float, kernel_row_positions: float) -> LayerCost:
        """Of outputs at so many ``positions``; loading all weights counts as ``weights`` more of them."""
        (out, into), kernel = module.weight.shape[:2], module.weight[0, 0].numel()
        groups = groups_of(module)
        positions += weights
        separable = None
        if module.weight.ndim == 4 and groups == 1:
            rows, columns = module.weight.shape[2:]
            separable = Line(0.0, (kernel_row_positions + weights) * into * columns + positions * out * rows)
        channels = Line(0.0, positions * (into * kernel + out // groups))
        return LayerCost(positions * kernel * out * into, channels, separable)
