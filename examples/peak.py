"""A method of dynamic pruning of one's own: gates that look at the largest value of a channel instead of its mean.

    import peak                            # registers it
    train(model, images, "work", TrainConfig(Target(macs=0.5), GateConfig("peak")))

On the command line, and to open a bundle of it, this file is imported first:

    python -c "import peak, sinf.cli; sinf.cli.main()" dynamic train MODEL --method peak ...

A small object that fills few positions hardly moves a mean, but its maximum. Saliency and mask are

    pi(x) = ReLU(W max over positions of |x| + b),   mask = pi * 1[pi >= xi]

and the loss adds a multiple of the mean saliency, so that channels which an input does not need fall below xi.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sinf.dynamic.gates import Gate
from sinf.dynamic.methods import Method, Trained, Weights, register
from sinf.dynamic.operators import Operators


class PeakGate(Gate):
    """Of one linear layer, whose weights start at 0: at first a saliency is the bias b, for every input."""

    def __init__(self, channels: int, units: int, binary: bool = False) -> None:
        super().__init__(binary)
        self.linear = nn.Linear(channels, units)
        nn.init.zeros_(self.linear.weight)
        nn.init.ones_(self.linear.bias)

    def pool(self, x: Tensor) -> Tensor:
        return x.abs().amax((2, 3))

    def write_pool(self, graph: Operators, x: str) -> str:
        return graph.op("ReduceMax", [graph.op("Abs", [x]), graph.integers(2, 3)], keepdims=0)

    def layers(self) -> tuple[nn.Linear, ...]:
        return (self.linear,)

    def level(self) -> Tensor:
        return self.linear.bias

    def vary(self, spread: float, generator: torch.Generator) -> None:
        self.linear.weight.copy_(spread * torch.randn(self.linear.weight.shape, generator=generator))


class Peak(Method):
    name = "peak"
    around_sums = False  # saliencies grow with what they multiply, and would feed themselves
    scales_thresholds = True

    def gate(self, channels: int, importance: Tensor, squeeze: float | None, binary: bool) -> Gate:
        return PeakGate(channels, len(importance), binary)

    def loss(self, batch: Trained, weights: Weights) -> Tensor:
        """``complexity`` times the mean saliency of an image, summed over its layers."""
        return weights.complexity * sum(s.mean(1).sum() for s in batch.saliencies) / batch.total


register(Peak())
