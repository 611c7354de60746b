"""Ranks within a budget: those that lose least all together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sinf.compress.low_rank.metric import Losses
from sinf.compress.prices import Prices
from sinf.compress.select import Budget
from sinf.errors import ConfigError, OutOfReachError
from sinf.graph.cost import MacCount
from sinf.graph.delta import can_factor, why_one
from sinf.graph.price import Line

_PARTS = 1 << 14  # of what a budget has above the least that must stay


class Rank(NamedTuple):
    """How many channels are between two layers, of all groups together, and whether they are separable."""

    channels: int
    separable: bool = False


@dataclass(frozen=True)
class _Choice:
    """What stands for a layer (None: the layer as it is), the nats that it loses, and what it costs."""

    rank: Rank | None
    loss: float
    cost: float


def choose_ranks(budget: Budget, count: MacCount, metrics: Mapping[str, Losses], round_to: int = 8) -> dict[str, Rank]:
    """Ranks by target, of the layers that become two, within a budget of MACs.

    Raises:
        ConfigError: no ranks are within the budget.
    """
    return choose_ranks_together(budget, [(count, metrics)], [1.0], round_to)[0]


def choose_ranks_together(
    budget: Budget, parts: Sequence[tuple[MacCount, Mapping[str, Losses]]], shares: Sequence[float], round_to: int = 8
) -> list[dict[str, Rank]]:
    """What :func:`choose_ranks` finds, for several parts under one budget: of their mean MACs, each part counting by
    its share of the inputs, and so does what it loses. Ranks are multiples of ``round_to``, of a layer's groups, and of
    as many channels as are computed together where time counts.

    Raises:
        ConfigError: no ranks are within the budget.
    """
    if round_to < 1:
        raise ConfigError("round_to must be at least 1", got=round_to, remedy="take 8")
    options: dict[tuple[int, str], list[_Choice]] = {}
    fixed = 0.0
    for part, ((count, metrics), share) in enumerate(zip(parts, shares, strict=True)):
        prices = Prices(budget, count)
        fixed += share * prices.rest
        for target in prices.targets():
            choices = _options(target, prices, metrics, round_to)
            options[part, target] = [_Choice(c.rank, share * c.loss, share * c.cost) for c in choices]
    whole = fixed + sum(choices[0].cost for choices in options.values())
    least = fixed + sum(min(choice.cost for choice in choices) for choices in options.values())
    if budget.macs == 1:
        return [{} for _ in parts]  # rounded up to parts of the budget, all as they are would not be within it
    if least > budget.macs * whole:
        raise OutOfReachError(
            "the MAC budget must be within reach of ranks", got=f"{budget.macs:g}", least=least / whole,
            remedy="raise the budget",
        )  # fmt: skip
    ranks: list[dict[str, Rank]] = [{} for _ in parts]
    for (part, target), choice in zip(
        options, _cheapest(list(options.values()), budget.macs * whole - fixed), strict=True
    ):
        if choice.rank:
            ranks[part][target] = choice.rank
    return ranks


def _cheapest(options: list[list[_Choice]], most: float) -> list[_Choice]:
    """One choice of each list, of least loss within ``most``: a knapsack, filled list by list. Costs are rounded up to
    parts of it, all together by at most ``len(options) / _PARTS``."""
    least = [min(choice.cost for choice in choices) for choices in options]
    part = (most - sum(least)) / _PARTS
    loss = torch.zeros(_PARTS + 1, dtype=torch.float64)  # by how many parts may be spent above the least
    taken: list[Tensor] = []
    steps = [
        [0 if choice.cost <= low else math.ceil((choice.cost - low) / part) if part > 0 else _PARTS + 1
         for choice in choices]
        for choices, low in zip(options, least, strict=True)
    ]  # fmt: skip
    for choices, parts in zip(options, steps, strict=True):
        best, which = torch.full_like(loss, torch.inf), torch.zeros(len(loss), dtype=torch.int64)
        for index, (choice, spent) in enumerate(zip(choices, parts, strict=True)):
            if spent > _PARTS:
                continue
            total = loss[: len(loss) - spent] + choice.loss
            better = total < best[spent:]
            best[spent:][better], which[spent:][better] = total[better], index
        loss = best
        taken.append(which)
    left, chosen = _PARTS, []
    for choices, parts, which in zip(reversed(options), reversed(steps), reversed(taken), strict=True):
        index = int(which[left])
        chosen.append(choices[index])
        left -= parts[index]
    return chosen[::-1]


def left_whole(budget: Budget, count: MacCount, metrics: Mapping[str, Losses], round_to: int) -> dict[str, list[str]]:
    """Layers for which no rank is offered, by the reason."""
    prices, layers = Prices(budget, count), dict[str, list[str]]()
    for target in prices.targets():
        reason = why_one(prices.module(target))
        if reason is None and prices.layer_cost(target, 0.0).channels is None:
            reason = "none of these was timed as two"
        if reason is None and len(_options(target, prices, metrics, round_to)) == 1:
            reason = "two cost more"
        if reason is not None:
            layers.setdefault(reason, []).append(target)
    return layers


def _options(target: str, prices: Prices, metrics: Mapping[str, Losses], round_to: int) -> list[_Choice]:
    metric, module = metrics.get(target), prices.module(target)
    costs = prices.layer_cost(target, 0.0 if metric is None else metric.kernel_row_positions)
    choices = [_Choice(None, 0.0, costs.whole)]
    if metric is None or not can_factor(module):
        return choices
    step = prices.step(target, round_to)

    def offer(values: Tensor, noise: Tensor, line: Line | None, most: int, separable: bool) -> None:
        if line is None:
            return
        effects = values.sum() - values.cumsum(0) + prices.rounding * noise.cumsum(0)  # of what goes, and of rounding
        for rank in range(step, most + 1, step):
            if (cost := line.at(rank)) < costs.whole:
                lost = effects[rank // metric.groups - 1]
                choices.append(_Choice(Rank(rank, separable), 0.5 * float(lost), cost))

    out, into = module.weight.shape[:2]
    fewer = out - 1  # through as many the layer would stay as it is, and another come after it
    offer(metric.values, metric.values, costs.channels, fewer, separable=False)
    if len(metric.kernel_rows):
        rows, columns = module.weight.shape[2:]
        most = min(into * columns, out * rows)
        offer(metric.kernel_rows, metric.kernel_row_noise, costs.separable, most, separable=True)
    return choices
