"""Gates: small networks that give every channel of a convolution a saliency, from what the convolution reads.

ManiDP (Tang et al., CVPR 2021, arXiv 2103.05861, section 3): saliency of layer l for the input x,

    pi(x) = ReLU(excite(ReLU(squeeze(mean over positions of the convolution's input))))          (B, U), >= 0

``squeeze`` is linear from C to C/s without bias, ``excite`` linear to U with a bias that starts at 1. A channel stays
where pi >= xi, the layer's threshold, and stays scaled: mask = pi * 1[pi >= xi].

Two baselines share the rest of the machinery: :class:`BoostingGate` (Gao et al., Dynamic Channel Pruning: Feature
Boosting and Suppression, ICLR 2019, arXiv 1810.05331), one linear layer whose largest outputs win; and
:class:`StaticGate`, the same channels for every input.

All that training, sparse execution, ONNX graphs and bundles ask of a gate is a method of :class:`Gate`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sinf.errors import ModelError

if TYPE_CHECKING:
    from sinf.dynamic.operators import Operators

#: What a gate makes of one image: pooled channels (1, k) and which of all these are (k,), None for all -> mask (U,).
Decide = Callable[[Tensor, Tensor | None], Tensor]

MASKS = ("scaled", "binary")
_SMALL = 80  # channels, below which the paper's gates are not squeezed


class Gate(nn.Module):
    """Base of all gates: :meth:`forward` gives the saliency, :meth:`mask` what multiplies the channels.

    A gate of your own says which :meth:`layers` make a saliency of what it pools. Whatever else is asked of a gate has
    an answer here; a gate with another :meth:`pool`, :meth:`saliency` or :meth:`keep` says the same in ONNX
    (``write_pool``, ``write_saliency``, ``write_keep``), where values go by names and the batch is one image.

    ``threshold`` is the xi of its layer; ``binary`` masks are 1 where a channel stays (their gradient passes straight
    through to the saliency), scaled ones are the saliency itself.
    """

    threshold: Tensor

    def __init__(self, binary: bool = False) -> None:
        super().__init__()
        self.binary = binary
        self.register_buffer("threshold", torch.zeros(()))

    # ---- from the input to the mask

    def pool(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C)``, each channel by itself, and zeros to 0; :meth:`saliency` starts from it."""
        return x.mean((2, 3))

    def layers(self) -> tuple[nn.Linear, ...]:
        """Linear layers, a ReLU after each, from what is pooled to the saliency."""
        return ()

    def saliency(self, pooled: Tensor) -> Tensor:
        """``(B, C)`` -> ``(B, U)``, not negative."""
        for layer in self.layers():
            pooled = layer(pooled).relu()
        return pooled

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

    def macs(self) -> int:
        """Multiply-accumulates of one input."""
        return sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))

    # ---- training

    def level(self) -> Tensor | None:
        """``(U,)`` the parameter that is the saliency of every input as long as nothing was trained, and may be set;
        None where saliencies differ from the start."""
        return None

    def vary(self, spread: float, generator: torch.Generator) -> None:
        """Let saliencies that are the same for every input until something is trained differ by about ``spread``."""

    def set_remaining(self, rate: float, mean_saliency: Tensor) -> None:
        """Choose the threshold so that about ``rate`` of the channels stay; see :mod:`sinf.dynamic.schedule`."""
        from sinf.dynamic.schedule import threshold_at

        self.threshold.copy_(threshold_at(mean_saliency, rate))

    def flaw(self) -> str | None:
        """What is wrong with tensors that were loaded, None where a training may have left them so."""
        return None

    # ---- sparse execution

    def fixed(self) -> Tensor | None:
        """``(U,)`` the saliency, where it is the same for every input, which is then not looked at."""
        return None

    def for_one_image(self, channels: int) -> Decide:
        """How one image of ``channels`` (C) is decided, with the threshold as it is now."""

        def decide(pooled: Tensor, there: Tensor | None) -> Tensor:
            if there is not None:
                pooled = pooled.new_zeros(1, channels).index_copy_(1, there, pooled)
            return self.mask(self.saliency(pooled))[0]

        return decide

    # ---- the same in ONNX

    def write_pool(self, graph: Operators, x: str) -> str:
        """``(1, k, H, W)`` -> ``(1, k)``, as :meth:`pool`."""
        return graph.op("ReduceMean", [x, graph.integers(2, 3)], keepdims=0)

    def write_saliency(self, graph: Operators, pooled: str, there: str | None) -> str:
        """``(1, k)`` -> ``(1, U)``, as :meth:`saliency`; ``there`` (k,) are the channels that were pooled, None all.

        Raises:
            ModelError: the gate has no layers, and does not say how its saliency is written.
        """
        if not self.layers():
            raise ModelError(
                "a gate must say how it is written as ONNX",
                got=type(self).__name__,
                remedy="give it layers, or a write_saliency of its own",
            )
        for layer in self.layers():
            pooled, there = graph.op("Relu", [graph.linear(layer, pooled, there)]), None
        return pooled

    def write_keep(self, graph: Operators, saliency: str) -> str:
        """``(1, U)`` -> ``(1, U)`` bool, as :meth:`keep`."""
        return self.write_at_least(graph, saliency, graph.constant(self.threshold.reshape(1)))

    @staticmethod
    def write_at_least(graph: Operators, saliency: str, least: str) -> str:
        """Which saliencies (1, U) are ``least``, one number, or more, and not 0."""
        positive = graph.op("Greater", [saliency, graph.constant(torch.zeros(1))])
        return graph.op("And", [graph.op("GreaterOrEqual", [saliency, least]), positive])


