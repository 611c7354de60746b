"""After the training: thresholds are set for good, by images of the training, and batch norms follow them.

Thresholds move until images cost what was asked for, and no less than they must. First all together, so that layers and
inputs keep what training gave them. But saliencies of a channel lie close together, and every threshold lies among
those of one channel: the smallest step of all takes or gives a channel in every layer at once. So between the nearest
two settings, one too dear and one not, layer by layer goes over to the dear one.

A channel more or less in a layer shifts what all later norms see. Their running statistics are those of other
thresholds then, which costs points of accuracy, so they are taken again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sinf.checkpoint import epoch_batches
from sinf.data import LabelledImages, Preprocessing
from sinf.dynamic.latency import time_share
from sinf.dynamic.network import GatedNetwork
from sinf.dynamic.targets import Target, rate_for
from sinf.errors import ConfigError
from sinf.subgraph.recalibrate import recalibrate

_IMAGES, _TIMED, _TRIES = 2000, 64, 8
_NORM_IMAGES, _NORM_BATCH = 4096, 128
_FARTHEST = 4.0  # that thresholds move


def finish(
    network: GatedNetwork,
    preprocessing: Preprocessing,
    images: LabelledImages,
    target: Target,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Set thresholds and the statistics of batch norms, these on images that are cropped and flipped as in training.

    ``progress`` is called with (settings tried, settings that may be tried).

    Raises:
        ConfigError: no threshold reaches the target.
    """
    most = 2 * (1 + _TRIES + len(network.sites).bit_length()) + 1
    count = itertools.count(1)

    def tried() -> None:
        if progress is not None:
            progress(min(next(count), most - 1), most)

    calibrate(network, preprocessing, images, target, seed, tried)
    sample = images.sample(_NORM_IMAGES, seed)
    pixels, batch = sample.pixels(preprocessing), min(_NORM_BATCH, len(sample))
    drawn = epoch_batches(pixels, sample.labels, preprocessing, batch, seed, 0)
    if recalibrate(network, (x for x, _ in drawn)) and target.macs is not None:
        calibrate(network, preprocessing, images, target, seed, tried)  # what new statistics made dearer
    if progress is not None:
        progress(most, most)


@torch.no_grad()
def calibrate(
    network: GatedNetwork,
    preprocessing: Preprocessing,
    images: LabelledImages,
    target: Target,
    seed: int = 0,
    tried: Callable[[], None] | None = None,
) -> float:
    """Set the thresholds for good, on about 2000 of ``images``: the mean share of MACs that they cost. A target of MACs
    or of time is met from below, as near as thresholds allow.

    Thresholds of ManiDP are all multiplied by one number; where there is none to multiply, those of a common share of
    channels are tried. ``tried`` is called after every setting.

    Raises:
        ConfigError: no threshold reaches the target.
    """
    network.eval()
    search = _Search(network, preprocessing, images.sample(_IMAGES, seed), target, seed, tried)
    met = search.meets_goal()  # as training left them
    if target.channels is not None:
        return search.macs
    gates = search.gates
    start = [gate.threshold.clone() for gate in gates]
    if network.config.kind == "manidp" and all(float(xi) > 0 for xi in start):
        low, high = (1.0, _FARTHEST) if met else (1 / _FARTHEST, 1.0)  # more of it, more MACs
        for _ in range(_TRIES):
            amount = (low * high) ** 0.5
            for gate, xi in zip(gates, start, strict=True):
                gate.threshold.copy_(xi / amount)
            low, high = (amount, high) if search.meets_goal() else (low, amount)
    else:
        low, high = 0.0, 1.0
        amount = 0.5 if target.macs is None else rate_for(network, target.macs)
        for _ in range(_TRIES):
            for gate, saliency in zip(gates, search.saliencies, strict=True):
                gate.set_remaining(amount, saliency)
            low, high = (amount, high) if search.meets_goal() else (low, amount)
            amount = (low + high) / 2
    search.go_between()
    return search.settle()


class _Setting(NamedTuple):
    """Gates as they were when they cost this: ``spent`` in the unit of the target, ``macs`` a share of the base's."""

    spent: float
    macs: float
    gates: list[dict[str, Tensor]]


class _Search:
    """Tries the gates as they are set, and remembers the dearest setting that meets the goal and the cheapest that does
    not. ``macs`` and ``saliencies``, the mean of every site (U,), are those of the last one tried."""

    def __init__(
        self,
        network: GatedNetwork,
        preprocessing: Preprocessing,
        images: LabelledImages,
        target: Target,
        seed: int,
        tried: Callable[[], None] | None,
    ) -> None:
        self.network, self.preprocessing, self.images, self.target = network, preprocessing, images, target
        self.gates = [network.gate(index) for index in range(len(network.sites))]
        self.macs = 1.0
        self.saliencies: list[Tensor] = []
        self._tried = tried or (lambda: None)
        self._goal = target.macs or target.latency or 1.0
        self._below: _Setting | None = None
        self._above: _Setting | None = None
        self._timed: Tensor | None = None
        if target.latency is not None:
            self._timed = torch.cat([x for x, _ in images.sample(_TIMED, seed).batches(preprocessing)])

    def meets_goal(self) -> bool:
        self._measure()
        self._tried()
        spent = self.macs if self._timed is None else time_share(self.network, self._timed)
        states = [{key: value.clone() for key, value in gate.state_dict().items()} for gate in self.gates]
        found = _Setting(spent, self.macs, states)
        if spent <= self._goal:
            self._below = found if self._below is None or spent > self._below.spent else self._below
            return True
        self._above = found if self._above is None or spent < self._above.spent else self._above
        return False

    def go_between(self) -> None:
        """As many layers from the input on as the goal allows go over to the setting that does not meet it."""
        if self._below is None or self._above is None:
            return
        cheap, dear = self._below.gates, self._above.gates
        first, last = 0, len(self.gates)  # with so many the goal is met, and is not
        while last - first > 1:
            middle = (first + last) // 2
            self._set(dear[:middle] + cheap[middle:])
            first, last = (middle, last) if self.meets_goal() else (first, middle)

    def settle(self) -> float:
        """Take the dearest setting that meets the goal; its MACs."""
        if self._below is None:
            got = f"{self._above.spent if self._above else 1:.3f}, instead of {self.target}"
            raise ConfigError("thresholds must reach the target", got=got, remedy="train longer, or aim at more")
        self._set(self._below.gates)
        return self._below.macs

    def _set(self, states: list[dict[str, Tensor]]) -> None:
        for gate, state in zip(self.gates, states, strict=True):
            gate.load_state_dict(state)

    def _measure(self) -> None:
        macs = 0.0
        sums: list[Tensor] = []
        for x, _ in self.images.batches(self.preprocessing, 250):
            _, seen = self.network.observe(x)
            macs += float(self.network.macs_of(self.network.keep(seen)).sum())
            parts = [s.double().sum(0) for s in seen.saliencies]
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        self.macs = macs / len(self.images) / self.network.base_macs
        self.saliencies = [(s / len(self.images)).float() for s in sums]
