"""2:4 sparsity as a compressor of one's own: of four neighbouring inputs, the two weights that matter least are zero.

    import sparsity                        # registers it
    sinf.prune(model, images, sinf.PruneConfig(sinf.Amount(macs=0.6), method="2:4"), "work")

A weight matters as much as its square times the second moment of what it reads (Sun et al., Wanda, arXiv 2306.11695).
Whole layers become sparse, first those that lose least for the multiplications that they save; a sparse layer counts
half. Engines that know the pattern compute half of it; the engines of sinf compute zeros, and save nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sinf.compress.compressor import Compressor, Observed, Rule, Run, Scope
from sinf.compress.methods import register
from sinf.compress.prices import Prices
from sinf.errors import ConfigError
from sinf.graph.delta import LayerDelta, Weights
from sinf.graph.network import Part
from sinf.statistics import SecondMoments, Statistics
from sinf.storage.steps import Tensors


class TwoOfFour(Compressor):
    """A plan is the targets of the layers that become sparse."""

    name = "2:4"
    needs = (SecondMoments,)

    def observe(self, scope: Scope, statistics: Statistics) -> Tensors:
        """By layer, the mean square (C,) of every channel that it reads."""
        moments = {name: site[SecondMoments] for name, site in statistics.items()}
        return {name: each.gram.diagonal() / max(1, each.positions) for name, each in moments.items()}

    def plan(self, rules: Sequence[Rule], scopes: Sequence[Scope], observed: Observed) -> list[set[str]]:
        plans: list[set[str]] = [set() for _ in scopes]
        for rule, region in self.budgets(rules):
            costs, prices, rest = dict[tuple[int, str], float](), dict[tuple[int, str], float](), 0.0
            for number, scope in enumerate(scopes):
                squares, counted = observed(scope), Prices(rule, scope.count(region, rule))
                rest += scope.share * counted.rest
                for target, layer, price in counted.by_widths():  # MACs or time, as the budget counts
                    cost = scope.share * price.at(*layer.weight.shape[:2]) * (0.5 if is_sparse(layer) else 1.0)
                    costs[number, target] = costs.get((number, target), 0.0) + cost
                    if target in squares and cost and can_be_sparse(layer) and not is_sparse(layer):
                        prices[number, target] = scope.share * lost(scope, target, squares[target]) / cost
            total = spent = rest + sum(costs.values())
            for number, target in sorted(prices, key=lambda key: prices[key]):
                if spent > rule.macs * total:
                    plans[number].add(target)
                    spent -= costs[number, target] / 2
            if spent > rule.macs * total:
                raise ConfigError("a budget of 2:4 sparsity must be within reach", got=rule.macs, remedy="raise it")
        return plans

    def make(self, scope: Scope, plan: set[str], observed: Observed, run: Run) -> Part:
        start, squares, layers = scope.started, observed(scope), dict[str, LayerDelta]()
        for target in sorted(plan):
            layer = start.graph.get_submodule(target)
            weight = layer.weight.detach()
            bias = None if layer.bias is None else layer.bias.detach()
            layers[target] = Weights(weight * mask(weight, spread(layer, squares[target])), bias)
        return start.part(layers)


def can_be_sparse(layer: nn.Module) -> bool:
    """Whether a layer reads at least four channels, all of them for every output."""
    full = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    return full and layer.weight.shape[1] % 4 == 0


def is_sparse(layer: nn.Module) -> bool:
    """Whether of every four neighbouring inputs two weights are zero at least."""
    return can_be_sparse(layer) and bool((fours_of(layer.weight.detach()) == 0).sum(-1).ge(2).all())


def spread(layer: nn.Module, squares: Tensor) -> Tensor:
    """Mean squares of every input (I,), where a flattening made several of a channel (C,)."""
    return squares.repeat_interleave(layer.weight.shape[1] // len(squares))


def mask(weight: Tensor, squares: Tensor) -> Tensor:
    """Ones for the two of four neighbouring inputs whose weights (O, I, ...) matter most, else zeros."""
    shape = (1, -1) + (1,) * (weight.ndim - 2)
    fours = fours_of(weight.square() * squares.reshape(shape))
    best = fours.topk(2, dim=-1).indices
    return torch.zeros_like(fours).scatter(-1, best, 1.0).flatten(-2).transpose(1, -1)


def fours_of(weight: Tensor) -> Tensor:
    """Weights (O, I, ...) of four neighbouring inputs each (O, ..., I / 4, 4)."""
    return weight.transpose(1, -1).unflatten(-1, (-1, 4))


def lost(scope: Scope, target: str, squares: Tensor) -> float:
    """The mean square of what a layer no longer adds up, over its outputs."""
    layer = scope.started.graph.get_submodule(target)
    weight, each = layer.weight.detach(), spread(layer, squares)
    gone = weight.square() * each.reshape((1, -1) + (1,) * (weight.ndim - 2)) * (1 - mask(weight, each))
    return float(gone.sum() / len(weight))


register(TwoOfFour, lambda options: TwoOfFour())
