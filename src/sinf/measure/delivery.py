"""What must hold before a network is delivered: the loss against the base model on images that fitted nothing, and the
time beside the base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinf.data.images import LabelledImages
from sinf.data.preprocessing import Preprocessing
from sinf.errors import ConfigError, DoesNotPayError
from sinf.measure.limits import Limits as Limits
from sinf.measure.timing import Latency, interleaved, make_parts

Network = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]

MOST_FALLBACK = 0.95  # of the calibration images; where more fall back, subgraphs are for nothing
LEAST_SAVED = 0.01  # of the time: a machine with other work makes networks differ by less that are the same
_DRAWS = 10_000  # of the bootstrap
_TIMED = 256  # images that batches are made of


@dataclass(frozen=True)
class ExpectedLoss:
    """Loss against the base model over held-out images.

    Attributes:
        points: loss of top-1 accuracy in percentage points, and its 95 % interval ``low`` .. ``high`` (paired
            bootstrap over the images). Without labels the base model's answers stand for them.
        disagreement: share of the images whose answer differs from the base model's.
        base_top1: fraction of 1; None without labels.
        images: how many.
    """

    points: float
    low: float
    high: float
    disagreement: float
    base_top1: float | None
    images: int

    @staticmethod
    def of(base: Tensor, answers: Tensor, labels: Tensor | None = None) -> ExpectedLoss:
        """From the classes that both networks answer, (N,), and the labels (N,)."""
        if not len(base):
            raise ConfigError("an expected loss needs held-out images", got="none", remedy="give more images")
        base_right = torch.ones_like(base, dtype=torch.bool) if labels is None else base == labels
        right = answers == (base if labels is None else labels)
        lost, won, count = int((base_right & ~right).sum()), int((~base_right & right).sum()), len(base)
        low, high = _interval(lost, won, count)
        return ExpectedLoss(
            points=100 * (lost - won) / count,
            low=low,
            high=high,
            disagreement=float((base != answers).double().mean()),
            base_top1=None if labels is None else float(base_right.double().mean()),
            images=count,
        )

    @property
    def order(self) -> tuple[float, float]:
        """What loses less comes first."""
        return self.points, self.disagreement

    def __str__(self) -> str:
        kind = "" if self.base_top1 is not None else " of agreement with the base model"
        return f"{self.points:.1f} points{kind} ({self.low:.1f} .. {self.high:.1f}) on {self.images} held-out images"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _interval(lost: int, won: int, count: int) -> tuple[float, float]:
    """What 95 % of the bootstrapped losses lie between, in points. Half an image more is counted as lost, and half as
    won: without that, few images of which none changed would make the loss look certain."""
    # Not scipy's bootstrap, which draws images: half an image cannot be drawn. Drawing N images, each lost, won or
    # neither, is drawing these three counts.
    chances = np.array([lost + 0.5, won + 0.5, count - lost - won]) / (count + 1)
    draws = np.random.default_rng(0).multinomial(count, chances, _DRAWS)
    losses = 100 * (draws[:, 0] - draws[:, 1]) / count
    return float(np.quantile(losses, 0.025)), float(np.quantile(losses, 0.975))


@torch.no_grad()
def answers_of(
    network: Network, images: LabelledImages, preprocessing: Preprocessing, progress: Progress | None = None
) -> Tensor:
    """``(N,)`` the classes that a network answers."""
    return answers_with_margins(network, images, preprocessing, progress)[0]


def answers_with_margins(
    network: Network, images: LabelledImages, preprocessing: Preprocessing, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """``(N,), (N,)`` the classes that a network answers, and by how much the logit of each is above the next."""
    answers: list[Tensor] = []
    margins: list[Tensor] = []
    for x, _ in images.batches(preprocessing):
        logits = network(x)
        best = logits.detach().float().topk(min(2, logits.shape[1]), 1).values
        answers.append(logits.argmax(1))
        margins.append(best[:, 0] - best[:, -1])
        if progress is not None:
            progress(sum(map(len, answers)), len(images))
    return torch.cat(answers), torch.cat(margins)


def hold_out(images: LabelledImages, share: float, most: int, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Images that may decide, and images that are held out: ``share`` of the ``most`` images that will be looked at,
    drawn by the seed from all. One image of every class stays with the first."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    labels = images.labels[order]
    first = torch.zeros(len(order), dtype=torch.bool)
    first[[int((labels == label).int().argmax()) for label in labels.unique()]] = True
    free = order[~first]
    count = min(len(free), max(1, round(share * min(most, len(images)))))
    held = free[:count]
    if not count:
        raise ConfigError(
            "some images must be held out to estimate the loss",
            got=f"{len(images)}, one of every class at most",
            remedy="give more images",
        )
    rest = torch.ones(len(images), dtype=torch.bool)
    rest[held] = False
    return images.select(torch.nonzero(rest).flatten()), images.select(held)


def time_beside(
    base: Network,
    networks: Mapping[str, Network],
    images: LabelledImages,
    preprocessing: Preprocessing,
    limits: Limits,
    progress: Progress | None = None,
) -> dict[str, tuple[Latency, ...]]:
    """By name, the time at every batch size of the limits; all are timed in one run, the base model in between."""
    x = _timed(images, preprocessing)
    times: dict[str, tuple[Latency, ...]] = dict.fromkeys(networks, ())
    for batch in limits.batches:
        pairs = limits.pairs if batch == 1 else max(10, limits.pairs // 5)
        latencies = interleaved(
            base, networks, x, batch=batch, pairs=pairs, warmup=max(2, pairs // 10), threads=limits.threads,
            progress=progress,
        )  # fmt: skip
        times = {name: (*times[name], latency) for name, latency in latencies.items()}
    return times


def _timed(images: LabelledImages, preprocessing: Preprocessing) -> Tensor:
    """``(N, C, H, W)`` the normalised images that batches are made of."""
    return preprocessing.normalise(images.pixels(preprocessing, 0, _TIMED))


def is_faster(times: tuple[Latency, ...]) -> bool:
    """Whether it is surely faster than the base model at one batch size, by a per cent at least, and surely slower at
    none."""
    return any(time.low > LEAST_SAVED for time in times) and not any(time.high < 0 for time in times)


@dataclass(frozen=True)
class Verdict:
    """What a bundle brings: its time beside the base model's at every batch size, and the share of the calibration
    images that fall back."""

    times: tuple[Latency, ...]
    fallback: float

    @staticmethod
    def of(
        base: Network,
        bundle: Network,
        fallback: float,
        images: LabelledImages,
        preprocessing: Preprocessing,
        limits: Limits,
        progress: Callable[[str, int, int], None],
    ) -> Verdict:
        """Timed on one thread, as a request has, at the batch sizes of the ``limits``."""
        make_parts(bundle, _timed(images, preprocessing), batch=max(limits.batches))
        times = time_beside(
            base, {"bundle": bundle}, images, preprocessing, limits, lambda done, total: progress("time", done, total)
        )
        return Verdict(times["bundle"], fallback)

    @property
    def pays(self) -> bool:
        return is_faster(self.times) and self.fallback <= MOST_FALLBACK

    def require(self) -> None:
        """Raises:
        DoesNotPayError: the bundle is not faster, or nearly everything falls back.
        """
        if not self.pays:
            raise DoesNotPayError(
                f"a bundle must be faster than the base model, and at most {100 * MOST_FALLBACK:g} % may fall back",
                got=str(self),
                remedy="allow more loss, cut earlier, take fewer clusters, or try sinf prune; --keep-anyway writes it",
                numbers=self.to_json(),
            )

    def __str__(self) -> str:
        return f"{describe_times(self.times)}; {100 * self.fallback:.1f} % fall back"

    def to_json(self) -> dict[str, Any]:
        return {"pays": self.pays, "fallback": self.fallback, "times": [time.to_json() for time in self.times]}


def describe_times(times: tuple[Latency, ...]) -> str:
    """E.g. ``11.2 % slower at batch 1 (10.9 .. 11.5), 3.0 % faster at batch 32 (1.0 .. 5.0)``."""
    return ", ".join(
        f"{100 * abs(t.time_saved):.1f} % {'faster' if t.time_saved > 0 else 'slower'} at batch {t.batch} "
        f"({_between(t)} %)"
        for t in times
    )


def _between(time: Latency) -> str:
    ends = sorted((100 * time.low, 100 * time.high) if time.time_saved > 0 else (-100 * time.low, -100 * time.high))
    return f"{ends[0]:.1f} .. {ends[1]:.1f}"
