"""The threshold of the feature router: as much routing as a loss of accuracy allows, with a guarantee if asked for.

The loss of an image is 1{pipeline wrong} - 1{base wrong}, of the whole pipeline: a confident route into a subgraph that
then fails counts (a predictor's confidence alone says nothing about the specialist behind it, Jitkrittum et al., arXiv
2307.02764).

The guarantee is Learn-then-Test with fixed-sequence testing (Angelopoulos et al., arXiv 2110.01052, section 4.2):
candidates that were fixed before the images were looked at are tested from the safest down, each by a p-value for "the
expected loss is above the limit" (:mod:`sinf.routing.paired_test`), and the last one accepted before the first refusal
is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from sinf.errors import ConfigError
from sinf.routing.paired_test import p_value
from sinf.routing.router import early_floor

NEVER = 2.0  # a threshold that no confidence reaches: every input falls back
BOUND = "Learn-then-Test, exact test of paired answers"


@dataclass(frozen=True)
class Calibration:
    """What the pipeline does with calibration images (N,): confidence once the subgraph has run, who is right, and the
    confidence before it, where inputs below ``early_threshold`` stop."""

    confidence: Tensor
    routed_right: Tensor
    fallback_right: Tensor
    base_right: Tensor
    early: Tensor | None = None
    early_threshold: float = 0.0

    def subgraph_ran(self, threshold: float) -> Tensor:
        """``(N,)`` whether the subgraph runs. Where little confidence is asked for, less is asked for it to run."""
        if self.early is None:
            return self.confidence >= threshold
        return self.early >= early_floor(self.early_threshold, threshold)

    def routed(self, threshold: float) -> Tensor:
        """``(N,)`` whether the subgraph's answer stands."""
        return self.subgraph_ran(threshold) & (self.confidence >= threshold)

    def losses(self, threshold: float) -> Tensor:
        """``(N,)`` in {-1, 0, 1}."""
        right = torch.where(self.routed(threshold), self.routed_right, self.fallback_right)
        return self.base_right.float() - right.float()


@dataclass(frozen=True)
class Threshold:
    """Confidence below which an input falls back, ``early`` before its subgraph runs, and what both do to the
    calibration images: loss, shares that fall back and that run a subgraph.

    ``confidence`` is None without a guarantee; ``images`` is how many images the threshold was set on, ``choices``
    among how many bundles or limits one will be chosen by their results on these images, ``engine`` and ``precision``
    where the answers came from. ``only_tested``: other images set the threshold, these tested the bundle that has it.
    """

    value: float
    early: float
    max_loss: float
    loss: float
    fallback: float
    subgraph_ran: float
    confidence: float | None
    images: int
    choices: int = 1
    bound: str = BOUND
    engine: str = "torch"
    precision: str = "f32"
    only_tested: bool = False

    def promise(self, value: float | None = None, engine: str = "torch", precision: str = "f32") -> str:
        """What is promised, in one sentence, of routing with the threshold ``value`` (None: this one) in an engine."""
        where = f"{self.engine} {self.precision}"
        if value is not None and value != self.value:
            return f"No promise: the threshold is {value:g} instead of the calibrated {self.value:g}."
        if (engine, precision) != (self.engine, self.precision):
            return f"No promise in {engine} {precision}: the threshold was set by answers in {where}."
        limit, did = f"{100 * self.max_loss:g} points", "tested it" if self.only_tested else "set the threshold"
        if self.confidence is None and self.only_tested:
            return (
                f"No promise for new images: {limit} were asked for, and on the {self.images:,} images that tested it "
                f"{100 * self.loss:.2f} points of top-1 were lost against the base model."
            )
        if self.confidence is None:
            return (
                f"No promise for new images: on the {self.images:,} images that set the threshold, the loss of top-1 "
                f"against the base model is at most {limit}."
            )
        corrected = f", one of {self.choices} bundles or limits that were to be chosen from" * (self.choices > 1)
        return (
            f"With confidence {self.confidence:g}, the expected loss of top-1 against the base model is at most "
            f"{limit}: of this bundle{corrected}, in {where}, image by image, on images drawn as the {self.images:,} "
            f"were that {did} ({self.bound}). Choosing among more results on the same images voids it."
        )


def candidate_thresholds(confidence: Tensor, steps: int = 100) -> tuple[float, ...]:
    """Thresholds to be tested, from the safest down: quantiles of the confidence (N,) of images that the threshold is
    *not* set on, because a sequence that was drawn from the tested images is not fixed; then 0, which accepts all."""
    levels = torch.quantile(confidence.double(), torch.linspace(1, 0, steps + 1, dtype=torch.float64))
    distinct = dict.fromkeys(levels.float().tolist())  # exact in the precision that they are compared in
    return (*(level for level in distinct if level > 0), 0.0)


