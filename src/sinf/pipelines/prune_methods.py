"""The methods by which a network is made smaller for all classes: channels removed, or layers written in low rank.

A method looks at the images once and makes networks of any budget from that. Another method is another class here, and
an entry of ``METHODS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import fx

from sinf.compress.channels import Compactor, batches, counted
from sinf.compress.low_rank import NEEDS, LowRank
from sinf.compress.passes import Passes, least, plan_passes
from sinf.compress.select import Budget, Schedule
from sinf.criteria import make_criterion
from sinf.data.images import Inputs, LabelledImages
from sinf.errors import ConfigError
from sinf.graph.network import Network, Part
from sinf.machine.memory import Memory
from sinf.models import BaseModel
from sinf.storage.files import hash_tensors
from sinf.storage.steps import StepStore, Tensors
from sinf.version import __version__

Progress = Callable[[str, int, int], None]


class Options(Protocol):
    """Options that methods read."""

    @property
    def criterion_name(self) -> str: ...
    @property
    def images(self) -> int: ...
    @property
    def round_to(self) -> int: ...
    @property
    def reconstruct_bytes(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass
class Source:
    """What every method starts from: the base model, taken apart, and the images that decide. ``progress`` may be
    replaced between two networks; ``memory`` is what methods may take, beside ``fixed`` bytes."""

    base: BaseModel
    network: Network
    images: LabelledImages
    options: Options
    store: StepStore
    progress: Progress
    memory: Memory = field(default_factory=Memory)
    fixed: int = 0

    def inputs(self, most: int | None) -> Inputs:
        """Normalised images, at most so many."""
        images = self.images if most is None else self.images.sample(most, self.options.seed)
        return images.inputs(self.base.spec.preprocessing)


class Method(ABC):
    """Makes networks of one base model; statistics are collected when the first is made."""

    name: ClassVar[str]

    def __init__(self, source: Source) -> None:
        self.source = source
        self.passes = self.plan()

    @abstractmethod
    def plan(self) -> Passes:
        """How many images its passes run at once.

        Raises:
            ConfigError: the memory is too small.
        """

    @abstractmethod
    def tensors(self, rule: Schedule | Budget, *, reconstruct: bool, most: int | None = None) -> Tensors:
        """All in which the smaller network differs from the base model. ``most`` limits the images that weights are
        fitted to.

        Raises:
            ConfigError: the rule is out of reach.
        """

    def graph(self, tensors: Tensors) -> fx.GraphModule:
        """The network of these tensors."""
        network = self.source.network
        return network.whole(Part.from_tensors(tensors, network.coupling, ""))


class Channels(Method):
    """Channels are removed; see :mod:`sinf.compress.channels`."""

    name = "channels"

    def plan(self) -> Passes:
        source = self.source
        criterion, network = make_criterion(source.options.criterion_name), source.network
        return plan_passes(
            source.memory, network.graph, network.coupling, criterion.needs,
            classes=source.base.spec.classes, pool=criterion.pool, fixed=source.fixed,
        )  # fmt: skip

    def tensors(self, rule: Schedule | Budget, *, reconstruct: bool, most: int | None = None) -> Tensors:
        source, options = self.source, self.source.options
        compactor = Compactor(
            source.base,
            source.network,
            source.images,
            make_criterion(options.criterion_name),
            _Options(reconstruct, options.reconstruct_bytes, options.images, options.round_to, options.seed),
            source.progress,
            source.store,
            self.passes,
        )
        part = compactor.compact([(rule, source.network.groups_free(), source.network.macs)], most)
        return part.to_tensors(source.network.coupling, "", torch.float32)


class Ranks(Method):
    """Layers become two, with fewer channels between them; see :mod:`sinf.compress.low_rank`."""

    name = "ranks"

    def plan(self) -> Passes:
        source, network = self.source, self.source.network
        return plan_passes(
            source.memory, network.graph, network.coupling, NEEDS,
            classes=source.base.spec.classes, fixed=source.fixed, ranks=True, part=" of ranks",
        )  # fmt: skip

    def tensors(self, rule: Schedule | Budget, *, reconstruct: bool, most: int | None = None) -> Tensors:
        source, options, network = self.source, self.source.options, self.source.network
        if isinstance(rule, Schedule):
            raise ConfigError("low rank removes no channels, and takes a budget", got="a ratio", remedy="give a budget")
        ranks = self._low_rank.ranks([(rule, network.macs)], options.round_to)
        layers = self._low_rank.layers(
            ranks,
            source.inputs(most) if reconstruct else None,
            memory=least(options.reconstruct_bytes, self.passes.activations),
            equations=self.passes.equations,
            progress=counted(source.progress, "reconstruction", len(network.coupling.mixers)),
        )
        return Part(network.coupling.keep_all(), layers).to_tensors(network.coupling, "", torch.float32)

    @cached_property
    def _low_rank(self) -> LowRank:
        """Its statistics are kept with the other steps: they serve every budget."""
        source, network = self.source, self.source.network
        depends = {
            "sinf": __version__,
            "weights": hash_tensors(source.base.module.state_dict()),
            "images": source.images.fingerprint(),
            "needs": NEEDS,
            "seed": source.options.seed,
        }
        return LowRank(
            network.graph,
            network.coupling,
            lambda: batches(source.images, source.base, "statistics", source.progress),
            source.base.spec.classes,
            source.options.seed,
            lambda compute: source.store.get("statistics", depends, compute),
            self.passes.at_once,
        )


#: By name, in the order in which they are tried.
METHODS: dict[str, type[Method]] = {method.name: method for method in (Channels, Ranks)}


@dataclass(frozen=True)
class _Options:
    """Options of a compactor."""

    reconstruct: bool
    reconstruct_bytes: int
    common_images: int
    round_to: int
    seed: int
