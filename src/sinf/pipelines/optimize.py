"""optimize(): from a base model, images and a limit of the loss to the fastest network that keeps it.

    candidates   static networks, smaller and smaller; cascades of a small tail and a milder full one; each in f32, bf16
                 or int8
    selection    their loss and their time, in the engine where they will run, on images that fitted nothing
    calibration  the promise, on images that chose nothing

With a confidence those on the front of safety and time are tested on the calibration images from the safest up, in an
order that the selection images alone decide (fixed-sequence testing, arXiv 2110.01052): the fastest one accepted before
the first refusal is delivered. Without, it is the fastest that likely keeps the limit, by both sets of images and by
how many answers differ.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinf.data.disjoint import require_disjoint
from sinf.data.images import LabelledImages
from sinf.errors import ConfigError, DoesNotPayError
from sinf.measure.delivery import is_faster
from sinf.measure.estimate import Estimate
from sinf.measure.shares import percent_less
from sinf.measure.timing import Latency
from sinf.models import BaseModel
from sinf.pipelines.candidates import Delivery, Promise
from sinf.pipelines.optimize_choice import Row
from sinf.pipelines.optimize_config import OptimizeConfig as OptimizeConfig
from sinf.pipelines.optimize_search import COMPILED, OWN, Search, place_of
from sinf.pipelines.optimize_time import expected_time
from sinf.pipelines.place import Place
from sinf.routing.paired_test import p_value
from sinf.routing.threshold import images_needed

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Optimized:
    """What was chosen, what is promised of it, what it was chosen from, and beside them the base model in torch: as it
    was loaded, and by torch.compile, None where that was not timed."""

    chosen: Row
    promise: Promise
    rows: tuple[Row, ...]
    own: Latency
    left_out: tuple[str, ...] = field(default=())
    compiled: Latency | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def optimize(
    base: BaseModel,
    scoring: LabelledImages,
    calibration: LabelledImages,
    config: OptimizeConfig,
    folder: str | Path,
    *,
    selection: LabelledImages | None = None,
    work: str | Path | None = None,
    progress: Progress | None = None,
    expect: Callable[[Estimate], None] | None = None,
    key: bytes | None = None,
    place: Place | None = None,
) -> Optimized:
    """Make the candidates, choose, test, and write the chosen one to ``folder``: a plain model or a bundle.

    ``scoring`` images make the candidates. ``selection`` images choose among them; without, a share of the
    ``calibration`` images does, drawn by the seed, and the others test. Steps are kept in ``work`` (by default beside
    ``folder``, removed at the end), where the same call goes on after a kill. ``expect`` is told how long it will take,
    before it begins. Calls of one base model and engine, for several limits, may share a ``place``, where networks stay
    open.

    Raises:
        DoesNotPayError: nothing that keeps the limit is faster than the base model in its engine.
        ConfigError: an option is out of range, there are too few images, or the place is of another engine.
        DataError: images that test are among those that make or choose the candidates.
    """
    for images, purpose in ((scoring, "scoring"), (calibration, "calibration"), (selection, "selection")):
        if images is not None:
            images.require_labels(purpose)
    require_disjoint(calibration, "calibration", scoring, "scoring")
    if selection is not None:
        require_disjoint(selection, "selection", scoring, "scoring")
        require_disjoint(calibration, "calibration", selection, "selection")
        _require_enough(calibration, config, 1.0)
    else:
        _require_enough(calibration, config, 1 - config.selection)
        selection, calibration = parted(calibration, config.selection, config.seed)
    folder = Path(folder)
    steps = Path(work) if work is not None else folder.with_name(folder.name + ".optimize")
    told = progress or (lambda step, done, total: None)
    if expect is not None:
        expect(expected_time(base, config, scoring=scoring, selection=selection, calibration=calibration))
    where = place or place_of(config, scoring, base.spec.preprocessing)
    with nullcontext() if place is not None else closing(where):
        search = Search(base, scoring, selection, calibration, config, steps, told, where)
        rows, in_torch = search.measure(list(search.opened()))
        tested = {row.full_name: row for row in search.test(rows)}
        rows = [tested.get(row.full_name, row) for row in rows]
        optimized = _chosen(rows, in_torch, search, config)
        delivery = Delivery(optimized.promise, calibration, scoring.class_names, key)
        search.candidates[optimized.chosen.full_name].save(folder, delivery)
    if work is None:
        shutil.rmtree(steps, ignore_errors=True)
    return optimized


def _chosen(rows: list[Row], in_torch: dict[str, Latency], search: Search, config: OptimizeConfig) -> Optimized:
    """The fastest row that was accepted."""
    left_out, longer = search.left_out, "give more minutes, " * search.limit.over
    accepted = [(row, row.promise) for row in rows if row.accepted and row.promise is not None]
    if not accepted:
        tests, remedy = _refusal(rows, search, config)
        why = "" if rows or not left_out else f"; left out: {'; '.join(left_out)}"
        raise DoesNotPayError(
            f"something faster must keep the limit of {100 * config.max_loss:g} points",
            got=f"none of {len(rows)} candidates does: {tests}{why}",
            remedy=f"{longer}{remedy}allow more loss, or leave the model as it is",
            numbers={"rows": [row.to_json() for row in rows], "left_out": left_out},
        )
    chosen, promise = min(accepted, key=lambda pair: pair[0].share)
    optimized = Optimized(chosen, promise, tuple(rows), in_torch[OWN], tuple(left_out), in_torch.get(COMPILED))
    if not is_faster((chosen.time,)):
        raise DoesNotPayError(
            "what is delivered must be faster than the base model in its engine",
            got=f"{percent_less(chosen.share)} time by {chosen.name}",
            remedy=f"{longer}allow more loss, or leave the model as it is",
            numbers=optimized.to_json(),
        )
    return optimized


def _refusal(rows: list[Row], search: Search, config: OptimizeConfig) -> tuple[str, str]:
    """The safest that the tests refused, and what more images would do."""
    if not rows:
        return "there is none", ""
    refused = [(row, row.promise) for row in rows if row.accepted is False and row.promise is not None]
    if not refused:
        return "by the images that choose, all lose more", ""
    row, promise = min(refused, key=lambda pair: pair[0].loss.disagreement)
    lost = f"{row.name}, {row.precision} lost {100 * promise.loss:.2f} points on {promise.images:,} images that test"
    if config.confidence is None:
        return lost, ""
    enough = images_needed(search.losses(row), config.max_loss, 1 - config.confidence)
    more = "no number of such images would do" if enough is None else f"some {enough:,} such images would do"
    return f"{lost}, too few to be sure" if promise.loss <= config.max_loss else lost, f"{more}; "


def _require_enough(calibration: LabelledImages, config: OptimizeConfig, share: float) -> None:
    """Refuse a confidence that a ``share`` of these images, which tests, cannot give even if nothing is lost on it."""
    nothing = torch.zeros(max(1, round(share * len(calibration))))
    if config.confidence is None or p_value(nothing, config.max_loss) <= 1 - config.confidence:
        return
    enough = images_needed(nothing[:1], config.max_loss, 1 - config.confidence)
    number = "more than a million" if enough is None else f"{round(enough / share):,}"
    raise ConfigError(
        f"{100 * config.max_loss:g} points with confidence {config.confidence:g} take {number} calibration images, "
        "even if nothing is lost",
        got=f"{len(calibration):,}",
        remedy="give as many, or allow more loss",
    )


def parted(images: LabelledImages, share: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """The images that choose, a ``share`` of all, and those that test."""
    chooses, tests = parted_rows(len(images), share, seed)
    return images.select(chooses), images.select(tests)


def parted_rows(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Their rows, drawn at random: those that are tested must be drawn as they will occur."""
    first = max(1, round(share * count))
    if count <= first:
        raise ConfigError(
            "calibration images choose and test, so two are needed", got=count, remedy="give some thousand"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    chooses, tests = order.tensor_split([first])
    return chooses, tests
