"""Subgraphs: the tail made smaller for every cluster, from features of the cluster's own images.

A budget is each subgraph's own, or one for all of them, spent in the layer and cluster where it costs least.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sinf.compress.compressor import Compression, Compressor, Region, Run, Scope
from sinf.compress.select import Budget, Schedule, identity
from sinf.compress.side_by_side import Chosen
from sinf.data.clusters import Clusters
from sinf.data.images import BATCH, LabelledImages
from sinf.graph.network import Part, PartedNetwork
from sinf.graph.prepare import prepare
from sinf.models import BaseModel
from sinf.pipelines.whole import TAIL
from sinf.routing.router import part_name
from sinf.storage.shelf import Shelf
from sinf.storage.steps import Tensors

_LEAST = 8  # images of a cluster's own, or others join them
_OTHERS = 500  # with those


@dataclass
class Subgraphs:
    """Makes the subgraphs, one step each, stored.

    Sums depend on ``origin`` (model, images, cut), subgraphs on ``compaction`` as well: what else says how the network
    is made smaller, up to the tail. Features of all scoring images lie on the ``shelf`` while they are needed.
    """

    base: BaseModel
    network: PartedNetwork
    scoring: LabelledImages
    clusters: Clusters
    compressor: Compressor
    rule: Schedule | Budget
    together: bool
    seed: int
    run: Run
    shelf: Shelf
    origin: dict[str, Any]
    compaction: dict[str, Any]
    _features: tuple[Tensor, Tensor] | None = None

    def of(self, extractor: Part) -> dict[str, Part]:
        """Every cluster's part, by name. Features are computed when the first of them is missing, and forgotten after
        the last."""
        network, run, total = self.network, self.run, len(self.clusters)
        quiet = replace(run, progress=lambda step, done, total: None)  # a cluster is one step of the progress
        depends = self.compaction | {"rule": type(self.rule).__name__, **identity(self.rule)}
        if self.together:
            depends |= {"clusters": self.clusters.members}
        scopes = [self._scope(cluster, extractor) for cluster in range(total)]
        shared = Compression(self.compressor, scopes, [(self.rule, TAIL)], quiet) if self.together else None
        parts = {}
        for cluster, scope in enumerate(scopes):
            run.progress("subgraphs of clusters", cluster, total)

            def compute(cluster: int = cluster, scope: Scope = scope) -> Tensors:
                work = shared or Compression(self.compressor, [scope], [(self.rule, TAIL)], quiet)
                part = work.part(cluster if shared else 0)
                self.shelf.forget()
                return part.to_tensors(network.coupling, "")

            name = part_name(cluster)
            tensors = run.store.get(name, depends | {"classes": self.clusters.members[cluster]}, compute)
            parts[name] = Part.from_tensors(tensors, network.coupling, "")
        run.progress("subgraphs of clusters", total, total)
        self._features = None
        return parts

    def first(self, extractor: Part) -> Part:
        """That of the first cluster alone, within a budget of its own; not stored."""
        quiet = replace(self.run, progress=lambda step, done, total: None)
        return Compression(self.compressor, [self._scope(0, extractor)], [(self.rule, TAIL)], quiet).part(0)

    def _scope(self, cluster: int, extractor: Part) -> Scope:
        """The tail for a cluster's classes."""
        network, members, mine = self.network, list(self.clusters.members[cluster]), self._images_of(cluster)

        def features(most: int | None) -> tuple[Chosen, Chosen]:
            whole, narrow = self._features_of_all(extractor)
            rows = Chosen(whole, mine)
            return rows, rows if narrow is whole else Chosen(narrow, mine)

        def batches() -> Iterable[tuple[Tensor, Tensor]]:
            self.run.progress("statistics of clusters", cluster, len(self.clusters))
            rows, labels = features(None)[0], self.scoring.labels[mine]
            parts = (slice(first, first + BATCH) for first in range(0, len(labels), BATCH))
            return ((rows[part], labels[part]) for part in parts)

        return Scope(
            name=part_name(cluster),
            graph=network.parts.tail,
            coupling=network.coupling,
            regions={TAIL: Region(network.tail_macs, network.groups_after())},
            batches=batches,
            inputs=features,
            classes=self.base.spec.classes,
            start=Part(network.with_classes(extractor.keep, members)),
            answer=members,
            share=self._share(cluster),
            seed=self.seed + cluster,
            kernels=False,
            slot=network.features_slot,
            origin=self.origin | {"classes": members},
            lasting=False,
        )

    def _share(self, cluster: int) -> float:
        """Of the scoring images."""
        count = torch.bincount(self.clusters.of_class()[self.scoring.labels], minlength=len(self.clusters)).clamp(min=1)
        return float(count[cluster] / count.sum())

    def _images_of(self, cluster: int) -> Tensor:
        """Rows of the images that a cluster's subgraph is made from: its own, and some others where these are too few
        to see anything."""
        own = torch.isin(self.scoring.labels, torch.tensor(self.clusters.members[cluster]))
        rows = torch.nonzero(own).flatten()
        return rows if len(rows) >= _LEAST else torch.cat([rows, torch.nonzero(~own).flatten()[: _OTHERS - len(rows)]])

    def _features_of_all(self, extractor: Part) -> tuple[Tensor, Tensor]:
        """Features of all scoring images, of the base extractor and of the one that will run."""
        if self._features is None:
            network = self.network
            base, smaller = prepare(network.parts.extractor), prepare(network.extractor(extractor))
            count, done = len(self.scoring), 0
            whole = self.shelf.empty(count, *network.cut.shape)
            small = self.shelf.empty(count, *network.feature_shape(extractor)) if extractor.changes else whole
            with torch.no_grad():
                for x, _ in self.scoring.batches(self.base.spec.preprocessing):
                    self.run.progress("features", done, count)
                    whole[done : done + len(x)] = base(x)
                    if extractor.changes:
                        small[done : done + len(x)] = smaller(x)
                    done += len(x)
                    self.shelf.forget()
            self.run.progress("features", count, count)
            self._features = whole, small
        return self._features
