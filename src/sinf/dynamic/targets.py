"""What a training aims at: a share of channels as in the paper, of the base model's MACs, or of its measured time.

A share of MACs becomes a share of channels, the same in every layer, by counting; because inputs do not all keep the
same channels the count is corrected by what is observed. A share of time becomes one by measuring, before the training
begins. At the end thresholds are set on training images (:mod:`sinf.dynamic.calibrate`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinf.dynamic.latency import rate_for_latency
from sinf.dynamic.network import GatedNetwork
from sinf.dynamic.recipe import Target as Target
from sinf.dynamic.schedule import remaining_rate
from sinf.errors import ConfigError
from sinf.training.distributed import Group

_STEPS = 30
_GAIN = 0.5


class Controller:
    """Turns the progress of a training into the share of channels that thresholds are set by."""

    def __init__(self, target: Target, network: GatedNetwork) -> None:
        self.target, self.network = target, network
        self.shift, self.planned = 0.0, 1.0
        self.final = 1.0 if target.channels is None else target.channels
        if target.macs is not None:
            least = expected_macs(network, 0.0)
            if target.macs < least:
                remedy = f"take at least {least:.3f}, or gate more convolutions"
                raise ConfigError("so few MACs cannot be reached by gates", got=target.macs, remedy=remedy)
            self.final = rate_for(network, target.macs)

    def measure(self, share: float, images: Tensor, group: Group) -> None:
        """Find the share of channels that takes this share of the time, on ``images`` (N, C, H, W)."""
        mine = rate_for_latency(self.network, images, share) if group.rank == 0 else 0.0
        self.final = float(group.total(torch.tensor(mine, dtype=torch.float64)))

    def next_rate(self, progress: float, ramp: float, macs: float) -> float:
        """The rate from here on; ``macs`` is the share observed since the last call."""
        if self.target.macs is not None and self.planned < 1:
            self.shift += _GAIN * (self.planned - rate_for(self.network, macs))
        self.planned = remaining_rate(progress, self.final, ramp)
        if self.planned >= 1:
            return 1.0
        return min(1.0, max(1e-3, self.planned + self.shift))

    def state(self) -> Tensor:
        return torch.tensor([self.shift, self.planned, self.final], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        self.shift, self.planned, self.final = state.tolist()


def expected_macs(network: GatedNetwork, rate: float) -> float:
    """Share of the base model's MACs when this share of every gated convolution's channels stays."""
    keep = torch.ones(1, network.coupling.units, dtype=torch.float64)
    for site in network.sites:
        keep[:, site.units] = rate
    return float(network.macs_of(keep)) / network.base_macs


def rate_for(network: GatedNetwork, macs: float) -> float:
    """The inverse of :func:`expected_macs`."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_macs(network, middle) < macs else (low, middle)
    return high