def choose_threshold(
    calibration: Calibration,
    candidates: Sequence[float],
    max_loss: float,
    confidence: float | None = None,
    *,
    choices: int = 1,
) -> Threshold:
    """The lowest of the candidates (and :data:`NEVER`) whose loss is at most ``max_loss`` (a fraction: 0.01 is one
    point).

    With ``confidence`` (0.95, say) the expected loss is within the limit with that probability over the draw of the
    calibration images; ``candidates``, from the safest down, must have been fixed without them. Without, the limit
    holds for the calibration images only. Where one of several bundles or limits will be taken for its results on the
    same images, ``choices`` is how many there are (Bonferroni: each is tested at that part of 1 - confidence).

    Raises:
        ConfigError: an option is out of range, or even with every input in the full tail the loss is too large, or the
            images are too few; then the message says how many would do.
    """
    _check_options(candidates, max_loss, confidence, choices)
    accepted: float | None = None
    for threshold in (NEVER, *candidates):
        losses = calibration.losses(threshold)
        if confidence is None:
            if float(losses.double().mean()) <= max_loss:
                accepted = threshold  # the lowest that holds: the loss need not grow evenly
        elif p_value(losses, max_loss) <= (1 - confidence) / choices:
            accepted = threshold
        else:
            break
    if accepted is None:
        raise _out_of_reach(calibration.losses(NEVER), max_loss, confidence, choices)
    return Threshold(
        accepted,
        calibration.early_threshold,
        max_loss,
        float(calibration.losses(accepted).mean()),
        1 - float(calibration.routed(accepted).float().mean()),
        float(calibration.subgraph_ran(accepted).float().mean()),
        confidence,
        len(calibration.confidence),
        choices,
    )


def require_limit(max_loss: float, confidence: float | None) -> None:
    """Raises:
    ConfigError: a limit of the loss, or the confidence with which it is to hold, is out of range.
    """
    if not 0 <= max_loss < 1:
        raise ConfigError("max_loss must be in [0, 1)", got=max_loss, remedy="take 0.01 for one point")
    if confidence is not None and not 0 < confidence < 1:
        raise ConfigError("confidence must be in (0, 1)", got=confidence, remedy="take 0.95")


def _check_options(candidates: Sequence[float], max_loss: float, confidence: float | None, choices: int) -> None:
    require_limit(max_loss, confidence)
    if choices < 1:
        raise ConfigError("choices must be at least 1", got=choices, remedy="give how many bundles you choose from")
    falling = all(low < high for high, low in pairwise(candidates))
    if not falling or any(not 0 <= candidate <= 1 for candidate in candidates):
        raise ConfigError(
            "candidate thresholds must fall, within 0..1", got=candidates, remedy="take candidate_thresholds()"
        )


def _out_of_reach(losses: Tensor, max_loss: float, confidence: float | None, choices: int) -> ConfigError:
    """No candidate is accepted: the full tail itself loses too much, or its images are too few to tell."""
    mean = float(losses.double().mean())
    rule = f"no threshold keeps the loss within {100 * max_loss:g} points"
    got = f"{100 * mean:.2f} points with every input in the full tail"
    if confidence is None:
        return ConfigError(rule, got=got, remedy="raise max_loss, or prune extractor and full tail less")
    enough = images_needed(losses, max_loss, (1 - confidence) / choices)
    more = "no number of such images would do" if enough is None else f"some {enough:,} such images would do"
    return ConfigError(
        f"{rule} with confidence {confidence:g}",
        got=f"{got}, on {len(losses):,} images",
        remedy=f"{more}; or raise max_loss, or prune extractor and full tail less",
    )


def images_needed(losses: Tensor, max_loss: float, alpha: float, most: int = 1_000_000) -> int | None:
    """About how many images with losses such as these (N,) reach a p-value of ``alpha``: the smallest number of whole
    repetitions, None where ``most`` images do not."""
    low, high, last = 0, 1, most // len(losses)
    while p_value(losses.repeat(high), max_loss) > alpha:
        if high >= last:
            return None
        low, high = high, min(2 * high, last)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if p_value(losses.repeat(middle), max_loss) > alpha else (low, middle)
    return high * len(losses)


def choose_early_threshold(
    calibration: Calibration, max_loss: float, subgraph_cost: float, full_tail_cost: float, steps: int = 20
) -> float:
    """The early threshold with which the limit costs least, in whatever unit the mean costs of a subgraph and of the
    full tail are given.

    An input that will fall back after all should not run its subgraph first. Choose on images that the threshold is
    not calibrated on: each of its values makes another sequence of thresholds.
    """
    if calibration.early is None:
        return 0.0
    best, best_cost = 0.0, math.inf
    candidates = candidate_thresholds(calibration.confidence)
    for early in torch.quantile(calibration.early.double(), torch.linspace(0, 1, steps + 1).double()).float().tolist():
        stopped = replace(calibration, early_threshold=early)
        limit = max(max_loss, float(stopped.losses(NEVER).double().mean()))
        chosen = choose_threshold(stopped, candidates, min(limit, 1 - 1e-9))
        cost = chosen.subgraph_ran * subgraph_cost + chosen.fallback * full_tail_cost
        if cost < best_cost:
            best, best_cost = early, cost
    return best
