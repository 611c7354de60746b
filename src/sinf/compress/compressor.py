"""Compression behind one interface: what may be made smaller, within which budgets, and by which method.

A :class:`Scope` is a network or a part of one, with the images that decide. A :class:`Compressor` plans what is left of
it within a budget, from sums over the images, and solves for the weights of what it planned. :class:`Compression` is
the way from one to the other, the same for every compressor: one pass for the sums, stored where a later run may want
them, the plan, the fit, and the check of what came out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, fx

from sinf.compress.passes import Passes, smaller_limit
from sinf.compress.select import Budget, Schedule
from sinf.compress.side_by_side import Rows
from sinf.compress.started import Started
from sinf.errors import ConfigError, VerificationError
from sinf.graph.apply import apply
from sinf.graph.cost import MacCount
from sinf.graph.coupling import CoupledGroup, Coupling, Slot
from sinf.graph.network import Part
from sinf.machine.memory import Notice, say
from sinf.statistics import Statistic, Statistics, collect
from sinf.storage.steps import StepStore, Tensors

Progress = Callable[[str, int, int], None]

_NAMED = 4  # layers, where a text names some
_MANY = "of-many"  # the folder of large observations of scopes of which there are many


class Region(NamedTuple):
    """The layers of a scope that a budget counts: their MACs, and the coupled groups that may lose channels there."""

    macs: MacCount
    groups: list[CoupledGroup]


#: How much goes, and the name of the region that it counts.
Rule = tuple[Schedule | Budget, str]


@dataclass(frozen=True, eq=False)
class Scope:
    """A network or a part of one that may be made smaller, for all classes or for some.

    Attributes:
        name: of its steps in the store.
        graph: what runs now, inputs (B, ...) -> logits (B, classes), with the ``coupling`` of its channels, or of those
            of the network that it is a part of.
        regions: what budgets count, by name.
        batches: inputs (B, ...) and labels (B,) that sums are taken over, from the first on at every call.
        inputs: what weights are fitted to, at most so many images (None: all): what ``graph`` reads, and what the
            smaller one will (features of a smaller extractor).
        classes: how many labels there are.
        start: what is smaller already, or limited to classes.
        answer: the classes whose logits count in ascending order, None for all.
        share: of the inputs, those that run it.
        kernels: whether whole kernels are fitted, which takes room in a bundle, instead of mixes of channels.
        slot: the units of the inputs, where ``graph`` is a part of a network.
        origin: what its sums depend on.
        lasting: whether it is one of its kind; of one of many, such as clusters, large observations are stored within
            a bound only.
    """

    name: str
    graph: fx.GraphModule
    coupling: Coupling
    regions: Mapping[str, Region]
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    inputs: Callable[[int | None], tuple[Rows, Rows]]
    classes: int
    start: Part
    answer: list[int] | None = None
    share: float = 1.0
    seed: int = 0
    kernels: bool = True
    slot: Slot | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    lasting: bool = True

    @cached_property
    def started(self) -> Started:
        """The network that it starts from.

        Raises:
            ConfigError: it reads fewer features than the base model's.
        """
        return Started.of(self.graph, self.coupling, self.start, self.slot)

    def count(self, region: str, budget: Budget) -> MacCount:
        """The MACs of a region's layers, as they are to begin with.

        Raises:
            ConfigError: the budget is of time, and a layer was not timed.
        """
        return self.started.count(self.regions[region].macs, budget)


@dataclass(frozen=True)
class Run:
    """How compression runs: where steps are kept, how many images its passes run at once, and who is told: ``progress``
    how far it is, ``notice`` what it leaves as it is, each text once.

    ``fit`` says whether weights make up for what went, from at most ``most`` images (None: all), in ``fit_bytes`` of
    activations. ``kept_bytes`` is what large observations of many scopes may take on disk, together. ``beside`` are
    compressors that are to be given the same scopes later: where they look at the same network, one pass collects the
    sums of all, for which ``passes`` were planned."""

    store: StepStore
    passes: Passes = field(default_factory=Passes)
    progress: Progress = lambda step, done, total: None
    fit: bool = True
    fit_bytes: int | None = None
    kept_bytes: int = 4 << 30
    most: int | None = None
    notice: Notice | None = None
    beside: tuple[Compressor, ...] = ()
    _said: set[str] = field(default_factory=set, repr=False)

    @property
    def activations(self) -> int | None:
        """Bytes that activations may take while weights are fitted."""
        return smaller_limit(self.fit_bytes, self.passes.activations)

    def say(self, text: str) -> None:
        """Tell it, once."""
        if self.notice is not None and text not in self._said:
            self._said.add(text)
            self.notice(text)

    def solved(self, total: int) -> Callable[[str], None]:
        """Reports one more of ``total`` layers at every call."""
        done = count(1)
        return lambda _: self.progress("reconstruction", next(done), total)


Observed = Callable[[Scope], Tensors]


class Predictions(ABC):
    """What a compressor predicts that its plans lose, component by component, so that it may be checked and corrected.

    A component is what a plan can change without the others, such as a coupled group."""

    #: Statistics from which a component is made alone.
    needs: tuple[type[Statistic], ...] = ()

    @abstractmethod
    def components(self, scope: Scope) -> list[str]:
        """Names of those that a plan may change."""

    @abstractmethod
    def losses(self, scope: Scope, plan: Any, observed: Observed) -> dict[str, float]:
        """What is predicted for every component that a plan changes, in a unit of the compressor's own."""

    @abstractmethod
    def alone(self, scope: Scope, plan: Any, component: str, statistics: Statistics) -> Part:
        """What a plan changes in one component, nothing else, with weights that make up for it by sums over images."""

    @abstractmethod
    def corrected(self, factors: Mapping[str, float]) -> Compressor:
        """A compressor that predicts so many times as much for the components that are named, and plans by that."""


