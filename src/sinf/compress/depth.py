"""Depth: whole residual branches become constants.

Of a network of many thin layers, fewer channels save multiplications and little time, because every call costs. A
branch whose output is its mean is no call at all: what only the branch needed is not run, and the layers after it are
solved again, from what the shorter network makes. What is lost is known to second order before: half the trace of the
Fisher information of the branch's output times its covariance, in nats of the softened answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sinf.compress.compressor import Compressor, Observed, Rule, Run, Scope
from sinf.compress.low_rank.solve import reconstruct_ranks
from sinf.compress.prices import Prices
from sinf.compress.select import Budget
from sinf.errors import ConfigError, OutOfReachError
from sinf.graph.branches import alone_for, may_go, to_sum
from sinf.graph.delta import Constant, LayerDeltas
from sinf.graph.network import Part
from sinf.statistics import Fisher, OutputMoments, Statistics
from sinf.storage.steps import Tensors


class _Branch(NamedTuple):
    """A residual branch: the target of its last layer, the name of the sum that reads it, and the targets of all layers
    with weights that it alone needs."""

    end: str
    total: str
    layers: frozenset[str]


class BlockRemoval(Compressor):
    """A plan is the targets of the last layers of the branches that go."""

    name = "depth"
    needs = (OutputMoments, Fisher)

    def observe(self, scope: Scope, statistics: Statistics) -> Tensors:
        """By branch, the mean (O,) of its last layer's output, and the nats that are lost without it."""
        tensors: Tensors = {}
        for end in (branch.end for branch in branches(scope)):
            site = statistics[end]
            outputs, fisher = site[OutputMoments], site[Fisher].total.double()
            tensors[f"mean.{end}"] = outputs.mean
            tensors[f"loss.{end}"] = 0.5 * (fisher * outputs.covariance().double()).sum() / site.images
        return tensors

    def plan(self, rules: Sequence[Rule], scopes: Sequence[Scope], observed: Observed) -> list[set[str]]:
        budgets = self.budgets(rules)
        options = [(number, branch) for number, scope in enumerate(scopes) for branch in branches(scope)]
        if budgets and not options:
            raise ConfigError("depth takes residual branches", got="none", remedy="take channels or ranks")
        losses = [observed(scope) for scope in scopes] if budgets else []
        plans, gone, sums = [set[str]() for _ in scopes], set[tuple[int, str]](), set[tuple[int, str]]()
        for rule, region in budgets:
            costs = _costs(rule, region, scopes)
            total, prices = sum(costs.values()), []
            spent = total - sum(costs[each] for each in gone)
            for number, branch in options:
                if saved := sum(costs[number, target] for target in branch.layers):
                    lost = scopes[number].share * float(losses[number][f"loss.{branch.end}"])
                    prices.append((lost / saved, number, branch))
            for _, number, branch in sorted(prices, key=itemgetter(0)):
                left = {(number, target) for target in branch.layers} - gone
                there = (number, branch.end) in left and (number, branch.total) not in sums
                if there and spent > rule.macs * total:
                    spent -= sum(costs[each] for each in left)
                    gone |= left
                    sums.add((number, branch.total))
                    plans[number] = plans[number] - branch.layers | {branch.end}
            if spent > rule.macs * total:
                raise OutOfReachError(
                    "the MAC budget must be within reach of whole branches", got=f"{rule.macs:g}",
                    least=spent / total, remedy="raise the budget, or take channels or ranks",
                )  # fmt: skip
        return plans

    def make(self, scope: Scope, plan: set[str], observed: Observed, run: Run) -> Part:
        start, tensors = scope.started, observed(scope)
        layers: LayerDeltas = {end: Constant(tensors[f"mean.{end}"].float()) for end in sorted(plan)}
        if run.fit:
            whole, small = scope.inputs(run.most)
            gone = {target for branch in branches(scope) if branch.end in plan for target in branch.layers}
            layers = reconstruct_ranks(
                start.graph, start.coupling, layers, {}, {}, whole, None if small is whole else small,
                memory=run.activations, equations=run.passes.equations, skip=gone,
                progress=run.solved(len(start.coupling.mixers)),
            )  # fmt: skip
        return start.part(layers)


def _costs(rule: Budget, region: str, scopes: Sequence[Scope]) -> defaultdict[tuple[int, str], float]:
    """What the layers of a region cost by scope and target, and all else of it by scope, each scope by its share."""
    costs = defaultdict[tuple[int, str], float](float)
    for number, scope in enumerate(scopes):
        prices = Prices(rule, scope.count(region, rule))
        costs[number, ""] = scope.share * prices.rest
        for target, module, price in prices.by_widths():
            costs[number, target] += scope.share * price.at(*module.weight.shape[:2])
    return costs


def branches(scope: Scope) -> list[_Branch]:
    """Residual branches of what a scope starts from that may go: each ends in a full convolution with a norm or none,
    and is called once."""
    graph = scope.started.graph
    ends, sites = [], set(scope.started.coupling.mixers.values())
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    for node in graph.graph.nodes:
        target = str(node.target)
        if node.op != "call_module" or target not in sites or calls[target] > 1:
            continue
        chain = to_sum(graph, node)
        if chain is None or not isinstance(graph.get_submodule(target), nn.Conv2d):
            continue
        (total,) = chain[-1].users
        if all(may_go(total, other) for other in total.all_input_nodes if other is not chain[-1]):
            alone = [str(each.target) for each in alone_for(node) if each.op == "call_module"]
            weighted = [each for each in alone if isinstance(graph.get_submodule(each), (_ConvNd, nn.Linear))]
            ends.append(_Branch(target, total.name, frozenset(weighted)))
    return [branch for branch in ends if all(calls[target] == 1 for target in branch.layers)]
