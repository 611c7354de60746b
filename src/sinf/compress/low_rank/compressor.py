"""Layers written as two, with fewer channels between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import fx

from sinf.compress.compressor import Compressor, Observed, Rule, Run, Scope
from sinf.compress.low_rank.choose import Rank, choose_ranks_together, left_whole
from sinf.compress.low_rank.metric import Metric, from_tensors, metrics, to_tensors
from sinf.compress.low_rank.solve import factor, reconstruct_ranks
from sinf.errors import ConfigError
from sinf.graph.coupling import Coupling
from sinf.graph.delta import Factors, groups_of
from sinf.graph.network import Part
from sinf.statistics import Fisher, KernelRows, OutputMoments, Statistics, weights_of
from sinf.statistics.need import metric_bytes
from sinf.storage.steps import Tensors


class LowRank(Compressor):
    """Ranks are multiples of ``round_to``. A plan is a :class:`Rank` by the target of every layer that becomes two."""

    name = "ranks"
    small = False
    needs = (OutputMoments, Fisher, KernelRows)

    def __init__(self, round_to: int = 8) -> None:
        self.round_to = round_to

    def describe(self) -> dict[str, str]:
        return {"method": "low rank"}

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"keeps": [field.name for field in fields(Metric)]}

    def bytes_beside(self, graph: fx.GraphModule, coupling: Coupling) -> int:
        return metric_bytes(graph, coupling)

    def observed_network(self, scope: Scope) -> tuple[fx.GraphModule, Coupling, list[int] | None]:
        """Convolutions in groups are sites as well."""
        graph, coupling, answer = super().observed_network(scope)
        return graph, coupling.with_grouped(), answer

    def observe(self, scope: Scope, statistics: Statistics) -> Tensors:
        """What a rank of every layer loses, decomposed: every budget reads it."""
        graph, coupling, _ = self.observed_network(scope)
        sites = {target: statistics[target] for target in weights_of(graph, coupling)}
        return to_tensors(metrics(sites, {target: groups_of(graph.get_submodule(target)) for target in sites}))

    def metrics(self, scope: Scope, observed: Observed) -> dict[str, Metric]:
        """By the target of every layer that may become two."""
        graph, coupling, _ = self.observed_network(scope)
        return from_tensors(observed(scope), weights_of(graph, coupling))

    def plan(self, rules: Sequence[Rule], scopes: Sequence[Scope], observed: Observed) -> list[dict[str, Rank]]:
        budgets, plans = self.budgets(rules), [dict[str, Rank]() for _ in scopes]
        pairs = [t for scope in scopes for t, layer in scope.start.layers.items() if isinstance(layer, Factors)]
        if pairs:
            raise ConfigError(
                "a layer becomes two once",
                got=f"{len(pairs)} that are two already ({', '.join(pairs[:3])})",
                remedy="give one budget, or take the smaller network as a new base model",
            )
        losses = [
            {target: metric.losses for target, metric in self.metrics(scope, observed).items()} for scope in scopes
        ]
        for budget, region in budgets:
            parts = [(scope.count(region, budget), mine) for scope, mine in zip(scopes, losses, strict=True)]
            chosen = choose_ranks_together(budget, parts, [scope.share for scope in scopes], self.round_to)
            plans = [plan | more for plan, more in zip(plans, chosen, strict=True)]
        return plans

    def leaves(self, rules: Sequence[Rule], scope: Scope, observed: Observed) -> dict[str, list[str]]:
        layers: dict[str, list[str]] = {}
        for budget, region in self.budgets(rules):
            metrics_by_target = self.metrics(scope, observed)
            more = left_whole(budget, scope.count(region, budget), metrics_by_target, self.round_to)
            layers |= {reason: layers.get(reason, []) + targets for reason, targets in more.items()}
        return layers

    def make(self, scope: Scope, plan: dict[str, Rank], observed: Observed, run: Run) -> Part:
        graph, coupling, _ = self.observed_network(scope)
        by_target = self.metrics(scope, observed)
        layers: dict[str, Any] = factor(graph, plan, by_target)
        if run.fit:
            whole, small = scope.inputs(run.most)
            layers = reconstruct_ranks(
                graph, coupling, layers, plan, by_target, whole, None if small is whole else small,
                memory=run.activations, equations=run.passes.equations,
                progress=run.solved(len(coupling.mixers)),
            )  # fmt: skip
        return scope.started.part(layers)
