"""How often the promise of a limit breaks: pipelines whose expected loss is known, and the cached answers of VGG16.

    python benchmarks/promise.py [--observed vgg16_observation.safetensors]

    simulation   a pipeline of one of SHAPES: candidates from 150 images, the threshold from 500 others; broken when the
                 expected loss at the threshold is above the limit
    splits       200 random halves of the test images: one sets deferral and thresholds as a build does; ``broken``
                 counts a loss of *all* images above the limit, ``other_half`` that of the half that was left
    draws        as many draws with replacement of 5,000 of them: all images are then what they are drawn from, and
                 their mean loss is the expected one

The file of observed answers is what ``sinf.measure.accuracy.observe`` gives for all test images; candidates.py
--observed writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file
from table import Table
from torch import Tensor

from sinf.engine.torch_engine import Routes
from sinf.errors import ConfigError
from sinf.measure.accuracy import Observation
from sinf.pipelines.calibration import FITTING, set_thresholds
from sinf.routing.threshold import Calibration, candidate_thresholds, choose_threshold

STEPS = 200_000
GAINED = 0.02  # of the images: the base model is wrong, and the pipeline right
CONFIDENCES = (0.95, 0.9, 0.6)
LIMIT, TRIALS, SPLITS = 0.05, 1000, 200
TAIL_COSTS = (0.2, 1.0)  # of a subgraph and of the full tail: the early threshold depends on their ratio
COLUMNS = ("kind", "name", "limit", "confidence", "trials", "broken", "other_half", "fallback", "loss", "date",
           "versions")  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A pipeline whose expected loss is known at every threshold: confidence is uniform in 0..1, and an image of
    confidence u is lost with probability ``lost(u)`` when its route is accepted."""

    lost: Callable[[Tensor], Tensor]

    def draw(self, count: int, seed: int) -> Calibration:
        draw = torch.Generator().manual_seed(seed)
        confidence = torch.rand(count, generator=draw)
        lost = torch.rand(count, generator=draw) < self.lost(confidence)
        gained = torch.rand(count, generator=draw) < GAINED
        return Calibration(confidence, gained | ~lost, ~gained, ~gained)

    def expected(self, threshold: float) -> float:
        """The expected loss, a fraction."""
        return float(self._above[min(STEPS, max(0, round(threshold * STEPS)))])

    @cached_property
    def _above(self) -> Tensor:
        """The loss of all confidences above each step."""
        u = (torch.arange(STEPS, dtype=torch.float64) + 0.5) / STEPS
        loss = ((1 - GAINED) * self.lost(u).double() - GAINED) / STEPS
        return torch.cat([loss.flip(0).cumsum(0).flip(0), torch.zeros(1)])


SHAPES = {
    "slope": Shape(lambda u: 0.35 * (1 - u) ** 2),
    "cliff": Shape(lambda u: 0.9 * (u < 0.6)),
    "cliff at the top": Shape(lambda u: 0.5 * (u > 0.9)),
    "two cliffs": Shape(lambda u: 0.3 * ((u > 0.85) & (u < 0.93)) + 0.6 * (u < 0.3)),
    "on the limit": Shape(lambda u: torch.full_like(u, (LIMIT + GAINED + 0.0005) / (1 - GAINED))),
}


def broken_promises(shape: Shape, trials: int, confidences: tuple[float, ...] = CONFIDENCES) -> dict[float, int]:
    """By confidence, how often the expected loss at the chosen threshold is above the limit."""
    broken = dict.fromkeys(confidences, 0)
    for seed in range(trials):
        candidates = candidate_thresholds(shape.draw(150, 2 * seed + 1).confidence, 25)
        calibration = shape.draw(500, 2 * seed)
        for confidence in confidences:
            chosen = choose_threshold(calibration, candidates, LIMIT, confidence)
            broken[confidence] += shape.expected(chosen.value) > LIMIT + 1 / STEPS
    return broken


def read_observation(path: Path) -> Observation:
    """What was observed of all images."""
    tensors = load_file(path)
    routes = Routes(*(tensors[name] for name in Routes._fields))
    return Observation(routes, tensors["fallback_right"], tensors["base_right"])


def losses_of(observation: Observation, rows: Tensor, limit: float, confidence: float | None) -> tuple[Tensor, float]:
    """The losses (N,) of all images with what a build sets on some rows, and the share of them that falls back."""
    fitting, rest = rows.tensor_split([round(FITTING * len(rows))])
    parts = observation.select(fitting), observation.select(rest)
    deferral, threshold = set_thresholds(*parts, limit, confidence, TAIL_COSTS)
    whole = observation.calibration(deferral, threshold.early)
    return whole.losses(threshold.value).double(), 1 - float(whole.routed(threshold.value).double().mean())


def observed(path: Path, table: Table, splits: int) -> None:
    observation = read_observation(path)
    count = len(observation.base_right)
    for kind in ("splits", "draws"):
        for limit in (0.005, 0.01, 0.02):
            for confidence in (*CONFIDENCES, None):
                broken = other = done = 0
                fallback, loss = 0.0, 0.0
                for seed in range(splits):
                    draw = torch.Generator().manual_seed(seed)
                    if kind == "splits":
                        order = torch.randperm(count, generator=draw)
                        rows, left = order.tensor_split([count // 2])
                    else:
                        rows = torch.randint(count, (count // 2,), generator=draw)
                        left = torch.arange(count)
                    try:
                        losses, share = losses_of(observation, rows, limit, confidence)
                    except ConfigError:  # no threshold is accepted: no bundle, and nothing promised
                        continue
                    done += 1
                    broken += float(losses.mean()) > limit
                    other += float(losses[left].mean()) > limit
                    fallback, loss = fallback + share, loss + float(losses.mean())
                table.add(
                    kind=kind, name=path.stem.removesuffix("_observation"), limit=100 * limit,
                    confidence="" if confidence is None else confidence, trials=splits, broken=broken,
                    other_half=other if kind == "splits" else "", fallback=fallback / max(1, done),
                    loss=100 * loss / max(1, done),
                )  # fmt: skip


def main(
    observed_answers: Annotated[Path | None, typer.Option("--observed", help="Answers of all test images.")] = None,
    trials: int = TRIALS,
    splits: int = SPLITS,
) -> None:
    torch.set_num_threads(1)
    table = Table("promise.csv", COLUMNS, ("kind", "name", "limit", "confidence"))
    for name, shape in SHAPES.items():
        for confidence, broken in broken_promises(shape, trials).items():
            table.add(
                kind="simulation", name=name, limit=100 * LIMIT, confidence=confidence, trials=trials, broken=broken
            )
    if observed_answers is not None:
        observed(observed_answers, table, splits)


if __name__ == "__main__":
    typer.run(main)
