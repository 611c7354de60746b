"""Channels removed: score, select within a budget, check against the masked network, reconstruct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sinf.compress.compressor import Compressor, Observed, Predictions, Rule, Run, Scope
from sinf.compress.reconstruct import reconstruct
from sinf.compress.select import Budget, Candidates, select, select_together
from sinf.criteria import Criterion, group_statistics
from sinf.errors import ConfigError, CutError
from sinf.graph.coupling import CoupledGroup, Coupling
from sinf.graph.delta import LayerDeltas, Mix
from sinf.graph.network import Part
from sinf.graph.slice import slice_graph
from sinf.graph.verify import verify
from sinf.statistics import SecondMoments, SiteStatistics, Statistics
from sinf.storage.steps import Tensors

_DAMPING = 3e-3  # of the mean second moment


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
    """Channels go by a ``criterion``; widths that stay are multiples of ``round_to``. Importances of a group that
    ``corrections`` name count so many times. A plan is the units that stay (units,) bool."""

    name = "channels"
    by_criterion = True

    def __init__(self, criterion: Criterion, round_to: int = 8, corrections: Mapping[str, float] | None = None) -> None:
        self.criterion, self.round_to, self.corrections = criterion, round_to, dict(corrections or {})
        self.needs, self.pool = criterion.needs, criterion.pool

    @property
    def reads_labels(self) -> bool:
        return self.criterion.reads_labels

    def describe(self) -> dict[str, str]:
        return {"criterion": self.criterion.name}

    def identity(self) -> dict[str, Any]:
        return self.observation() | {"corrections": self.corrections}

    def observation(self) -> dict[str, Any]:
        return {"criterion": self.criterion.name, "options": self.criterion.options()}

    def observed_network(self, scope: Scope) -> tuple[fx.GraphModule, Coupling, list[int] | None]:
        """The base model's: channels are masked there."""
        return scope.graph, scope.coupling, scope.answer

    @property
    def predictions(self) -> Importances:
        return Importances(self)

    def observe(self, scope: Scope, statistics: Statistics) -> Tensors:
        """The importance of every unit, by group, without corrections."""
        groups = list(_all_groups(scope).values())
        return importances(self.criterion, scope.graph, scope.coupling, groups, statistics)

    def plan(self, rules: Sequence[Rule], scopes: Sequence[Scope], observed: Observed) -> list[Tensor]:
        changed = list(dict.fromkeys(target for scope in scopes for target in scope.start.layers))
        if changed:
            raise ConfigError(
                "channels are removed from layers that are as in the base model",
                got=f"{len(changed)} that were changed before ({', '.join(changed[:3])})",
                remedy="remove channels first, all within one budget, or take the smaller network as a new base model",
            )
        importance = [
            {name: self.corrections.get(name, 1.0) * each for name, each in observed(scope).items()} for scope in scopes
        ]
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


class Importances(Predictions):
    """A criterion predicts what goes with the units of a group; a component is a coupled group."""

    needs = (SecondMoments,)

    def __init__(self, compressor: ChannelRemoval) -> None:
        self.compressor = compressor

    def components(self, scope: Scope) -> list[str]:
        return [*_all_groups(scope)]

    def losses(self, scope: Scope, plan: Tensor, observed: Observed) -> dict[str, float]:
        importance, corrections = observed(scope), self.compressor.corrections
        gone = {name: ~plan[group.units] for name, group in _all_groups(scope).items()}
        return {
            name: corrections.get(name, 1.0) * float(importance[name][units].sum())
            for name, units in gone.items()
            if bool(units.any())
        }

    def alone(self, scope: Scope, plan: Tensor, component: str, statistics: Statistics) -> Part:
        """With mixes of the channels that stay, for all layers that read the group."""
        coupling, units = scope.coupling, _all_groups(scope)[component].units
        keep, layers = scope.start.keep.clone(), LayerDeltas()
        keep[units] = plan[units]
        for target in set(coupling.mixers.values()):
            kept = keep[coupling.reads[target].units]
            if not bool(kept.all()):
                gram = statistics[target][SecondMoments].gram.double()
                system = gram[kept][:, kept]
                system.diagonal().add_(_DAMPING * gram.diagonal().mean().clamp(min=1e-12))
                layers[target] = Mix(torch.linalg.solve(system, gram[kept]).T.float())
        return Part(keep, layers)

    def corrected(self, factors: Mapping[str, float]) -> ChannelRemoval:
        plain, before = self.compressor, self.compressor.corrections
        more = {name: before.get(name, 1.0) * times for name, times in factors.items()}
        return ChannelRemoval(plain.criterion, plain.round_to, before | more)


def _all_groups(scope: Scope) -> dict[str, CoupledGroup]:
    """Those that may lose channels anywhere, by name."""
    return {group.name: group for region in scope.regions.values() for group in region.groups}


def _groups(scope: Scope, region: str) -> list[CoupledGroup]:
    """Those that may lose channels in a region."""
    groups = scope.regions[region].groups
    if not groups:
        raise CutError(
            f"{region} must have channels that may be removed", got="none", remedy="cut elsewhere, or take ranks"
        )
    return groups
