"""After the training: thresholds are set for good, by images of the training, and batch norms follow them.

Thresholds move until images cost what was asked for, and no less than they must. First all together, so that layers and
inputs keep what training gave them. But saliencies of a channel lie close together, and every threshold lies among
those of one channel: the smallest step of all takes or gives a channel in every layer at once. So between the nearest
two settings, one too dear and one not, layer by layer goes over to the dear one.

Most settings are far from the goal, and a few images tell: a try ends as soon as its mean is surely on one side. What
is settled on was measured with all images.

A channel more or less in a layer shifts what all later norms see. Their running statistics are those of other
thresholds then, which costs points of accuracy, so they are taken again where thresholds are nearly set; by new
statistics other channels stay, so thresholds are set once more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sinf.compress.recalibrate import recalibrate
from sinf.data.images import LabelledImages, Pixels, Preprocessing
from sinf.dynamic.latency import time_share
from sinf.dynamic.network import GatedNetwork, Observed
from sinf.dynamic.targets import Target
from sinf.errors import ConfigError
from sinf.training.checkpoint import epoch_batches

_IMAGES, _TIMED = 2000, 64
_FEW = 250  # of these that every try runs; their saliencies predict what another setting costs
_SURE = 5.0  # standard errors from the goal: the rest of the images would not change the side
_NORM_IMAGES, _NORM_BATCH = 4096, 128
_FARTHEST = 4.0  # that thresholds move
_WIDTH = 1 / 256  # of the way to there: settings that are nearer to each other are taken for one
_NEAR, _NEAR_ENOUGH = 1e-3, 1e-2  # of the goal: in the end, and before norms take their statistics
_MOST_TRIES = 12
_USUAL_TRIES = 3  # of a calibration, in runs of all images: what progress expects

Watch = Callable[[int], None]


def finishing_images(count: int, target: Target) -> int:
    """How many images :func:`finish` usually runs, of so many that there are."""
    settings = 2 * _USUAL_TRIES if target.channels is None else 0
    return settings * min(_IMAGES, count) + min(_NORM_IMAGES, count)


def finish(
    network: GatedNetwork,
    preprocessing: Preprocessing,
    images: LabelledImages,
    target: Target,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    at_once: int = _FEW,
) -> None:
    """Set thresholds and the statistics of batch norms, these on images that are cropped and flipped as in training.

    ``progress`` is called with (images done, images in all), whose number is an estimate; at most ``at_once`` images
    run at once.

    Raises:
        ConfigError: no threshold reaches the target.
    """
    drawn_from, sample = images.sample(_NORM_IMAGES, seed), images.select(images.sample_rows(_IMAGES, seed))
    time = None
    if target.latency is not None:
        timed = torch.cat([x for x, _ in sample.sample(_TIMED, seed).batches(preprocessing)])
        time = partial(time_share, network, timed)
    most, done = finishing_images(len(images), target), 0

    def watch(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, most - 1), most)

    pixels, batch = Pixels(drawn_from, preprocessing), min(_NORM_BATCH, len(drawn_from), max(2, at_once))

    def drawn() -> Iterator[Tensor]:
        for x, _ in epoch_batches(pixels, drawn_from.labels, preprocessing, batch, seed, 0):
            yield x
            watch(len(x))

    to_set = target.channels is None  # otherwise thresholds stay as training left them
    if to_set:
        calibrate(network, preprocessing, sample, target, time, watch, at_once, within=_NEAR_ENOUGH)
    recalibrate(network, drawn())
    if to_set:  # by new statistics it is dearer, or cheaper
        calibrate(network, preprocessing, sample, target, time, watch, at_once)
    if progress is not None:
        progress(most, most)


@torch.no_grad()
def calibrate(
    network: GatedNetwork,
    preprocessing: Preprocessing,
    images: LabelledImages,
    target: Target,
    time: Callable[[], float] | None = None,
    watch: Watch | None = None,
    at_once: int = _FEW,
    within: float = _NEAR,
) -> float:
    """Set the thresholds for good, on ``images`` whose first ones stand for all: the mean share of MACs that they cost.
    A target of MACs, or of what ``time`` measures, is met from below, ``within`` that share of it or as near as
    thresholds allow.

    Thresholds of ManiDP are all multiplied by one number; where there is none to multiply, those of a common share of
    channels are tried. ``watch`` is told how many images were run, after each batch.

    Raises:
        ConfigError: no threshold reaches the target.
    """
    network.eval()
    goal = target.macs or target.latency or 1.0
    search = _Search(network, preprocessing, images, goal, within, time, watch, at_once)
    met = search.meets_goal(whole=target.channels is not None)  # as training left them
    if target.channels is not None:
        return search.macs
    gates = search.gates
    start = [gate.threshold.clone() for gate in gates]
    if network.config.method.scales_thresholds and all(float(xi) > 0 for xi in start):

        def scale(place: float) -> None:  # more of it, more MACs
            for gate, xi in zip(gates, start, strict=True):
                gate.threshold.copy_(xi / _FARTHEST**place)

        search.close_in(scale, *((0.0, 1.0) if met else (-1.0, 0.0)))
    else:

        def share(place: float) -> None:
            for gate, saliency in zip(gates, search.saliencies, strict=True):
                gate.set_remaining(place, saliency)

        search.close_in(share, 0.0, 1.0)
    search.go_between()
    return search.settle()


class _Setting(NamedTuple):
    """Gates as they were when they cost this: ``spent`` in the unit of the target, ``macs`` a share of the base's, both
    of all images if ``whole``; ``saliencies`` are those of the first images, (n, U) by site."""

    spent: float
    macs: float
    whole: bool
    gates: list[dict[str, Tensor]]
    saliencies: list[Tensor]


class _Search:
    """Tries the gates as they are set, and remembers the settings that meet the goal and the cheapest that does not.
    What counts is the share of MACs, or what ``time`` measures. ``macs`` and ``saliencies``, the mean of every site
    (U,), are those of the last one tried.

    What another setting will cost is predicted from the saliencies of the last try first, so that few tries are
    needed: the prediction is wrong only by what masks do to the saliencies of later layers.
    """

    def __init__(
        self,
        network: GatedNetwork,
        preprocessing: Preprocessing,
        images: LabelledImages,
        goal: float,
        within: float,
        time: Callable[[], float] | None,
        watch: Watch | None,
        at_once: int,
    ) -> None:
        self._at_once, self._goal, self._time = min(_FEW, at_once), goal, time
        self._enough = within * goal
        self.network, self.preprocessing, self.images = network, preprocessing, images
        self.gates = [network.gate(index) for index in range(len(network.sites))]
        self.macs = 1.0
        self.saliencies: list[Tensor] = []
        self._watch = watch or (lambda count: None)
        self._met: list[_Setting] = []
        self._above: _Setting | None = None
        self._last: _Setting | None = None

    @property
    def _below(self) -> _Setting | None:
        """The dearest setting that meets the goal."""
        return max(self._met, key=lambda setting: setting.spent, default=None)

    def meets_goal(self, *, whole: bool = False) -> bool:
        """Whether the gates as they are set do; as few images as that takes run, unless it is the ``whole``."""
        whole, saliencies = self._measure(whole)
        spent = self.macs if self._time is None else self._time()
        self._last = setting = _Setting(spent, self.macs, whole, self._states(), saliencies)
        if spent <= self._goal:
            self._met.append(setting)
            return True
        self._above = setting if self._above is None or spent < self._above.spent else self._above
        return False

    def close_in(self, set_to: Callable[[float], None], low: float, high: float) -> None:
        """Try places between ``low``, which meets the goal, and ``high``, until they are one or the goal is near. The
        place where the goal is predicted comes first; where that leads nowhere, every third is the middle."""
        for number in range(_MOST_TRIES):
            if high - low <= _WIDTH or self._is_near():
                return
            place = (low + high) / 2
            if number % 3 < 2 and high - low > 2 * _WIDTH:
                place = min(max(self._predicted(set_to, low, high), low + _WIDTH), high - _WIDTH)
            set_to(place)
            low, high = (place, high) if self.meets_goal() else (low, place)

    def go_between(self) -> None:
        """As many layers from the input on as the goal allows go over to the setting that does not meet it."""
        cheap, dear = self._below, self._above
        if cheap is None or dear is None or self._is_near():
            return
        first, last = 0, len(self.gates)  # with so many the goal is met, and is not
        kept = [self._kept(setting) for setting in (cheap, dear)]

        def spent(layers: int) -> float:
            keep = kept[0].clone()
            for site in self.network.sites[:layers]:
                keep[:, site.units] = kept[1][:, site.units]
            share = (self._cost(keep) - self._cost(kept[0])) / max(1e-30, self._cost(kept[1]) - self._cost(kept[0]))
            return cheap.spent + share * (dear.spent - cheap.spent)

        for number in itertools.count():
            if last - first <= 1:
                return
            middle = (first + last) // 2
            if number < 3:
                low, high = first, last
                while high - low > 1:
                    half = (low + high) // 2
                    low, high = (half, high) if spent(half) <= self._goal else (low, half)
                middle = min(max(low, first + 1), last - 1)
            self._set(dear.gates[:middle] + cheap.gates[middle:])
            first, last = (middle, last) if self.meets_goal() else (first, middle)

    def settle(self) -> float:
        """Take the dearest setting that meets the goal with all images; its MACs."""
        while (setting := self._below) is not None:
            self._met.remove(setting)
            self._set(setting.gates)
            if setting.whole:
                return setting.macs
            if self._meets_as_whole():
                return self.macs
        got = f"{self._above.spent if self._above else 1:.3f}, instead of {self._goal:g}"
        raise ConfigError("thresholds must reach the target", got=got, remedy="train longer, or aim at more")

    def _meets_as_whole(self) -> bool:
        """Whether gates that met the goal with some images do with all."""
        self._measure(whole=True)
        return self._time is not None or self.macs <= self._goal

    def _is_near(self) -> bool:
        below = self._below
        return below is not None and self._goal - below.spent <= self._enough

    def _predicted(self, set_to: Callable[[float], None], low: float, high: float) -> float:
        """The place where the goal is met just so, if saliencies stay those of the last try."""
        last = self._last
        if last is None:
            return (low + high) / 2
        before = self._cost(self._kept(last))
        while high - low > _WIDTH / 2:
            middle = (low + high) / 2
            set_to(middle)
            spent = last.spent * self._cost(self._keep(last.saliencies)) / before
            low, high = (middle, high) if spent <= self._goal else (low, middle)
        return low

    def _kept(self, setting: _Setting) -> Tensor:
        """``(n, units)`` what its first images keep."""
        before = self._states()
        self._set(setting.gates)
        keep = self._keep(setting.saliencies)
        self._set(before)
        return keep

    def _keep(self, saliencies: list[Tensor]) -> Tensor:
        return self.network.keep(Observed(saliencies=saliencies, masks=saliencies))

    def _cost(self, keep: Tensor) -> float:
        return float(self.network.macs_of(keep).mean())

    def _states(self) -> list[dict[str, Tensor]]:
        return [{key: value.clone() for key, value in gate.state_dict().items()} for gate in self.gates]

    def _set(self, states: list[dict[str, Tensor]]) -> None:
        for gate, state in zip(self.gates, states, strict=True):
            gate.load_state_dict(state)

    def _measure(self, whole: bool) -> tuple[bool, list[Tensor]]:
        """Run images, all of them if it is the ``whole`` or takes as many: whether all ran, and the saliencies of the
        first ones."""
        macs, first, count = torch.zeros(0, dtype=torch.float64), list[list[Tensor]](), 0
        sums: list[Tensor] = []
        for x, _ in self.images.batches(self.preprocessing, self._at_once):
            _, observed = self.network.observe(x)
            spent = self.network.macs_of(self.network.keep(observed)) / self.network.base_macs
            macs, count = torch.cat([macs, spent]), count + len(x)
            if count - len(x) < _FEW:
                first.append(observed.saliencies)
            parts = [s.double().sum(0) for s in observed.saliencies]
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
            self._watch(len(x))
            if not whole and count >= _FEW and self._is_decided(macs):
                break
        self.macs = float(macs.mean())
        self.saliencies = [(s / count).float() for s in sums]
        return count == len(self.images), [torch.cat(site) for site in zip(*first, strict=True)]

    def _is_decided(self, macs: Tensor) -> bool:
        """Whether the mean of all images is surely on the side of those of some images (n,)."""
        if self._time is not None:
            return True
        return abs(float(macs.mean()) - self._goal) > _SURE * float(macs.std()) / len(macs) ** 0.5
