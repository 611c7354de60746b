"""A whole network as what compressors take, for ``prune`` and for what serves all classes of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from sinf.compress.compressor import Compressor, Progress, Region, Rule, Run, Scope, compress
from sinf.compress.passes import plan_passes
from sinf.compress.select import Budget, Schedule
from sinf.compress.side_by_side import Rows
from sinf.data.images import BATCH, LabelledImages
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
    """Networks of one base model by one compressor; sums are collected when the first is made, and serve all."""

    def __init__(self, source: Source, compressor: Compressor) -> None:
        self.source, self.compressor, self.name = source, compressor, compressor.name
        base, network = source.base, source.network
        passes = plan_passes(
            source.memory, network.graph, network.coupling, compressor.needs, classes=base.spec.classes,
            pool=compressor.pool, fixed=source.fixed, part=f" of {self.name}",
            beside=compressor.bytes_beside(network.graph, network.coupling),
        )  # fmt: skip
        self.scope = whole_scope(base, network, source.images, len(source.images), source.seed, lambda: source.progress)
        self.run = Run(source.store, passes, fit_bytes=source.fit_bytes, notice=lambda text: source.notice(text))

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
