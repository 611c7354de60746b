"""Several models beside their base model on the same images, all timed in one run, and the choice among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sinf.data.images import LabelledImages, Preprocessing
from sinf.errors import ConfigError
from sinf.measure.timing import Latency, Progress, pinned_threads, summary

_PASSES = 3
_DRAWS = 2000  # of the bootstrap over images


class Candidate(NamedTuple):
    """A classifier, normalised images (B, C, H, W) -> logits (B, classes), and its mean MACs an image."""

    name: str
    run: Callable[[Tensor], Tensor]
    macs: float


@dataclass(frozen=True)
class Row:
    """A candidate on some images. ``loss`` is that of top-1 against the base model, in percentage points, with a paired
    95 % bootstrap interval over images; ``time`` is beside the base model."""

    name: str
    top1: float
    loss: float
    loss_low: float
    loss_high: float
    macs: float
    time: Latency


@dataclass(frozen=True)
class Comparison:
    """Rows of all candidates, the base model first, and milliseconds (candidates, rounds) of the run that timed
    them."""

    rows: tuple[Row, ...]
    milliseconds: Tensor

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def time(self, name: str, beside: str) -> Latency:
        """The time of one candidate beside that of another."""
        names = [row.name for row in self.rows]
        pair = self.milliseconds[[names.index(beside), names.index(name)]]
        return summary(pair, self.rows[0].time.batch, self.rows[0].time.threads)

    def fastest(self, limit: float) -> str:
        """The candidate of least mean time among those that lose at most ``limit`` points on these images. The base
        model, which loses none, is one of them."""
        return min((row for row in self.rows if row.loss <= limit), key=lambda row: row.time.mean).name

    def without(self, *names: str) -> Comparison:
        """The same run without the candidates of these names."""
        stay = [number for number, row in enumerate(self.rows) if row.name not in names]
        return Comparison(tuple(self.rows[number] for number in stay), self.milliseconds[stay])

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]


@torch.no_grad()
def compare(
    candidates: Sequence[Candidate],
    images: LabelledImages,
    preprocessing: Preprocessing,
    *,
    rounds: int = 300,
    threads: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Top-1 and the time at batch 1 of every candidate; the first one is the base model.

    Raises:
        ConfigError: two candidates have one name.
    """
    names = [candidate.name for candidate in candidates]
    if len(set(names)) != len(names):
        raise ConfigError("every candidate must have a name of its own", got=", ".join(names), remedy="rename one")
    batches = list(images.batches(preprocessing))
    right = torch.stack(
        [torch.cat([candidate.run(x).argmax(1) == y for x, y in batches]) for candidate in candidates]
    ).double()
    x = torch.cat([x for x, _ in batches])
    milliseconds = time_in_turns([candidate.run for candidate in candidates], x, rounds, threads, progress)
    draws = torch.randint(len(images), (_DRAWS, len(images)), generator=torch.Generator().manual_seed(0))
    rows = []
    for number, candidate in enumerate(candidates):
        losses = 100 * (right[0] - right[number])
        low, high = losses[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=losses.dtype)).tolist()
        latency = summary(milliseconds[[0, number]], 1, threads)
        top1 = float(right[number].mean())
        rows.append(Row(candidate.name, top1, float(losses.mean()), low, high, candidate.macs, latency))
    return Comparison(tuple(rows), milliseconds)


@torch.no_grad()
def time_in_turns(
    models: Sequence[Callable[[Tensor], Tensor]],
    images: Tensor,
    rounds: int,
    threads: int = 1,
    progress: Progress | None = None,
    warmup: int = 20,
) -> Tensor:
    """Milliseconds (models, rounds) of one image of ``images`` (N, C, H, W), the same for all models of a round.

    Every model runs it ``_PASSES`` times, and the fastest counts, because the others hold what else the machine did.
    Between two of them all other models run, in an order drawn anew, so that none finds its weights in the cache and
    none always follows the same.
    """
    generator = torch.Generator().manual_seed(0)
    milliseconds = torch.full((len(models), rounds), torch.inf, dtype=torch.float64)
    with pinned_threads(threads):
        for number in range(-warmup, rounds):
            x = images[[number % len(images)]]
            for turn in torch.cat([torch.randperm(len(models), generator=generator) for _ in range(_PASSES)]).tolist():
                start = time.perf_counter()
                models[turn](x)
                elapsed = time.perf_counter() - start
                if number >= 0:
                    milliseconds[turn, number].clamp_(max=1000 * elapsed)
            if progress is not None and number >= 0:
                progress(number + 1, rounds)
    return milliseconds


def describe_choice(before: Comparison, after: Comparison, limit: float) -> str:
    """What was chosen for a limit of the loss (points) on the images of ``before``, and whether it is still the best on
    those of ``after``, which chose nothing."""
    chosen, base = before.fastest(limit), before.rows[0].name
    if chosen == base:
        return f"Chosen on the calibration images: {base}. Nothing faster loses at most {limit:g} points there."
    row, then = after.row(chosen), before.row(chosen)
    text = (
        f"Chosen on the calibration images: {chosen}, the fastest that loses at most {limit:g} points there "
        f"({then.loss:.2f}). On the test images it loses {row.loss:.2f} points and takes "
        f"{100 * row.time.time_saved:.1f} % less time than the base model."
    )
    if row.loss > limit:
        text += " That is more loss than asked for: the choice holds for the calibration images only."
    fastest = after.fastest(limit)
    if fastest != chosen and after.time(fastest, chosen).low > 0:
        text += f" On the test images {fastest} would be faster within the limit."
    return text


def routing_pays(comparison: Comparison, routed: str, parts: str, limit: float) -> bool:
    """Whether a routed model loses at most ``limit`` points and is faster than its own parts without routing: the whole
    95 % interval of the time saved is above zero."""
    return comparison.row(routed).loss <= limit and comparison.time(routed, parts).low > 0


def describe_routing(comparison: Comparison, routed: str, parts: str, limit: float) -> str:
    """A routed model beside its own parts without routing, and whether it pays (see :func:`routing_pays`)."""
    time, loss = comparison.time(routed, parts), comparison.row(routed).loss - comparison.row(parts).loss
    saved, interval = 100 * time.time_saved, f"95 % interval {100 * time.low:.1f} .. {100 * time.high:.1f}"
    lost = f"{loss:.2f} points more are lost" if loss > 0 else "no more is lost"
    if time.low > 0:
        text = f"{routed} takes {saved:.1f} % less time ({interval}) than {parts}; {lost}"
    elif time.high < 0:
        text = f"{routed} takes {-saved:.1f} % MORE time ({interval} saved) than {parts}; {lost}"
    else:
        text = f"{routed} is not faster than {parts} beyond doubt ({saved:.1f} % less time, {interval}); {lost}"
    if routing_pays(comparison, routed, parts, limit):
        return f"Routing pays here: {text}."
    return f"Routing does not pay here: {text}."
