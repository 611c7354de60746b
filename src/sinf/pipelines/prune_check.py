"""What plans are predicted to lose is checked component by component, on images that decided and fitted nothing.

A criterion predicts what goes with the channels of a group. In a few groups of a network it is wrong by several times,
and a budget is then spent there that costs less elsewhere. So what a plan changes in a component is changed alone:
layers that read it make up for it by sums over scoring images, nothing is fitted anew, and held-out images tell how far
the answers move (the Kullback-Leibler divergence from the base model's). What loses far more, or less, than its
share of what was predicted is corrected, and the budget is spent again; of both networks the one that stays nearer
to the base model's answers counts. Compressors say themselves whether they predict what is to be checked
(:class:`sinf.compress.compressor.Predictions`). Ranks are not checked: planned again by what each loses alone, they
lost as much. The held-out images that check are not those that report the expected loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sinf.compress.compressor import Compression, Compressor, Predictions
from sinf.compress.select import Budget
from sinf.data.images import LabelledImages
from sinf.data.preprocessing import Preprocessing
from sinf.errors import ConfigError
from sinf.graph.network import Network, Part
from sinf.graph.prepare import prepare
from sinf.machine.memory import Notice
from sinf.measure.estimate import KERNEL_FIT
from sinf.pipelines.prune_config import Amount, PruneConfig
from sinf.pipelines.prune_search import MIDDLE
from sinf.pipelines.whole import WHOLE, Method
from sinf.statistics import Statistics, collect
from sinf.storage.steps import Tensors

IMAGES, SUMS, FITTED = 128, 800, 256  # that are answered, that sums are over, that weights are fitted to, at most
SHARE = 3  # one of so many held-out images checks, at most
COMPONENTS = 16  # those of which most is predicted
_FAR = 2.0  # times what was predicted: nearer than that is as predicted
_MOST = 4.0  # times by which a prediction is corrected at most
_SLIGHT = 0.1  # of a mean component: what loses less need not be predicted well


@dataclass
class Check:
    """Of one network: ``images`` are held out, ``progress`` is told."""

    network: Network
    images: LabelledImages
    feed: Preprocessing
    progress: Callable[[int, int], None]

    @cached_property
    def base(self) -> Tensor:
        """``(N, classes)`` log-probabilities of the base model."""
        return self._answers(Part(self.network.coupling.keep_all()))

    def factors(
        self, method: Method, predictions: Predictions, budget: Budget, some: LabelledImages
    ) -> dict[str, float]:
        """By component what its predicted loss is to be multiplied by, where it is far from what ``some`` images for
        the sums and the held-out ones say, in the plan of a budget.

        Raises:
            ConfigError: the budget is out of reach.
        """
        scope, work = method.scope, Compression(method.compressor, [method.scope], [(budget, WHOLE)], method.run)
        plan = work.plans[0]
        predicted = predictions.losses(scope, plan, work.observed)
        most = sorted(predicted, key=lambda component: -predicted[component])[:COMPONENTS]
        if len(most) < 2:
            return {}
        sums = self._sums(method, predictions, some)
        lost = {}
        for number, component in enumerate(most):
            self.progress(number, len(most))
            lost[component] = self.divergence(predictions.alone(scope, plan, component, sums))
        self.progress(len(most), len(most))
        return far(lost, {component: predicted[component] for component in most})

    @torch.no_grad()
    def divergence(self, part: Part) -> float:
        """Mean, over the held-out images, in nats."""
        answers = self._answers(part)
        return float((self.base.exp() * (self.base - answers)).sum(1).mean())

    @torch.no_grad()
    def _answers(self, part: Part) -> Tensor:
        network = prepare(self.network.whole(part))
        return torch.cat([network(x).log_softmax(1) for x, _ in self.images.batches(self.feed)])

    def _sums(self, method: Method, predictions: Predictions, some: LabelledImages) -> Statistics:
        return collect(
            self.network.graph, self.network.coupling, some.batches(self.feed), classes=some.classes,
            needs=predictions.needs, at_once=method.run.passes.at_once,
        )  # fmt: skip


def far(lost: Mapping[str, float], predicted: Mapping[str, float]) -> dict[str, float]:
    """Of components that lose far more, or less, than their share of what was predicted, how many times; none where
    none is far."""
    shares = []
    for each in (lost, predicted):
        whole = sum(max(0.0, value) for value in each.values()) or 1.0
        shares.append({name: max(0.0, value) / whole + _SLIGHT / len(each) for name, value in each.items()})
    times = {name: min(_MOST, max(1 / _MOST, shares[0][name] / shares[1][name])) for name in lost}
    return times if any(not 1 / _FAR <= each <= _FAR for each in times.values()) else {}


def correct(
    method: Method, predictions: Predictions, budget: Budget, check: Check, some: LabelledImages
) -> dict[str, float]:
    """Corrections of what the compressor of a method predicts, where these make a better network of the budget by
    weights that are fitted to few images: factors by component, none where it stays as it was.

    Raises:
        ConfigError: the budget is out of reach.
    """
    factors = check.factors(method, predictions, budget, some)
    if not factors:
        return {}
    both = (method.compressor, predictions.corrected(factors))
    losses = [check.divergence(method.part(budget, FITTED, each)) for each in both]
    return factors if losses[1] < losses[0] else {}


def part_to_check(
    held_out: LabelledImages | None, config: PruneConfig, compressors: Iterable[Compressor]
) -> tuple[LabelledImages | None, LabelledImages | None]:
    """Held-out images that check, and those that report. All report where there are fewer than three, and where no
    compressor predicts what is to be checked, within a budget."""
    checked = any(each.predictions is not None for each in compressors) and config.amount.ratio is None
    if held_out is None or not checked:
        return None, held_out
    count = min(IMAGES, len(held_out) // SHARE)
    if not count:
        return None, held_out
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(config.seed))
    return held_out.select(order[:count].sort().values), held_out.select(order[count:].sort().values)


def check_all(
    methods: Iterable[Method],
    amount: Amount,
    check: Check,
    depends: Callable[[Method, Budget], dict[str, Any]],
    notice: Notice,
) -> None:
    """Have methods whose predictions are to be checked go by corrected ones within a budget, and say where they do.
    The corrections are stored. Without a budget they are those of a network of the middle size."""
    if amount.ratio is not None:
        return
    budget = Budget(MIDDLE if amount.kept is None else amount.kept, amount.price)
    for method in methods:
        predictions = method.compressor.predictions
        if predictions is None:
            continue
        step = depends(method, budget) | {"held out": check.images.fingerprint()}
        with suppress(ConfigError):  # out of reach, as its network will say
            factors = _stored(method, predictions, budget, check, step)
            if factors:
                method.compressor = predictions.corrected(factors)
                notice(describe(factors, len(check.images)))


def expected_checks(methods: Iterable[Method], checking: LabelledImages | None) -> float:
    """How many forward passes of an image that takes at most."""
    if checking is None:
        return 0
    total = 0.0
    for method in methods:
        if (predictions := method.compressor.predictions) is not None:
            images = len(method.source.images)
            total += min(COMPONENTS, len(predictions.components(method.scope))) * len(checking)
            total += min(SUMS, images) + 2 * KERNEL_FIT * min(FITTED, images)
    return total


def _stored(
    method: Method, predictions: Predictions, budget: Budget, check: Check, depends: dict[str, Any]
) -> dict[str, float]:
    """The corrections of :func:`correct`, computed or read."""
    components, source = predictions.components(method.scope), method.source

    def compute() -> Tensors:
        factors = correct(method, predictions, budget, check, source.images.sample(SUMS, source.seed))
        return {"factors": torch.tensor([factors.get(component, 1.0) for component in components], dtype=torch.float64)}

    stored = method.run.store.get("check", depends, compute)["factors"].tolist()
    return {component: times for component, times in zip(components, stored, strict=True) if times != 1.0}


def describe(factors: Mapping[str, float], images: int) -> str:
    """E.g. ``checked on 128 held-out images: conv5 loses 3.3 times, conv7 0.2 times what was predicted``."""
    told = sorted((each for each in factors.items() if not 1 / _FAR <= each[1] <= _FAR), key=lambda each: -each[1])
    words = ", ".join(f"{name} loses {times:.1f} times" for name, times in told)
    return f"checked on {images} held-out images: {words} what was predicted, and keeps what that is worth"
