"""Networks of the papers that sinf does not have: the CIFAR ResNets of He et al. with shortcuts without parameters.

    PYTHONPATH=benchmarks sinf dynamic train networks:resnet20 --weights resnet20_cifar10.safetensors ...

Weights trained by others have these shortcuts (option A: every second position, and zeros for new channels).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sinf.models import resnet


class Shortcut(nn.Module):
    """``(B, C, H, W) -> (B, out, H/2, W/2)``: every second position, with as many zero channels before as after."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.before = (out - channels) // 2
        self.after = out - channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def _without_parameters(name: str, classes: int) -> nn.Module:
    model = resnet.make(name, classes)
    for stage in model.stages:
        for block in getattr(model, stage):
            if block.downsample is not None:
                conv = block.downsample[0]
                block.downsample = Shortcut(conv.in_channels, conv.out_channels)
    return model


def resnet20(classes: int = 10) -> nn.Module:
    return _without_parameters("resnet20", classes)


def resnet32(classes: int = 10) -> nn.Module:
    return _without_parameters("resnet32", classes)


def resnet56(classes: int = 10) -> nn.Module:
    return _without_parameters("resnet56", classes)
