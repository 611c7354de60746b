"""A whole network as what compressors take, for ``prune`` and for what serves all classes of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from sinf.compress.compressor import Compressor, Progress, Region, Rule, Run, Scope, compress
from sinf.compress.passes import Passes, plan_passes
from sinf.compress.select import Budget, Schedule
from sinf.compress.side_by_side import Rows
from sinf.data.images import BATCH, LabelledImages
from sinf.errors import ConfigError
from sinf.graph.network import Network, Part, PartedNetwork
from sinf.machine.memory import Memory, Notice
from sinf.models import BaseModel
from sinf.storage.files import hash_tensors
from sinf.storage.steps import StepStore, Tensors
from sinf.version import __version__

WHOLE, EXTRACTOR, TAIL = "the network", "the extractor", "the tail"


def whole_scope(
    base: BaseModel,
    network: Network,
    images: LabelledImages,
    scored: int,
    seed: int,
    progress: Callable[[], Progress],
) -> Scope:
    """The network for all classes: ``scored`` of the images say what goes, and all fit the weights. ``progress``
    gives who is told, at every pass."""
    some = images.sample(scored, seed)

    def inputs(most: int | None) -> tuple[Rows, Rows]:
        chosen = images if most is None else images.sample(most, seed)
        rows = chosen.inputs(base.spec.preprocessing)
        return rows, rows

    regions = {WHOLE: Region(network.macs, network.groups_free())}
    if isinstance(network, PartedNetwork):
        regions[EXTRACTOR] = Region(network.extractor_macs, network.groups_before())
        regions[TAIL] = Region(network.tail_macs, network.groups_after())
    return Scope(
        name="network",
        graph=network.graph,
        coupling=network.coupling,
        regions=regions,
        batches=lambda: batches(some, base, "statistics", progress()),
        inputs=inputs,
        classes=base.spec.classes,
        start=Part(network.coupling.keep_all()),
        seed=seed,
        origin={
            "sinf": __version__,
            "weights": hash_tensors(base.module.state_dict()),
            "images": some.fingerprint(),
        },
    )


def batches(images: LabelledImages, base: BaseModel, step: str, progress: Progress) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and labels, with progress."""
    total = len(images)
    for number, batch in enumerate(images.batches(base.spec.preprocessing, BATCH)):
        progress(step, number * BATCH, total)
        yield batch
    progress(step, total, total)


@dataclass
class Source:
    """What every compressor of a network starts from: ``progress`` may be replaced between two networks; ``memory`` is
    what they may take, beside ``fixed`` bytes, ``fit_bytes`` what activations may while weights are fitted; ``notice``
    is told what a compressor leaves as it is."""

    base: BaseModel
    network: Network
    images: LabelledImages
    seed: int
    fit_bytes: int
    store: StepStore
    progress: Progress
    memory: Memory = field(default_factory=Memory)
    fixed: int = 0
    notice: Notice = lambda text: None


class Method:
    """Networks of one base model by one compressor; sums are collected when the first is made, and serve all. Those
    for compressors ``beside`` it are collected by the same pass where memory allows it."""

    def __init__(self, source: Source, compressor: Compressor, beside: Sequence[Compressor] = ()) -> None:
        self.source, self.compressor, self.name = source, compressor, compressor.name
        self.scope = whole_scope(
            source.base, source.network, source.images, len(source.images), source.seed, lambda: source.progress
        )
        others = [each for each in beside if each is not compressor]
        passes = self._passes((compressor,))
        if others:
            planned = list(source.memory.steps)
            try:
                passes = replace(passes, at_once=self._passes((compressor, *others)).at_once)
            except ConfigError:  # together they do not fit: one after the other
                source.memory.steps[:], others = planned, []
        self.run = Run(
            source.store, passes, fit_bytes=source.fit_bytes, notice=lambda text: source.notice(text),
            beside=tuple(others),
        )  # fmt: skip

    def _passes(self, compressors: Sequence[Compressor]) -> Passes:
        source, network = self.source, self.source.network
        return plan_passes(
            source.memory, network.graph, network.coupling, [kind for each in compressors for kind in each.needs],
            classes=source.base.spec.classes, pool=self.compressor.pool, fixed=source.fixed,
            part=f" of {' and '.join(each.name for each in compressors)}",
            beside=sum(each.bytes_beside(network.graph, network.coupling) for each in compressors),
        )  # fmt: skip

    def tensors(self, rule: Schedule | Budget, *, reconstruct: bool, most: int | None = None) -> Tensors:
        """All in which the smaller network differs from the base model. ``most`` limits the images that weights are
        fitted to.

        Raises:
            ConfigError: the rule is out of reach.
        """
        part = self.part(rule, most, reconstruct=reconstruct)
        return part.to_tensors(self.source.network.coupling, "", torch.float32)

    def part(
        self,
        rule: Schedule | Budget,
        most: int | None,
        compressor: Compressor | None = None,
        *,
        reconstruct: bool = True,
    ) -> Part:
        """The same as a part, by another compressor where there is one."""
        run = replace(self.run, progress=self.source.progress, fit=reconstruct, most=most)
        rules: list[Rule] = [(rule, WHOLE)]
        return compress(compressor or self.compressor, [self.scope], rules, run)[0]

    def graph(self, tensors: Tensors) -> fx.GraphModule:
        """The network of these tensors."""
        network = self.source.network
        return network.whole(Part.from_tensors(tensors, network.coupling, ""))
