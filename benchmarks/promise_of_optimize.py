"""How often the promise of optimize() breaks: tables of candidates whose expected loss is known.

    python benchmarks/promise_of_optimize.py

A table has the answers of many candidates for all images of a world, so the expected loss of each is known. A trial
draws calibration images from it, with replacement, and does with them what optimize() does: a third chooses
(thresholds of bundles, what is worth a test, the order of the tests), the rest tests. The fastest candidate that was
accepted is delivered, and the promise is broken when its expected loss is above the limit. Where nothing is accepted,
nothing is delivered, and nothing broken.

    a ladder            smaller and smaller networks, and cascades, as they are found in practice
    a cliff             the same, but a network of the middle loses a fifth more than the limit
    just above          every candidate loses a fiftieth more than the limit: any delivery breaks the promise
    safe to look at     networks that change least lose most
    a cascade's cliff   what a cascade's small tail is confident of is lost in a narrow band
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import typer
from table import Table
from torch import Tensor

from sinf.measure.delivery import ExpectedLoss
from sinf.measure.in_engine import TailAnswers
from sinf.measure.timing import Latency
from sinf.pipelines.candidates import few_thresholds
from sinf.pipelines.optimize import parted_rows
from sinf.pipelines.optimize_choice import Row, aim, tested
from sinf.pipelines.optimize_config import OptimizeConfig

IMAGES, CLASSES, RIGHT = 50_000, 10, 0.7  # of a world: how many images, and the base model's accuracy
CALIBRATION, TRIALS, LIMIT = 5000, 500, 0.01
CONFIDENCES = (0.95, 0.9, None)
COLUMNS = (
    "name", "candidates", "limit", "confidence", "trials", "delivered", "broken", "loss", "share", "date",
    "versions",
)  # fmt: skip


@dataclass
class World:
    """Of all images (N,): labels, and the answers of the base model and of every candidate. ``networks`` have a share
    of the base model's time, ``bundles`` that of an image that stops at the small tail, and what one that does not
    costs besides."""

    labels: Tensor
    base: Tensor
    networks: dict[str, tuple[Tensor, float]] = field(default_factory=dict)
    bundles: dict[str, tuple[TailAnswers, float, float]] = field(default_factory=dict)

    def expected_loss(self, answers: Tensor) -> float:
        return float(((self.base == self.labels).double() - (answers == self.labels).double()).mean())

    def candidates(self, rows: Tensor, limit: float) -> dict[str, tuple[Tensor, float]]:
        """Answers for all images, and the share of the time, of what is tried when ``rows`` choose."""
        made = dict(self.networks)
        for name, (tails, small, more) in self.bundles.items():
            for value in few_thresholds(_of(tails, rows), limit):
                back = 1 - float(tails.routed(value)[rows].double().mean())
                made[f"{name} at {value:g}"] = tails.at(value), small + back * more
        return made


def _of(tails: TailAnswers, rows: Tensor) -> TailAnswers:
    return TailAnswers(tails.subgraph[rows], tails.full[rows], tails.confidence[rows], tails.early[rows])


@dataclass(frozen=True)
class Delivered:
    """The expected loss of what was delivered, a fraction, and its share of the time."""

    loss: float
    share: float


def trial(
    world: World, limit: float, confidences: tuple[float | None, ...], seed: int, images: int = CALIBRATION
) -> list[Delivered | None]:
    """By confidence what optimize() delivers, chosen and tested by images that the seed draws; None for nothing."""
    drawn = torch.randint(len(world.labels), (images,), generator=torch.Generator().manual_seed(seed))
    chooses, tests = (drawn[rows] for rows in parted_rows(images, OptimizeConfig.selection, seed))
    found: list[Delivered | None] = []
    for confidence in confidences:
        candidates = world.candidates(chooses, aim(limit, confidence, len(tests)))
        rows = [
            Row(name, "", "f32", _loss(world, answers, chooses), _time(share))
            for name, (answers, share) in candidates.items()
        ]
        losses_of = partial(_losses, world, candidates, tests)
        accepted = [row for row, holds, _ in tested(rows, losses_of, limit, confidence) if holds]
        chosen = min(accepted, key=lambda row: row.share, default=None)
        loss = None if chosen is None else world.expected_loss(candidates[chosen.name][0])
        found.append(None if chosen is None or loss is None else Delivered(loss, chosen.share))
    return found


def _losses(world: World, candidates: dict[str, tuple[Tensor, float]], rows: Tensor, row: Row) -> Tensor:
    labels, answers = world.labels[rows], candidates[row.name][0][rows]
    return (world.base[rows] == labels).float() - (answers == labels).float()


def _loss(world: World, answers: Tensor, rows: Tensor) -> ExpectedLoss:
    """Without an interval, which takes time and chooses nothing."""
    base, ours, labels = world.base[rows], answers[rows], world.labels[rows]
    lost, none = ((base == labels).double() - (ours == labels).double()).mean(), float("nan")
    return ExpectedLoss(100 * float(lost), none, none, float((base != ours).double().mean()), None, len(rows))


def _time(share: float) -> Latency:
    """Of a candidate with a share of the base model's time."""
    ours, saved = 10 * share, 1 - share
    return Latency(1, 1, 2, 10.0, 10.0, 10.0, 10.0, 10.0, ours, ours, ours, ours, ours, saved, saved, saved)


