"""Subgraphs: the tail made smaller for every cluster, from features of the cluster's own images.

Score, select, check against the masked tail, reconstruct. A budget is each subgraph's own, or one for all of them,
spent in the layer and cluster where it costs least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from sinf.compress import channels as compact
from sinf.compress.channels import Progress, importances
from sinf.compress.low_rank import LowRank, Rank, choose_ranks_together
from sinf.compress.passes import Passes, least
from sinf.compress.reconstruct import reconstruct
from sinf.compress.select import Budget, Candidates, Schedule, select, select_together
from sinf.compress.side_by_side import Chosen
from sinf.criteria import Criterion
from sinf.data.clusters import Clusters
from sinf.data.images import BATCH, LabelledImages
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.delta import LayerDeltas
from sinf.graph.network import Network, Part
from sinf.graph.prepare import prepare
from sinf.graph.slice import slice_graph
from sinf.graph.verify import verify
from sinf.models import BaseModel
from sinf.routing.router import part_name
from sinf.statistics import collect
from sinf.storage.shelf import Shelf
from sinf.storage.steps import StepStore, Tensors

_LEAST = 8  # images of a cluster's own, or others join them
_OTHERS = 500  # with those


class Options(compact.Options, Protocol):
    """What of a build's configuration matters here."""

    @property
    def subgraph(self) -> Schedule | Budget: ...
    @property
    def across_clusters(self) -> bool: ...


