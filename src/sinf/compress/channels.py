"""Channels removed: score, select within a budget, check against the masked network, reconstruct."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from sinf.compress.compressor import Compressor, Observed, Rule, Run, Scope
from sinf.compress.reconstruct import reconstruct
from sinf.compress.select import Budget, Candidates, select, select_together
from sinf.criteria import Criterion, group_statistics
from sinf.errors import ConfigError, CutError
from sinf.graph.coupling import CoupledGroup, Coupling
from sinf.graph.delta import LayerDeltas
from sinf.graph.network import Part
from sinf.graph.slice import slice_graph
from sinf.graph.verify import verify
from sinf.statistics import SiteStatistics, Statistics
from sinf.storage.steps import Tensors


def importances(
    criterion: Criterion,
    graph: fx.GraphModule,
    coupling: Coupling,
    groups: list[CoupledGroup],
    sites: dict[str, SiteStatistics],
) -> dict[str, Tensor]:
    """The importance of every unit of every group, by the group's name. ``graph`` is the whole network."""
    return {group.name: criterion.score(group_statistics(graph, coupling, group, sites)) for group in groups}


class ChannelRemoval(Compressor):
    """Channels go by a ``criterion``; widths that stay are multiples of ``round_to``. A plan is the units that stay
    (units,) bool."""

    name = "channels"
    by_criterion = True

    def __init__(self, criterion: Criterion, round_to: int = 8) -> None:
        self.criterion, self.round_to = criterion, round_to
        self.needs, self.pool = criterion.needs, criterion.pool

    @property
    def reads_labels(self) -> bool:
        return self.criterion.reads_labels

    def describe(self) -> dict[str, str]:
        return {"criterion": self.criterion.name}

    def identity(self) -> dict[str, Any]:
        return {"criterion": self.criterion.name, "options": self.criterion.options()}

    def observed_network(self, scope: Scope) -> tuple[fx.GraphModule, Coupling, list[int] | None]:
        """The base model's: channels are masked there."""
        return scope.graph, scope.coupling, scope.answer

    def observe(self, scope: Scope, statistics: Statistics) -> Tensors:
        """The importance of every unit, by group."""
        groups = {group.name: group for region in scope.regions.values() for group in region.groups}
        return importances(self.criterion, scope.graph, scope.coupling, list(groups.values()), statistics)

    def plan(self, rules: Sequence[Rule], scopes: Sequence[Scope], observed: Observed) -> list[Tensor]:
        changed = list(dict.fromkeys(target for scope in scopes for target in scope.start.layers))
        if changed:
            raise ConfigError(
                "channels are removed from layers that are as in the base model",
                got=f"{len(changed)} that were changed before ({', '.join(changed[:3])})",
                remedy="remove channels first, all within one budget, or take the smaller network as a new base model",
            )
        importance = [observed(scope) for scope in scopes]
        keep = [scope.start.keep for scope in scopes]
        for rule, region in rules:
            parts = [
                Candidates(_groups(scope, region), mine, scope.regions[region].macs, kept)
                for scope, mine, kept in zip(scopes, importance, keep, strict=True)
            ]
            if isinstance(rule, Budget):
                keep = select_together(rule, parts, [scope.share for scope in scopes], self.round_to)
            else:
                keep = [select(rule, *part, self.round_to) for part in parts]
        return keep

    def make(self, scope: Scope, plan: Tensor, observed: Observed, run: Run) -> Part:
        smaller = slice_graph(scope.graph, scope.coupling, plan)
        few = scope.inputs(run.passes.checked)[0][: run.passes.checked]
        verify(scope.graph, scope.coupling, plan, smaller, few, scope.slot)
        solved: LayerDeltas = {}
        if run.fit:
            whole, small = scope.inputs(run.most)
            solved = reconstruct(
                scope.graph, scope.coupling, plan, smaller, whole, small, kernels=scope.kernels,
                memory=run.activations, equations=run.passes.equations,
                progress=run.solved(len(scope.coupling.mixers)),
            )  # fmt: skip
        return Part(plan, solved)


def _groups(scope: Scope, region: str) -> list[CoupledGroup]:
    """Those that may lose channels in a region."""
    groups = scope.regions[region].groups
    if not groups:
        raise CutError(
            f"{region} must have channels that may be removed", got="none", remedy="cut elsewhere, or take ranks"
        )
    return groups
