"""Gates: small networks that give every channel of a convolution a saliency, from what the convolution reads.

ManiDP (Tang et al., CVPR 2021, arXiv 2103.05861, section 3): saliency of layer l for the input x,

    pi(x) = ReLU(excite(ReLU(squeeze(mean over positions of the convolution's input))))          (B, U), >= 0

``squeeze`` is linear from C to C/s without bias, ``excite`` linear to U with a bias that starts at 1. A channel stays
where pi >= xi, the layer's threshold, and stays scaled: mask = pi * 1[pi >= xi].

Two baselines share the rest of the machinery: :class:`BoostingGate` (Gao et al., Dynamic Channel Pruning: Feature
Boosting and Suppression, ICLR 2019, arXiv 1810.05331), one linear layer whose largest outputs win; and
:class:`StaticGate`, the same channels for every input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MASKS = ("scaled", "binary")
_SMALL = 80  # channels, below which the paper's gates are not squeezed


class Gate(nn.Module):
    """Base of all gates: :meth:`forward` gives the saliency, :meth:`mask` what multiplies the channels.

    ``threshold`` is the xi of its layer; ``binary`` masks are 1 where a channel stays (their gradient passes straight
    through to the saliency), scaled ones are the saliency itself.
    """

    threshold: Tensor

    def __init__(self, binary: bool = False) -> None:
        super().__init__()
        self.binary = binary
        self.register_buffer("threshold", torch.zeros(()))

    def pool(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C)``, what :meth:`saliency` starts from."""
        return x.mean((2, 3))

    def saliency(self, pooled: Tensor) -> Tensor:
        """``(B, C)`` -> ``(B, U)``, not negative."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.saliency(self.pool(x).to(self.threshold.dtype))

    def keep(self, saliency: Tensor) -> Tensor:
        """``(B, U)`` bool: what stays. A saliency of 0 would multiply by 0, so it never stays."""
        return (saliency >= self.threshold) & (saliency > 0)

    def mask(self, saliency: Tensor) -> Tensor:
        """``(B, U)``: pi * 1[pi >= xi], or 1[pi >= xi]."""
        kept = self.keep(saliency).to(saliency.dtype)
        if self.binary:
            return kept + (saliency - saliency.detach()) if saliency.requires_grad else kept
        return saliency * kept

    def set_remaining(self, rate: float, mean_saliency: Tensor) -> None:
        """Choose the threshold so that about ``rate`` of the channels stay; see :mod:`sinf.dynamic.schedule`."""
        from sinf.dynamic.schedule import threshold_at

        self.threshold.copy_(threshold_at(mean_saliency, rate))

    def macs(self) -> int:
        """Multiply-accumulates of one input."""
        return sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))


class SaliencyGate(Gate):
    """The gate of ManiDP. ``squeeze`` is its s: by default 2, and 1 where there are fewer than 80 channels."""

    def __init__(self, channels: int, units: int, squeeze: float | None = None, binary: bool = False) -> None:
        super().__init__(binary)
        factor = squeeze if squeeze is not None else (1 if channels < _SMALL else 2)
        self.squeeze = nn.Linear(channels, max(1, round(channels / factor)), bias=False)
        self.excite = nn.Linear(self.squeeze.out_features, units)
        nn.init.zeros_(self.excite.weight)  # every saliency is 1: training starts from the base model's answers
        nn.init.ones_(self.excite.bias)

    def saliency(self, pooled: Tensor) -> Tensor:
        return self.excite(self.squeeze(pooled).relu()).relu()


class BoostingGate(Gate):
    """The gate of FBS: saliency = ReLU(linear(mean of |x|)), of which the ``ceil(rate U)`` largest stay, scaled."""

    remaining: Tensor

    def __init__(self, channels: int, units: int, binary: bool = False) -> None:
        super().__init__(binary)
        self.excite = nn.Linear(channels, units)
        nn.init.kaiming_normal_(self.excite.weight)
        nn.init.ones_(self.excite.bias)
        self.register_buffer("remaining", torch.tensor(units))

    def pool(self, x: Tensor) -> Tensor:
        return x.abs().mean((2, 3))

    def saliency(self, pooled: Tensor) -> Tensor:
        return self.excite(pooled).relu()

    def keep(self, saliency: Tensor) -> Tensor:
        winners = saliency.topk(int(self.remaining), 1).indices
        return torch.zeros_like(saliency, dtype=torch.bool).scatter_(1, winners, True) & (saliency > 0)

    def set_remaining(self, rate: float, mean_saliency: Tensor) -> None:
        from sinf.dynamic.schedule import remaining_units

        self.remaining.fill_(remaining_units(len(mean_saliency), rate))


class StaticGate(Gate):
    """The same channels for every input: those of most importance (U,), the L1 norm of a unit's filters."""

    importance: Tensor

    def __init__(self, importance: Tensor) -> None:
        super().__init__(binary=True)
        self.register_buffer("importance", importance.detach().float() + 1e-12)

    def saliency(self, pooled: Tensor) -> Tensor:
        return self.importance.expand(len(pooled), -1)

    def set_remaining(self, rate: float, mean_saliency: Tensor) -> None:
        super().set_remaining(rate, self.importance)
