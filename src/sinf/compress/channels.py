"""Static pruning for all classes: the feature extractor, the full tail, or the whole network, made smaller for good.

The same statistics, criteria, selection, check and reconstruction as for the subgraphs of clusters, over images of all
classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Protocol

from torch import Tensor

from sinf.compress.passes import Passes, least
from sinf.compress.reconstruct import reconstruct
from sinf.compress.select import Budget, Schedule, select
from sinf.criteria import Criterion, group_statistics
from sinf.data.images import BATCH, Inputs, LabelledImages
from sinf.graph.cost import MacCount
from sinf.graph.coupling import CoupledGroup
from sinf.graph.delta import LayerDeltas
from sinf.graph.network import Network, Part
from sinf.graph.slice import slice_graph
from sinf.graph.verify import verify
from sinf.models import BaseModel
from sinf.statistics import SiteStatistics, collect
from sinf.storage.files import hash_tensors
from sinf.storage.steps import StepStore, Tensors
from sinf.version import __version__

Progress = Callable[[str, int, int], None]
#: A rule, the groups that it chooses from, and the MACs that it counts.
Rule = tuple[Schedule | Budget, list[CoupledGroup], MacCount]


class Options(Protocol):
    """What of a build's configuration matters here."""

    @property
    def reconstruct(self) -> bool: ...
    @property
    def reconstruct_bytes(self) -> int: ...
    @property
    def common_images(self) -> int: ...
    @property
    def round_to(self) -> int: ...
    @property
    def seed(self) -> int: ...


def importances(
    criterion: Criterion, network: Network, groups: list[CoupledGroup], sites: dict[str, SiteStatistics]
) -> dict[str, Tensor]:
    """The importance of every unit of every group, by the group's name."""
    return {
        group.name: criterion.score(group_statistics(network.graph, network.coupling, group, sites)) for group in groups
    }


class Compactor:
    """Makes smaller versions of a network for all classes; statistics are collected once and serve every budget."""

    def __init__(
        self,
        base: BaseModel,
        network: Network,
        images: LabelledImages,
        criterion: Criterion,
        options: Options,
        progress: Progress,
        store: StepStore,
        passes: Passes | None = None,
    ) -> None:
        self.base, self.network, self.images = base, network, images
        self.criterion, self.options, self.progress, self.store = criterion, options, progress, store
        self.passes = passes or Passes()

    def importance(self) -> dict[str, Tensor]:
        """By group, over as many of the images as decide."""
        network = self.network
        images = self.images.sample(self.options.common_images, self.options.seed)

        def compute() -> Tensors:
            sites = collect(
                network.graph,
                network.coupling,
                batches(images, self.base, "statistics", self.progress),
                classes=self.base.spec.classes,
                needs=self.criterion.needs,
                pool=self.criterion.pool,
                seed=self.options.seed,
                at_once=self.passes.at_once,
            )
            return importances(self.criterion, network, network.groups_free(), sites)

        depends = {
            "sinf": __version__,
            "weights": hash_tensors(self.base.module.state_dict()),
            "images": images.fingerprint(),
            "criterion": self.criterion.name,
            "options": self.criterion.options(),
            "seed": self.options.seed,
        }
        return self.store.get("importance", depends, compute)

    def compact(self, rules: list[Rule], most: int | None = None) -> Part:
        """Apply each rule to its groups, check the result against the masked base model, and reconstruct from at most
        ``most`` images."""
        network = self.network
        keep = network.coupling.keep_all()
        importance = self.importance()
        for rule, groups, macs in rules:
            if groups:
                keep = select(rule, groups, importance, macs, keep, self.options.round_to)
        smaller = slice_graph(network.graph, network.coupling, keep)
        verify(network.graph, network.coupling, keep, smaller, self._inputs(self.passes.checked)[:])
        solved: LayerDeltas = {}
        if self.options.reconstruct:
            inputs = self._inputs(len(self.images) if most is None else most)
            total = len(network.coupling.mixers)
            self.progress("reconstruction", 0, total)
            solved = reconstruct(
                network.graph,
                network.coupling,
                keep,
                smaller,
                inputs,
                inputs,
                kernels=True,
                memory=least(self.options.reconstruct_bytes, self.passes.activations),
                equations=self.passes.equations,
                progress=counted(self.progress, "reconstruction", total),
            )
            self.progress("reconstruction", total, total)
        return Part(keep, solved)

    def _inputs(self, count: int) -> Inputs:
        return self.images.sample(count, self.options.seed).inputs(self.base.spec.preprocessing)


def counted(progress: Progress, step: str, total: int) -> Callable[[str], None]:
    """Reports one more of ``total`` at every call."""
    done = count(1)
    return lambda _: progress(step, next(done), total)


def batches(images: LabelledImages, base: BaseModel, step: str, progress: Progress) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and labels, with progress."""
    total = len(images)
    for number, batch in enumerate(images.batches(base.spec.preprocessing, BATCH)):
        progress(step, number * BATCH, total)
        yield batch
    progress(step, total, total)