class Compressor(ABC):
    """A method: a plan for every scope within a budget that they share, and what stands for the plan."""

    name: ClassVar[str]
    #: Whether channels go by a criterion: then a criterion may be named, and ratios instead of a budget.
    by_criterion: ClassVar[bool] = False
    #: Whether what is observed takes little room.
    small: ClassVar[bool] = True
    #: Statistics that it reads, and the side to which channels are pooled for them.
    needs: tuple[type[Statistic], ...] = ()
    pool: int = 1

    @property
    def reads_labels(self) -> bool:
        """Whether it needs images with labels."""
        return False

    def describe(self) -> dict[str, str]:
        """What a bundle or card says of it."""
        return {"method": self.name}

    def identity(self) -> dict[str, Any]:
        """What its parts depend on, beside the scope, the rules and options that all compressors read."""
        return {"needs": [kind.__name__ for kind in self.needs]}

    def observation(self) -> dict[str, Any]:
        """What of that its observations depend on."""
        return self.identity()

    @property
    def predictions(self) -> Predictions | None:
        """What it predicts of its plans, where that is to be checked; None where it need not be."""
        return None

    def bytes_beside(self, graph: fx.GraphModule, coupling: Coupling) -> int:
        """Bytes that it takes beside the sums."""
        return 0

    def observed_network(self, scope: Scope) -> tuple[fx.GraphModule, Coupling, list[int] | None]:
        """The network that is run for the sums, its coupling, and the classes whose logits count: what the scope starts
        from. A compressor that masks channels of the base model's network, whatever is gone already, takes that."""
        graph, coupling = scope.started.graph, scope.started.coupling
        output = scope.coupling.output
        kept = [] if output is None else output.index(scope.start.keep).tolist()
        return graph, coupling, kept if 0 < len(kept) < scope.classes else scope.answer

    def budgets(self, rules: Sequence[Rule]) -> list[tuple[Budget, str]]:
        """The rules of a compressor that takes no ratios.

        Raises:
            ConfigError: one of them is ratios.
        """
        budgets = [(rule, region) for rule, region in rules if isinstance(rule, Budget)]
        if len(budgets) < len(rules):
            raise ConfigError(
                f"{self.name} removes no channels, and takes a budget", got="ratios", remedy="give a budget"
            )
        return budgets

    @abstractmethod
    def observe(self, scope: Scope, statistics: Statistics) -> Tensors:
        """What of the sums is kept. It serves every budget."""

    @abstractmethod
    def plan(self, rules: Sequence[Rule], scopes: Sequence[Scope], observed: Observed) -> list[Any]:
        """A plan for every scope, within each rule: of the mean cost of its region, where a scope counts by its share.
        What is observed of a scope is asked for once.

        Raises:
            ConfigError: a rule is out of reach.
        """

    def leaves(self, rules: Sequence[Rule], scope: Scope, observed: Observed) -> dict[str, list[str]]:
        """Layers of a scope that no budget makes smaller, listed by the reason."""
        return {}

    @abstractmethod
    def make(self, scope: Scope, plan: Any, observed: Observed, run: Run) -> Part:
        """What stands for a plan, with weights that are fitted where ``run`` says so."""


