"""Which candidate of optimize() is delivered: which are tested, in which order, and what is accepted.

With a confidence, fixed-sequence testing from the safest up (arXiv 2110.01052). Without, what a network likely loses
decides, estimated from all images and from how many answers differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from torch import Tensor

from sinf.measure.delivery import ExpectedLoss
from sinf.measure.timing import Latency
from sinf.pipelines.candidates import Promise
from sinf.routing.paired_test import p_value

LOST = 1 / 8  # of the answers that differ: where networks disagree, mostly both are wrong
_SPREAD = 1.0  # of that share, from network to network: a cascade's small tail may lose most of what it changes
_SURER = 0.5  # standard deviations: two to one that a network keeps the limit
_FAR = 2.0  # standard errors
FIRST_ROUNDS = 1 / 5  # of all: every candidate is timed in so many, and those that may win in all
_HOPELESS = 1.5  # times the limit: what likely loses more by the images that choose is not tested


@dataclass(frozen=True)
class Row:
    """A candidate on the selection images: its loss, and its time beside the base model in f32, all in the engine.
    ``accepted`` says whether it kept the limit on the calibration images, None where it was not tested."""

    name: str
    kind: str
    precision: str
    loss: ExpectedLoss
    time: Latency
    accepted: bool | None = None
    promise: Promise | None = None

    @property
    def full_name(self) -> str:
        return f"{self.name}, {self.precision}"

    @property
    def share(self) -> float:
        """Its time as a share of that of the base model that ran beside it: what slows the machine slows both."""
        return 1 - self.time.time_saved

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def tested(
    rows: list[Row], losses_of: Callable[[Row], Tensor], max_loss: float, confidence: float | None
) -> Iterator[tuple[Row, bool, Tensor]]:
    """Rows with whether they are accepted and their losses (N,) in {-1, 0, 1} on images that chose
    nothing: with a confidence in the order of :func:`front`, until one is refused; without, the fastest first, until
    one likely keeps the limit, by these images and those that chose.
    """
    for row in in_order(rows, max_loss, sure=confidence is not None):
        losses = losses_of(row)
        if confidence is None:
            accepted = likely_loss(row.loss, losses) <= max_loss
        else:
            accepted = p_value(losses, max_loss) <= 1 - confidence
        yield row, accepted, losses
        if accepted == (confidence is None):
            return


def likely_loss(chosen_by: ExpectedLoss, losses: Tensor | None = None) -> float:
    """What a network likely loses of top-1 on new images at most, as a fraction: two to one that it loses no more.

    The mean of what the images say on which it was chosen and the ``losses`` (N,) in {-1, 0, 1} on others, and of a
    usual share of the answers that differ, each weighted by how sure it is. A few thousand images tell half a point of
    loss no better than by half a point, and how many answers differ by a tenth. It is never further from what the
    images say than two standard errors of that.
    """
    points, count, changed = chosen_by.points / 100, chosen_by.images, chosen_by.disagreement
    if losses is not None:
        points = (points * count + float(losses.double().sum())) / (count + len(losses))
        changed = max(changed, float(losses.double().square().mean()))
        count += len(losses)
    usual = LOST * chosen_by.disagreement
    if not usual:
        return points
    sampling, guess = changed / count, (_SPREAD * usual) ** 2  # variances
    likely = (points * guess + usual * sampling) / (guess + sampling) + _SURER * (
        guess * sampling / (guess + sampling)
    ) ** 0.5
    far = _FAR * sampling**0.5
    return min(max(likely, points - far), points + far)


def aim(limit: float, confidence: float | None, images: int) -> float:
    """What a network may lose that the test on so many images will likely accept, where the usual share of its answers
    that differ is lost: the limit less what a mean of them varies by."""
    if confidence is None:
        return limit
    varies = NormalDist().inv_cdf(confidence) / (LOST * images) ** 0.5
    return ((varies**2 + 4 * limit) ** 0.5 - varies) ** 2 / 4


def kept_at(limit: float, losses: Mapping[float, float]) -> float:
    """What a network keeps that loses the limit, between two of those whose ``losses`` are known by what they keep: the
    base model keeps all and loses nothing. The least of them where none loses more."""
    before, lost = 1.0, 0.0
    for kept in sorted(losses, reverse=True):
        if losses[kept] > limit:
            return before + (limit - lost) / (losses[kept] - lost) * (kept - before)
        before, lost = kept, losses[kept]
    return before


def contenders(rows: list[Row], limit: float) -> list[Row]:
    """The rows, timed in a few rounds, that may turn out to be the fastest within the limit (a fraction). All others
    lose too much, or one of their kind that keeps the limit, and whose answers differ no more often, is surely faster.
    """
    keep = [row for row in rows if row.loss.points <= 100 * limit]

    def beats(other: Row, row: Row) -> bool:
        safer = other.kind == row.kind and other.loss.disagreement <= row.loss.disagreement
        return safer and other.time.low > row.time.high

    return [
        row
        for row in rows
        if (row.loss.points <= 100 * limit or likely_loss(row.loss) <= _HOPELESS * limit)
        and not any(beats(other, row) for other in keep)
    ]


def in_order(rows: list[Row], limit: float, sure: bool) -> list[Row]:
    """The rows that are worth a test, in the order of the tests. To be ``sure``, it must lead from the safest up, and
    skip what is slower than something safer; else the fastest that holds is looked for."""
    if sure:
        return front(rows, limit)
    return sorted((row for row in rows if likely_loss(row.loss) <= _HOPELESS * limit), key=lambda row: row.share)


def front(rows: list[Row], limit: float) -> list[Row]:
    """The rows within the limit (a fraction) that nothing beats in both safety and time, the safest first.

    The safest is the one whose answers differ from the base model's least often. That bounds its loss and the spread of
    it, and a few hundred images tell it well; which of many losses happened to come out lowest says little, and a
    sequence of tests that begins with a lucky one ends there.
    """
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.loss.disagreement, row.share)):
        if row.loss.points <= 100 * limit and (not best or row.share < best[-1].share):
            best.append(row)
    return best
