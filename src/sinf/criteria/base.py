"""What a criterion is: a rule that gives every unit of a coupled group an importance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from sinf.statistics import SiteStatistics
from sinf.subgraph.coupling import CoupledGroup, Coupling


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
    """All that is known of one coupled group: who reads it, with statistics, and who writes it."""

    group: CoupledGroup
    readers: list[Reader]
    writers: list[Writer]


class Criterion(ABC):
    """An importance for every unit: larger means kept longer. Importances of different groups are comparable."""

    name: ClassVar[str]

    @abstractmethod
    def score(self, statistics: GroupStatistics) -> Tensor:
        """``(units,)`` float, finite."""


class SiteCriterion(Criterion):
    """A criterion that scores the channels which a site reads; a unit's score is the sum over its channels and
    sites."""

    @abstractmethod
    def score_channels(self, site: SiteStatistics) -> Tensor:
        """``(C,)``."""

    def score(self, statistics: GroupStatistics) -> Tensor:
        total = torch.zeros(statistics.group.size)
        for reader in statistics.readers:
            mine = reader.unit >= 0
            total.index_add_(0, reader.unit[mine], self.score_channels(reader.site)[mine].float())
        return total


def group_statistics(
    graph: fx.GraphModule, coupling: Coupling, group: CoupledGroup, sites: dict[str, SiteStatistics]
) -> GroupStatistics:
    """Gather what is known of a group from the statistics of the sites that read it."""
    local = torch.full((coupling.units,), -1, dtype=torch.int64)
    local[group.units] = torch.arange(group.size)
    readers = [Reader(sites[t], local[coupling.reads[t].units]) for t in group.consumers if t in sites]
    writers = [Writer(graph.get_submodule(t).weight.detach(), local[coupling.writes[t].units]) for t in group.producers]
    return GroupStatistics(group, readers, writers)