class Compression:
    """Scopes made smaller within budgets that they share."""

    def __init__(self, compressor: Compressor, scopes: Sequence[Scope], rules: Sequence[Rule], run: Run) -> None:
        self.compressor, self.scopes, self.rules, self.run = compressor, scopes, rules, run
        self._last: tuple[Scope, Tensors] | None = None

    @cached_property
    def plans(self) -> list[Any]:
        """The plan of every scope. Layers that no budget makes smaller are named to who is told by ``run``."""
        plans = self.compressor.plan(self.rules, self.scopes, self.observed)
        if self.run.notice is not None:
            for reason, targets in self.compressor.leaves(self.rules, self.scopes[-1], self.observed).items():
                more = f" and {len(targets) - _NAMED} more" if len(targets) > _NAMED else ""
                self.run.say(f"{self.compressor.name}: as they are, {reason}: {', '.join(targets[:_NAMED])}{more}")
        return plans

    def part(self, index: int) -> Part:
        """What is left of a scope.

        Raises:
            VerificationError: it does not run, or answers with what is no number.
        """
        scope, run = self.scopes[index], self.run
        part = self.compressor.make(scope, self.plans[index], self.observed, run)
        _check(self.compressor, scope, part, run)
        return part

    def observed(self, scope: Scope) -> Tensors:
        """What the compressor keeps of the sums over a scope's images: read, or computed and stored, where many large
        ones have room."""
        if self._last is None or self._last[0] is not scope:
            store, step = self._store(self.compressor, scope), _step(self.compressor, scope)
            self._last = scope, store.get(*step, lambda: self._observe(scope))
            if not store.has(*step):
                self.run.say(
                    f"{self.compressor.name}: statistics of clusters beyond {say(self.run.kept_bytes)} in the work "
                    "folder, or half of the disk's room, are not kept, and collected again for every budget"
                )
        return self._last[1]

    def _store(self, compressor: Compressor, scope: Scope) -> StepStore:
        """Where observations of a scope are kept."""
        store = self.run.store
        small = compressor.small or scope.lasting
        return store if small else StepStore(store.folder / _MANY, self.run.kept_bytes)

    def _observe(self, scope: Scope) -> Tensors:
        """By one pass, which serves compressors beside this one, too: what they keep is stored."""
        compressor, run = self.compressor, self.run
        graph, coupling, answer = compressor.observed_network(scope)
        others = [
            other for other in run.beside
            if _same_view(compressor, other, scope) and not self._store(other, scope).has(*_step(other, scope))
        ]  # fmt: skip
        for other in others:
            coupling = max(coupling, other.observed_network(scope)[1], key=lambda each: len(each.mixers))
        sums = collect(
            graph, coupling, scope.batches(), classes=scope.classes, answer=answer,
            needs=[kind for each in (compressor, *others) for kind in each.needs], pool=compressor.pool,
            seed=scope.seed, at_once=run.passes.at_once,
        )  # fmt: skip
        for other in others:
            self._store(other, scope).get(*_step(other, scope), partial(other.observe, scope, sums))
        return compressor.observe(scope, sums)


def _same_view(one: Compressor, other: Compressor, scope: Scope) -> bool:
    """Whether one pass serves both: of the same network and classes, with channels pooled to the same side."""
    if one is other or one.pool != other.pool:
        return False
    (graph, _, answer), (graph_of_other, _, answer_of_other) = (each.observed_network(scope) for each in (one, other))
    return graph is graph_of_other and answer == answer_of_other


def _step(compressor: Compressor, scope: Scope) -> tuple[str, dict[str, Any]]:
    """The step that stores what a compressor observed, and what it depends on."""
    depends = {**scope.origin, **compressor.observation(), "compressor": compressor.name, "seed": scope.seed}
    more = set(compressor.observed_network(scope)[1].mixers.values()) - set(scope.coupling.mixers.values())
    if more:
        depends["also"] = sorted(more)  # sites that other versions did not have
    return f"observed-{scope.name}", depends


def compress(compressor: Compressor, scopes: Sequence[Scope], rules: Sequence[Rule], run: Run) -> list[Part]:
    """What is left of every scope within the rules."""
    work = Compression(compressor, scopes, rules, run)
    return [work.part(index) for index in range(len(scopes))]


@torch.no_grad()
def _check(compressor: Compressor, scope: Scope, part: Part, run: Run) -> None:
    """A compressor of whatever kind makes a network that runs, has the answers that it should have, and finite ones."""
    inputs = scope.inputs(run.passes.checked)[1][: run.passes.checked]
    answers = apply(scope.graph, scope.coupling, part.keep, part.layers)(inputs.clone())
    output = scope.coupling.output
    expected = None if output is None else len(output.index(part.keep))
    if not bool(answers.isfinite().all()) or (expected is not None and answers.shape[1] != expected):
        got = f"shape {tuple(answers.shape)}, {int((~answers.isfinite()).sum())} that are no numbers"
        raise VerificationError(
            f"what {compressor.name} makes of {scope.name} must answer in finite numbers",
            got=got,
            remedy="report it with the model's name",
        )
