"""What a criterion is: a rule that gives every unit of a coupled group an importance.

A unit's channels may live in several layers. A criterion of what is read (:class:`SiteCriterion`) adds up the unit's
channels at all sites that read it; a criterion of weights (:class:`FilterCriterion`) adds up its filters in all layers
that make it. Nothing else decides how a coupled group is summed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from sinf.graph.coupling import CoupledGroup, Coupling
from sinf.statistics import OfUnits, SiteStatistics, Statistic


@dataclass(frozen=True)
class Reader:
    """A site that reads a group. ``unit`` (C,) is the group's unit of each channel it reads, -1 for another group's."""

    site: SiteStatistics
    unit: Tensor


@dataclass(frozen=True)
class Writer:
    """A layer that writes a group: ``weight`` (O, ...) and the group's unit of each of its O channels."""

    weight: Tensor
    unit: Tensor


@dataclass(frozen=True)
class GroupStatistics:
    """All that is known of one coupled group: who reads it, with statistics, and who writes it; ``norms`` are the batch
    norms that it passes (their weights are (O,)), and ``units`` (size,) by type the sums that belong to no site, over
    ``images``."""

    group: CoupledGroup
    readers: list[Reader]
    writers: list[Writer]
    norms: list[Writer] = field(default_factory=list)
    units: dict[type[OfUnits], Tensor] = field(default_factory=dict)
    images: int = 0


class Criterion(ABC):
    """An importance for every unit: larger means kept longer. Importances of different groups are comparable.

    Attributes:
        needs: the statistics that :func:`sinf.statistics.collect` must add up for it.
        pool: p, the side to which it wants channels pooled.
    """

    name: ClassVar[str]
    needs: tuple[type[Statistic], ...] = ()
    pool: int = 1

    @property
    def reads_labels(self) -> bool:
        """Whether it depends on the labels of the images."""
        return any(kind.by_label for kind in self.needs)

    @abstractmethod
    def score(self, statistics: GroupStatistics) -> Tensor:
        """``(units,)`` float, finite, not negative."""

    def options(self) -> dict[str, Any]:
        """What tells it from another criterion of the same name."""
        return {name: value for name, value in vars(self).items() if name != "needs"}


class SiteCriterion(Criterion):
    """A criterion that scores the channels which a site reads; a unit's score is the sum over its channels and
    sites."""

    @abstractmethod
    def score_channels(self, site: SiteStatistics) -> Tensor:
        """``(C,)``."""

    def score(self, statistics: GroupStatistics) -> Tensor:
        each = ((self.score_channels(reader.site), reader.unit) for reader in statistics.readers)
        return add_up(statistics.group.size, each)


class FilterCriterion(Criterion):
    """A criterion that scores the filters which write a channel, without images; a unit's score is the sum over its
    filters and layers."""

    @abstractmethod
    def score_filters(self, filters: Tensor) -> Tensor:
        """``(O,)`` of a layer's filters ``(O, C * K)``."""

    def score(self, statistics: GroupStatistics) -> Tensor:
        each = ((self.score_filters(writer.weight.flatten(1)), writer.unit) for writer in statistics.writers)
        return add_up(statistics.group.size, each)


def add_up(size: int, scores: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """``(size,)``: pairs of channels' scores (C,) and units (C,) added up; channels of other groups are left out."""
    total = torch.zeros(size)
    for each, unit in scores:
        mine = unit >= 0
        total.index_add_(0, unit[mine], each[mine].float())
    return total


def share(values: Tensor) -> Tensor:
    """Relative to the sum over all channels of a layer, so that layers compare."""
    return values / values.sum().clamp(min=1e-30)


def relative(values: Tensor) -> Tensor:
    """Relative to the mean over all channels of a layer, so that layers compare."""
    return values / values.mean().clamp(min=1e-30)


def group_statistics(
    graph: fx.GraphModule, coupling: Coupling, group: CoupledGroup, sites: dict[str, SiteStatistics]
) -> GroupStatistics:
    """Gather what is known of a group from the statistics of the sites that read it."""
    local = torch.full((coupling.units,), -1, dtype=torch.int64)
    local[group.units] = torch.arange(group.size)
    readers = [Reader(sites[t], local[coupling.reads[t].units]) for t in group.consumers if t in sites]
    writers = [Writer(graph.get_submodule(t).weight.detach(), local[coupling.writes[t].units]) for t in group.producers]
    norms = [
        Writer(weight, unit)
        for target, slot in coupling.writes.items()
        if bool(((unit := local[slot.units]) >= 0).any()) and (weight := _norm_weight(graph, target)) is not None
    ]
    units = {kind: each.total[group.units] for kind, each in getattr(sites, "units", {}).items()}
    return GroupStatistics(group, readers, writers, norms, units, getattr(sites, "images", 0))


def _norm_weight(graph: fx.GraphModule, target: str) -> Tensor | None:
    """``(O,)`` the scale of a batch norm: a layer, or the weight of one whose forward was opened when it was traced."""
    path, _, name = target.rpartition(".")
    for candidate, whole in ((target, True), (path, name == "weight")):
        try:
            module = graph.get_submodule(candidate) if whole else None
        except AttributeError:  # a parameter
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return torch.ones(module.num_features) if module.weight is None else module.weight.detach()
    return None
