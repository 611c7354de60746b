"""Networks of papers that sinf does not have: the CIFAR ResNets of He et al. with shortcuts without parameters, and
DenseNet-BC; and the compact network of timm that was trained for these scripts.

    PYTHONPATH=benchmarks sinf dynamic train networks:resnet20 --weights resnet20_cifar10.safetensors ...

Weights trained by others have these shortcuts (option A: every second position, and zeros for new channels).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinf.models import BaseModel, load_model, resnet

COMPACT = "mobilenetv3_small"
COMPACT_WEIGHTS = Path(__file__).parent / "weights" / f"{COMPACT}_cifar100.safetensors"
FEED: dict[str, Any] = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}


def opened(name: str, weights: Path) -> BaseModel:
    """A reference network, or the compact one, for CIFAR-100."""
    if name != COMPACT:
        return load_model(name, weights=weights)
    return load_model("timm:mobilenetv3_small_100", weights=weights, size=(3, 64, 64), **FEED)


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


class _Dense(nn.Module):
    """A bottleneck layer whose ``growth`` channels come after what it reads."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


def densenet(classes: int = 100, depth: int = 100, growth: int = 12) -> nn.Module:
    """DenseNet-BC for 32x32 images (Huang et al., arXiv 1608.06993), with the same random weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _densenet(classes, depth, growth)


def _densenet(classes: int, depth: int, growth: int) -> nn.Module:
    channels, layers = 2 * growth, [nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)]
    for block in range(3):
        for _ in range((depth - 4) // 6):
            layers.append(_Dense(channels, growth))
            channels += growth
        if block < 2:
            half = channels // 2
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, half, 1, bias=False), nn.AvgPool2d(2)]
            channels = half
    head = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers, *head)