class Specialiser(ABC):
    """Makes the subgraphs, one step each, stored.

    Scores depend on ``origin`` (model, images, cut), subgraphs on ``compaction`` as well: what else says how the
    network is made smaller, up to the tail.
    """

    def __init__(
        self,
        base: BaseModel,
        network: Network,
        scoring: LabelledImages,
        clusters: Clusters,
        criterion: Criterion,
        options: Options,
        progress: Progress,
        store: StepStore,
        origin: dict[str, Any],
        compaction: dict[str, Any],
        passes: Passes | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self.base, self.network, self.scoring, self.clusters = base, network, scoring, clusters
        self.criterion, self.options, self.progress, self.store = criterion, options, progress, store
        self.origin, self.compaction = origin, compaction
        self.passes, self.shelf = passes or Passes(), shelf or Shelf(store.folder, 1 << 40)
        self._features: tuple[Tensor, Tensor] | None = None

    def specialise(self, common: Part) -> dict[str, Part]:
        """Every cluster's part, by name. Features are computed when the first of them is missing, and forgotten after
        the last."""
        depends = self.compaction | {"rule": type(self.options.subgraph).__name__, **asdict(self.options.subgraph)}
        if self.options.across_clusters:
            depends |= {"clusters": self.clusters.members}
        self._plan(common)
        parts = {}
        for cluster, members in enumerate(self.clusters.members):
            self.progress("subgraphs of clusters", cluster, len(self.clusters))

            def compute(cluster: int = cluster) -> Tensors:
                return self._subgraph(cluster, common).to_tensors(self.network.coupling, "")

            name = part_name(cluster)
            tensors = self.store.get(name, depends | {"classes": members}, compute)
            parts[name] = Part.from_tensors(tensors, self.network.coupling, "")
        self.progress("subgraphs of clusters", len(self.clusters), len(self.clusters))
        self._features = None
        return parts

    @abstractmethod
    def _plan(self, common: Part) -> None:
        """Spend a budget that all clusters share."""

    @abstractmethod
    def _subgraph(self, cluster: int, common: Part) -> Part:
        """The tail made smaller for a cluster."""

    def _shares(self) -> list[float]:
        """Of the scoring images, those of every cluster."""
        count = torch.bincount(self.clusters.of_class()[self.scoring.labels], minlength=len(self.clusters)).clamp(min=1)
        return (count / count.sum()).tolist()

    def _images_of(self, cluster: int) -> Tensor:
        """Rows of the images that a cluster's subgraph is made from: its own, and some others where these are too few
        to see anything."""
        own = torch.isin(self.scoring.labels, torch.tensor(self.clusters.members[cluster]))
        rows = torch.nonzero(own).flatten()
        return rows if len(rows) >= _LEAST else torch.cat([rows, torch.nonzero(~own).flatten()[: _OTHERS - len(rows)]])

    def _features_of(self, cluster: int, common: Part) -> tuple[Chosen, Chosen]:
        """Those of the cluster's scoring images."""
        (features, narrow), mine = self._features_of_all(common), self._images_of(cluster)
        whole = Chosen(features, mine)
        return whole, whole if narrow is features else Chosen(narrow, mine)

    def _batches_of(self, cluster: int, common: Part) -> Iterable[tuple[Tensor, Tensor]]:
        """Features of the base extractor, and labels."""
        whole, labels = self._features_of(cluster, common)[0], self.scoring.labels[self._images_of(cluster)]
        parts = (slice(first, first + BATCH) for first in range(0, len(labels), BATCH))
        return ((whole[part], labels[part]) for part in parts)

    def _features_of_all(self, common: Part) -> tuple[Tensor, Tensor]:
        """Features of all scoring images, of the base extractor and of the one that will run."""
        if self._features is None:
            network = self.network
            base, smaller = prepare(network.parts.extractor), prepare(network.extractor(common))
            count, done = len(self.scoring), 0
            whole = self.shelf.empty(count, *network.cut.shape)
            small = self.shelf.empty(count, *network.feature_shape(common)) if common.changes else whole
            with torch.no_grad():
                for x, _ in self.scoring.batches(self.base.spec.preprocessing):
                    self.progress("features", done, count)
                    whole[done : done + len(x)] = base(x)
                    if common.changes:
                        small[done : done + len(x)] = smaller(x)
                    done += len(x)
                    self.shelf.forget()
            self.progress("features", count, count)
            self._features = whole, small
        return self._features


class ChannelSubgraphs(Specialiser):
    """Channels of the tail are removed."""

    _together: list[Tensor] | None = None

    def _plan(self, common: Part) -> None:
        if not self.options.across_clusters:
            return
        candidates = []
        for cluster in range(len(self.clusters)):
            self.progress("importance", cluster, len(self.clusters))
            candidates.append(self._candidates(cluster, common))
        self.progress("importance", len(self.clusters), len(self.clusters))
        budget = cast(Budget, self.options.subgraph)  # a configuration allows no schedule here
        self._together = select_together(budget, candidates, self._shares(), self.options.round_to)

    def _candidates(self, cluster: int, common: Part) -> Candidates:
        """What may go from a cluster's tail, scored on its images."""
        network, members = self.network, list(self.clusters.members[cluster])
        groups, seed = network.groups_after(), self.options.seed + cluster

        def compute() -> Tensors:
            sites = collect(
                network.parts.tail,
                network.coupling,
                self._batches_of(cluster, common),
                classes=self.base.spec.classes,
                answer=members,
                needs=self.criterion.needs,
                pool=self.criterion.pool,
                seed=seed,
                at_once=self.passes.at_once,
            )
            self.shelf.forget()
            return importances(self.criterion, network, groups, sites)

        depends = {"criterion": self.criterion.name, "options": self.criterion.options(), "seed": seed}
        name = f"importance-{part_name(cluster)}"
        importance = self.store.get(name, self.origin | depends | {"classes": members}, compute)
        return Candidates(groups, importance, network.tail_macs, network.with_classes(common.keep, members))

    def _subgraph(self, cluster: int, common: Part) -> Part:
        """Check against the masked tail, and reconstruct."""
        if self._together is None:
            keep = select(self.options.subgraph, *self._candidates(cluster, common), self.options.round_to)
        else:
            keep = self._together[cluster]
        coupling, tail = self.network.coupling, self.network.parts.tail
        whole, small = self._features_of(cluster, common)
        smaller = slice_graph(tail, coupling, keep)
        verify(tail, coupling, keep, smaller, whole[: self.passes.checked], self.network.features_slot)
        solved: LayerDeltas = {}
        if self.options.reconstruct:
            solved = reconstruct(
                tail, coupling, keep, smaller, whole, small,
                memory=self.passes.activations, equations=self.passes.equations,
            )  # fmt: skip
        self.shelf.forget()
        return Part(keep, solved)


class RankSubgraphs(Specialiser):
    """Layers of the tail become two, for the classes of a cluster."""

    _together: list[dict[str, Rank]] | None = None

    def _plan(self, common: Part) -> None:
        if not self.options.across_clusters:
            return
        parts = []
        for cluster in range(len(self.clusters)):
            self.progress("importance", cluster, len(self.clusters))
            tail = self._tail(cluster, common)
            parts.append((MacCount(tail.graph, tail.coupling), tail.metrics))  # the statistics are forgotten
        self.progress("importance", len(self.clusters), len(self.clusters))
        budget = cast(Budget, self.options.subgraph)  # a configuration allows no schedule here
        self._together = choose_ranks_together(budget, parts, self._shares(), self.options.round_to)

    def _tail(self, cluster: int, common: Part) -> LowRank:
        """The tail of the cluster's classes, over the features of its images."""
        keep = self.network.with_classes(self.network.coupling.keep_all(), list(self.clusters.members[cluster]))
        graph = self.network.tail(Part(keep))

        coupling = couple(graph, free_input=True, free_output=True)
        return LowRank(
            graph, coupling, lambda: self._batches_of(cluster, common), self.base.spec.classes,
            self.options.seed + cluster, at_once=self.passes.at_once,
        )  # fmt: skip

    def _subgraph(self, cluster: int, common: Part) -> Part:
        options, tail = self.options, self._tail(cluster, common)
        if self._together is None:
            budget = cast(Budget, options.subgraph)  # a configuration allows no schedule here
            ranks = tail.ranks([(budget, MacCount(tail.graph, tail.coupling))], options.round_to)
        else:
            ranks = self._together[cluster]
        whole, small = self._features_of(cluster, common)
        layers = tail.layers(
            ranks,
            whole if options.reconstruct else None,
            small if common.changes else None,
            memory=least(options.reconstruct_bytes, self.passes.activations),
            equations=self.passes.equations,
        )
        self.shelf.forget()
        return Part(self.network.with_classes(common.keep, list(self.clusters.members[cluster])), layers)


#: By the method of a build.
SPECIALISERS: dict[str, type[Specialiser]] = {"channels": ChannelSubgraphs, "ranks": RankSubgraphs}