class SaliencyGate(Gate):
    """The gate of ManiDP. ``squeeze`` is its s: by default 2, and 1 where there are fewer than 80 channels."""

    def __init__(self, channels: int, units: int, squeeze: float | None = None, binary: bool = False) -> None:
        super().__init__(binary)
        factor = squeeze if squeeze is not None else (1 if channels < _SMALL else 2)
        self.squeeze = nn.Linear(channels, max(1, round(channels / factor)), bias=False)
        self.excite = nn.Linear(self.squeeze.out_features, units)
        nn.init.zeros_(self.excite.weight)  # every saliency is 1: training starts from the base model's answers
        nn.init.ones_(self.excite.bias)

    def layers(self) -> tuple[nn.Linear, ...]:
        return self.squeeze, self.excite

    def level(self) -> Tensor:
        return self.excite.bias

    def vary(self, spread: float, generator: torch.Generator) -> None:
        self.excite.weight.copy_(spread * torch.randn(self.excite.weight.shape, generator=generator))

    def for_one_image(self, channels: int) -> Decide:
        """In few steps: relu(y) and then "at least xi" is one comparison, "more than the number just below xi"."""
        below = torch.nextafter(self.threshold.cpu(), torch.tensor(-1.0))
        return partial(self._decide, max(0.0, float(below)))

    def _decide(self, floor: float, pooled: Tensor, there: Tensor | None) -> Tensor:
        squeeze, excite = self.squeeze.weight, self.excite
        hidden = torch.mv(squeeze if there is None else squeeze.index_select(1, there), pooled[0]).relu_()
        mask = torch.threshold_(torch.addmv(excite.bias, excite.weight, hidden), floor, 0.0)
        return mask.sign_() if self.binary else mask


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

    def write_pool(self, graph: Operators, x: str) -> str:
        return super().write_pool(graph, graph.op("Abs", [x]))

    def layers(self) -> tuple[nn.Linear, ...]:
        return (self.excite,)

    def keep(self, saliency: Tensor) -> Tensor:
        winners = saliency.topk(int(self.remaining), 1).indices
        return torch.zeros_like(saliency, dtype=torch.bool).scatter_(1, winners, True) & (saliency > 0)

    def set_remaining(self, rate: float, mean_saliency: Tensor) -> None:
        from sinf.dynamic.schedule import remaining_units

        self.remaining.fill_(remaining_units(len(mean_saliency), rate))

    def flaw(self) -> str | None:
        return None if 1 <= int(self.remaining) <= self.excite.out_features else f"{int(self.remaining)} remain"

    def write_keep(self, graph: Operators, saliency: str) -> str:
        best = graph.op("TopK", [saliency, graph.integers(int(self.remaining))], outputs=2)
        return self.write_at_least(graph, saliency, graph.op("ReduceMin", [best], keepdims=1))


class StaticGate(Gate):
    """The same channels for every input: those of most importance (U,), the L1 norm of a unit's filters."""

    importance: Tensor

    def __init__(self, importance: Tensor) -> None:
        super().__init__(binary=True)
        self.register_buffer("importance", importance.detach().float() + 1e-12)

    def fixed(self) -> Tensor:
        return self.importance

    def saliency(self, pooled: Tensor) -> Tensor:
        return self.importance.expand(len(pooled), -1)

    def set_remaining(self, rate: float, mean_saliency: Tensor) -> None:
        super().set_remaining(rate, self.importance)
