"""The threshold of the feature router: as much routing as a loss of accuracy allows, with a guarantee if asked for.

The loss of an image is 1{ours wrong} - 1{base wrong}, of the whole pipeline: a confident route into a subgraph that
then fails counts (a predictor's confidence alone says nothing about the specialist behind it, Jitkrittum et al., arXiv
2307.02764). The guarantee is Learn-then-Test (Angelopoulos et al., arXiv 2110.01052): thresholds are tested from the
safest down, each by a p-value for "the expected loss is above the limit", and the last one accepted before the first
refusal is taken; with probability at least ``confidence`` over the calibration images its expected loss is within the
limit. The p-value is that of a betting martingale (Waudby-Smith & Ramdas, arXiv 2010.09686), valid for any bounded
loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sinf.errors import ConfigError
from sinf.routing import early_floor

NEVER = 2.0  # a threshold that no confidence reaches: every input falls back


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

    def tried(self, threshold: float) -> Tensor:
        """``(N,)`` whether the subgraph runs. Where little confidence is asked for, less is asked for it to run."""
        if self.early is None:
            return self.confidence >= threshold
        return self.early >= early_floor(self.early_threshold, threshold)

    def routed(self, threshold: float) -> Tensor:
        """``(N,)`` whether the subgraph's answer stands."""
        return self.tried(threshold) & (self.confidence >= threshold)

    def losses(self, threshold: float) -> Tensor:
        """``(N,)`` in {-1, 0, 1}."""
        ours = torch.where(self.routed(threshold), self.routed_right, self.fallback_right)
        return self.base_right.float() - ours.float()


@dataclass(frozen=True)
class Threshold:
    """Confidence below which an input falls back, ``early`` before its subgraph runs, and what both do to the
    calibration images: loss, shares that fall back and that run a subgraph. ``confidence`` is None without a
    guarantee."""

    value: float
    early: float
    max_loss: float
    loss: float
    fallback: float
    tried: float
    confidence: float | None


def choose_threshold(
    calibration: Calibration, max_loss: float, confidence: float | None = None, steps: int = 100
) -> Threshold:
    """The lowest threshold whose loss is at most ``max_loss`` (a fraction: 0.01 is one point).

    With ``confidence`` (0.95, say) the limit holds for new images with that probability; without, for the calibration
    images only.

    Raises:
        ConfigError: an option is out of range, or even with every input in the full tail the loss is too large.
    """
    if not 0 <= max_loss < 1:
        raise ConfigError("max_loss must be in [0, 1)", got=max_loss, remedy="take 0.01 for one point")
    if confidence is not None and not 0 < confidence < 1:
        raise ConfigError("confidence must be in (0, 1)", got=confidence, remedy="take 0.95")
    levels = torch.quantile(calibration.confidence.double(), torch.linspace(1, 0, steps + 1, dtype=torch.float64))
    candidates = [NEVER, *levels.float().tolist()]  # exact in the precision that they are compared in
    accepted: float | None = None
    for threshold in candidates:
        losses = calibration.losses(threshold)
        if confidence is None:
            if float(losses.double().mean()) <= max_loss:
                accepted = threshold  # the lowest that holds: the loss need not grow evenly
        elif p_value(losses, max_loss) <= 1 - confidence:
            accepted = threshold
        else:
            break
    if accepted is None:
        raise ConfigError(
            f"no threshold keeps the loss within {100 * max_loss:g} points"
            + (f" with confidence {confidence:g}" if confidence else ""),
            got=f"{100 * float(calibration.losses(NEVER).mean()):.2f} points with every input in the full tail",
            remedy="raise max_loss, prune extractor and fallback less, or take more calibration images",
        )
    return Threshold(
        accepted,
        calibration.early_threshold,
        max_loss,
        float(calibration.losses(accepted).mean()),
        1 - float(calibration.routed(accepted).float().mean()),
        float(calibration.tried(accepted).float().mean()),
        confidence,
    )


def choose_early_threshold(
    calibration: Calibration, max_loss: float, subgraph_cost: float, fallback_cost: float, steps: int = 20
) -> float:
    """The early threshold with which the limit costs least, in whatever unit the mean costs of a subgraph and of the
    full tail are given.

    An input that will fall back after all should not run its subgraph first. Choose on images that the threshold is
    not calibrated on: each of its values makes another sequence of thresholds.
    """
    if calibration.early is None:
        return 0.0
    best, best_cost = 0.0, math.inf
    for early in torch.quantile(calibration.early.double(), torch.linspace(0, 1, steps + 1).double()).float().tolist():
        tried = replace(calibration, early_threshold=early)
        limit = max(max_loss, float(tried.losses(NEVER).double().mean()))
        chosen = choose_threshold(tried, min(limit, 1 - 1e-9))
        cost = chosen.tried * subgraph_cost + chosen.fallback * fallback_cost
        if cost < best_cost:
            best, best_cost = early, cost
    return best


def p_value(losses: Tensor, limit: float) -> float:
    """Valid p-value for "the mean loss is above ``limit``", from losses in [-1, 1] in their (exchangeable) order."""
    x = (losses.double() + 1) / 2
    mean_0 = (limit + 1) / 2
    n = len(x)
    count = torch.arange(1, n + 1, dtype=torch.float64)
    mean = (0.5 + x.cumsum(0)) / (count + 1)
    variance = (0.25 + ((x - mean) ** 2).cumsum(0)) / (count + 1)
    before = torch.cat([torch.tensor([0.25], dtype=torch.float64), variance[:-1]])  # a bet must not see its own outcome
    bet = torch.sqrt(2 * math.log(1 / 0.05) / (n * before)).clamp(max=0.5 / max(1 - mean_0, 1e-9))
    log_wealth = torch.log1p(bet * (mean_0 - x)).cumsum(0)
    return min(1.0, math.exp(-float(log_wealth.max())))
