"""Low rank of a network or a part of one: it is looked at once, and serves every budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from torch import Tensor, fx

from sinf.compress.low_rank.choose import Rank, choose_ranks
from sinf.compress.low_rank.metric import Metric, metrics
from sinf.compress.low_rank.solve import factor, reconstruct_ranks
from sinf.compress.select import Budget
from sinf.compress.side_by_side import Rows
from sinf.graph.cost import MacCount
from sinf.graph.coupling import Coupling
from sinf.graph.delta import LayerDeltas
from sinf.statistics import Statistics, collect, weights_of
from sinf.statistics.stored import from_tensors, to_tensors

#: Sums over images that ranks are chosen and solved by.
NEEDS = ("made_sum", "made_gram", "made_count", "fisher", "strips")


class LowRank:
    """Layers of ``graph`` (inputs -> logits) written as two.

    ``batches`` gives the inputs (B, ...) with their labels (B,), from the first on at every call; ``classes`` is how
    many labels there are. They are run once, when statistics are first needed; ``remember`` may give what an earlier
    run of its argument returned. ``at_once`` of a batch's images run at once.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        coupling: Coupling,
        batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
        classes: int,
        seed: int = 0,
        remember: Callable[[Callable[[], dict[str, Tensor]]], dict[str, Tensor]] | None = None,
        at_once: int | None = None,
    ) -> None:
        self._at_once = at_once
        self.graph, self.coupling, self._batches = graph, coupling, batches
        self._classes, self._seed, self._remember = classes, seed, remember

    @cached_property
    def statistics(self) -> Statistics:
        """Sums over the images, by layer."""
        if self._remember is None:
            return self._collect()
        stored = self._remember(lambda: to_tensors(self._collect()))
        return from_tensors(stored, weights_of(self.graph, self.coupling))

    def _collect(self) -> Statistics:
        return collect(
            self.graph, self.coupling, self._batches(), classes=self._classes, needs=NEEDS, seed=self._seed,
            at_once=self._at_once,
        )  # fmt: skip

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """What a rank of every layer loses."""
        return metrics(self.statistics)

    def ranks(self, rules: Sequence[tuple[Budget, MacCount]], round_to: int = 8) -> dict[str, Rank]:
        """Ranks by target, within each budget of the MACs that are counted beside it.

        Raises:
            ConfigError: no ranks are within a budget.
        """
        found: dict[str, Rank] = {}
        for budget, count in rules:
            found |= choose_ranks(budget, count, self.metrics, round_to)
        return found

    def layers(
        self,
        ranks: dict[str, Rank],
        inputs: Rows | None = None,
        smaller_inputs: Rows | None = None,
        *,
        memory: int | None = None,
        equations: int | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> LayerDeltas:
        """What stands in the place of layers. With ``inputs`` (N, ...), layers are solved one after the other, from
        what the network so far makes of ``smaller_inputs`` (features of a smaller extractor; the inputs themselves
        without), so that its answers come near to those of ``inputs``; without, each on its own."""
        start = factor(self.graph, ranks, self.statistics, self.metrics)
        if inputs is None:
            return start
        return reconstruct_ranks(
            self.graph, self.coupling, start, ranks, self.metrics, inputs, smaller_inputs,
            memory=memory, equations=equations, progress=progress,
        )  # fmt: skip
