"""How the share of remaining channels falls while a network is trained, and the threshold that it sets.

The share falls from 1 to the target along a cosine; the threshold of layer l is then the ceil(rate C)-th largest of its
channels' mean saliency over the images since the last change (ManiDP, section 3: xi is taken from the sorted mean
saliencies).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sinf.errors import ConfigError


def remaining_rate(progress: float, target: float, ramp: float = 1.0) -> float:
    """Share of channels that stay at ``progress`` (0..1) of the training; the target is reached at ``ramp``."""
    if not 0 < target <= 1:
        raise ConfigError("the share of remaining channels must be in (0, 1]", got=target, remedy="take 0.5")
    if not 0 <= ramp <= 1:
        raise ConfigError("ramp must be in 0..1", got=ramp, remedy="take 1 as in the paper")
    done = 1.0 if ramp == 0 else min(1.0, progress / ramp)
    return target + (1 - target) * (1 + math.cos(math.pi * done)) / 2


def remaining_units(units: int, rate: float) -> int:
    """ceil(rate * units), at least 1; products that miss a whole number by rounding count as that number."""
    return min(units, max(1, math.ceil(rate * units - 1e-6)))


def threshold_at(mean_saliency: Tensor, rate: float) -> Tensor:
    """The ceil(rate C)-th largest of the channels' mean saliency (C,); 0 at a rate of 1, where all stay."""
    if not torch.isfinite(mean_saliency).all():
        raise ConfigError("saliencies must be finite", got="NaN or infinity", remedy="lower the learning rate")
    if rate >= 1:
        return torch.zeros((), dtype=mean_saliency.dtype, device=mean_saliency.device)
    return mean_saliency.sort(descending=True).values[remaining_units(len(mean_saliency), rate) - 1]
