"""Depth: whole residual branches become constants.

Of a network of many thin layers, fewer channels save multiplications and little time, because every call costs. A
branch whose output is its mean is no call at all: what only the branch needed is not run, and the layers after it are
solved again, from what the shorter network makes. What is lost is known to second order before: half the trace of the
Fisher information of the branch's output times its covariance, in nats of the softened answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from sinf.compress.compressor import Compressor, Observed, Rule, Run, Scope
from sinf.compress.low_rank.solve import reconstruct_ranks
from sinf.compress.prices import Prices
from sinf.errors import ConfigError, OutOfReachError
from sinf.graph.branches import alone_for, may_go, to_sum
from sinf.graph.delta import Constant, LayerDeltas
from sinf.graph.network import Part
from sinf.statistics import Fisher, OutputMoments, Statistics
from sinf.storage.steps import Tensors


class _Branch(NamedTuple):
    """A residual branch: the target of its last layer, and of all layers with weights that it alone needs."""

    end: str
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
        plans: list[set[str]] = [set() for _ in scopes]
        for rule, region in self.budgets(rules):
            if not any(branches(scope) for scope in scopes):
                raise ConfigError("depth takes residual branches", got="none", remedy="take channels or ranks")
            total, prices, saves = 0.0, {}, {}
            for number, scope in enumerate(scopes):
                macs, losses = scope.regions[region].macs, observed(scope)
                counted, by_layer = Prices(rule, macs), defaultdict[str, float](float)
                for target, module, price in counted.by_widths():
                    by_layer[target] += price.at(*module.weight.shape[:2])
                total += scope.share * (counted.rest + sum(by_layer.values()))
                for branch in branches(scope):
                    saved = scope.share * sum(by_layer[target] for target in branch.layers)
                    if saved:
                        prices[number, branch.end] = scope.share * float(losses[f"loss.{branch.end}"]) / saved
                        saves[number, branch.end] = saved
            spent = total
            for number, end in sorted(prices, key=lambda key: prices[key]):
                if spent > rule.macs * total:
                    plans[number].add(end)
                    spent -= saves[number, end]
            if spent > rule.macs * total:
                raise OutOfReachError(
                    "the MAC budget must be within reach of whole branches", got=f"{rule.macs:g}",
                    least=spent / total, remedy="raise the budget, or take channels or ranks",
                )  # fmt: skip
        return plans

    def make(self, scope: Scope, plan: set[str], observed: Observed, run: Run) -> Part:
        tensors, keep = observed(scope), scope.start.keep
        layers: LayerDeltas = {
            end: Constant(tensors[f"mean.{end}"].float()[scope.coupling.writes[end].index(keep)])
            for end in sorted(plan)
        }
        if run.fit and layers:
            whole, small = scope.inputs(run.most)
            dead = {target for branch in branches(scope) if branch.end in plan for target in branch.layers}
            layers = reconstruct_ranks(
                scope.graph, scope.coupling, layers, {}, {}, whole, None if small is whole else small,
                memory=run.activations, equations=run.passes.equations, skip=dead,
                progress=run.solved(len(scope.coupling.mixers)),
            )  # fmt: skip
        return Part(keep, scope.start.layers | layers)


def branches(scope: Scope) -> list[_Branch]:
    """Residual branches that may go: each ends in a full convolution with a norm or none, and is called once."""
    ends, sites = [], set(scope.coupling.mixers.values())
    calls = Counter(str(node.target) for node in scope.graph.graph.nodes if node.op == "call_module")
    for node in scope.graph.graph.nodes:
        target = str(node.target)
        if node.op != "call_module" or target not in sites or calls[target] > 1:
            continue
        chain = to_sum(scope.graph, node)
        if chain is None or not isinstance(scope.graph.get_submodule(target), nn.Conv2d):
            continue
        (total,) = chain[-1].users
        if all(may_go(total, other) for other in total.all_input_nodes if other is not chain[-1]):
            alone = {str(each.target) for each in alone_for(node) if each.op == "call_module"}
            ends.append(_Branch(target, frozenset(alone & sites)))
    return [branch for branch in ends if all(calls[target] == 1 for target in branch.layers)]