def coverage(
    world: World, limit: float, trials: int, confidences: tuple[float | None, ...] = CONFIDENCES
) -> dict[float | None, list[Delivered]]:
    """By confidence what was delivered in so many trials."""
    found: dict[float | None, list[Delivered]] = {confidence: [] for confidence in confidences}
    for seed in range(trials):
        for confidence, made in zip(confidences, trial(world, limit, confidences, seed), strict=True):
            found[confidence] += [] if made is None else [made]
    return found


def broken(delivered: list[Delivered], limit: float) -> int:
    return sum(made.loss > limit for made in delivered)


# ---- worlds


class Maker:
    """Draws worlds: images are harder or easier, and harder ones change their answer first."""

    def __init__(self) -> None:
        self.draw = torch.Generator().manual_seed(0)
        self.labels = torch.randint(CLASSES, (IMAGES,), generator=self.draw)
        self.ease = torch.rand(IMAGES, generator=self.draw)
        self.right = torch.rand(IMAGES, generator=self.draw) < RIGHT
        self.base = torch.where(self.right, self.labels, (self.labels + 1) % CLASSES)
        self.world = World(self.labels, self.base)

    def changed(self, differing: float, loss: float) -> Tensor:
        """Answers (N,) of which a share differs from the base model's, so that a share is lost: what is changed is
        lost, or won, or wrong before and after."""
        lost = (differing + 2 * loss) / 3
        won = lost - loss
        order = (self.ease + 0.3 * torch.rand(len(self.ease), generator=self.draw)).argsort()
        right, wrong = order[self.right[order]], order[~self.right[order]]
        count = len(order)
        answers = self.base.clone()
        answers[right[: round(lost * count)]] = (self.labels[right[: round(lost * count)]] + 2) % CLASSES
        gained, other = (round(share * count) for share in (won, differing - lost))
        answers[wrong[:gained]] = self.labels[wrong[:gained]]
        answers[wrong[gained:other]] = (self.labels[wrong[gained:other]] + 2) % CLASSES
        return answers

    def network(self, differing: float, loss: float, share: float) -> None:
        self.world.networks[f"network {len(self.world.networks)}"] = self.changed(differing, loss), share

    def cascade(self, small: Tensor, full: Tensor, early: float, late: float) -> None:
        """A small tail that is more confident of images that are easier."""
        noise = torch.rand(len(self.ease), generator=self.draw)
        tails = TailAnswers(small, full, 0.8 * self.ease + 0.2 * noise, torch.ones(len(self.ease)))
        self.world.bundles[f"cascade {len(self.world.bundles)}"] = tails, early, late


def a_ladder(limit: float, cliff: int | None = None) -> World:
    """A sixth of what changes is lost; at the ``cliff``, nearly all of it."""
    make = Maker()
    for rung in range(8):
        differing, share = 0.6 * limit * 1.6**rung, 0.8**rung
        make.network(differing, 1.2 * limit if rung == cliff else differing / 6, 0.9 * share)
    for size, differing in ((0.3, 0.2), (0.2, 0.3)):
        make.cascade(make.changed(differing, differing / 6), make.changed(limit, limit / 6), size, 0.6)
    return make.world


def just_above(limit: float) -> World:
    make = Maker()
    for number in range(16):
        make.network((2 + number / 2) * limit, 1.02 * limit, 0.9 - 0.04 * number)
    return make.world


def safe_to_look_at(limit: float) -> World:
    """Those that change least lose all of it, a little more than the limit; others keep it barely."""
    make = Maker()
    for number in range(6):
        make.network((1.05 + 0.1 * number) * limit, (1.05 + 0.1 * number) * limit, 0.9 - 0.05 * number)
        make.network((3 + number) * limit, 0.9 * limit, 0.6 - 0.05 * number)
    return make.world


def a_cascades_cliff(limit: float) -> World:
    make = Maker()
    for low in (0.80, 0.84, 0.88):
        small = make.changed(0.1, 0.1 / 6)
        make.cascade(small, make.base, 0.3, 0.7)
        tails, *times = make.world.bundles.popitem()[1]
        band = (tails.confidence > low) & (tails.confidence < low + 0.1) & make.right
        band &= torch.rand(len(band), generator=make.draw) < 0.3
        lost = torch.where(band, (make.labels + 2) % CLASSES, small)
        make.world.bundles[f"band above {low:g}"] = _with(tails, lost), *times  # type: ignore[assignment]
    return make.world


def _with(tails: TailAnswers, subgraph: Tensor) -> TailAnswers:
    return TailAnswers(subgraph, tails.full, tails.confidence, tails.early)


WORLDS: dict[str, Callable[[float], World]] = {
    "a ladder": a_ladder,
    "a cliff": lambda limit: a_ladder(limit, cliff=2),
    "just above the limit": just_above,
    "safe to look at": safe_to_look_at,
    "a cascade's cliff": a_cascades_cliff,
}


def main(trials: int = TRIALS) -> None:
    torch.set_num_threads(1)
    table = Table("promise_of_optimize.csv", COLUMNS, ("name", "limit", "confidence"))
    for name, make in WORLDS.items():
        world = make(LIMIT)
        for confidence, made in coverage(world, LIMIT, trials).items():
            count = max(1, len(made))
            table.add(
                name=name, candidates=len(world.networks) + len(world.bundles), limit=100 * LIMIT,
                confidence="" if confidence is None else confidence, trials=trials, delivered=len(made),
                broken=broken(made, LIMIT), loss=100 * sum(each.loss for each in made) / count,
                share=sum(each.share for each in made) / count,
            )  # fmt: skip
        print(name, flush=True)


if __name__ == "__main__":
    typer.run(main)
