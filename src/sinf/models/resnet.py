"""ResNet for small images (He et al., CVPR 2016; torchvision's key names, 3x3 stem, no first pooling).

``resnet20/32/56`` are the paper's CIFAR networks (three stages of 16, 32 and 64 channels); ``resnet18/34/50`` are its
ImageNet networks (four stages from 64 channels). A 1x1 convolution with batch norm stands where the shape changes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _downsample(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class _Shape(NamedTuple):
    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, ...]
    channels: int


_SHAPES = {
    "resnet20": _Shape(BasicBlock, (3, 3, 3), 16),
    "resnet32": _Shape(BasicBlock, (5, 5, 5), 16),
    "resnet56": _Shape(BasicBlock, (9, 9, 9), 16),
    "resnet18": _Shape(BasicBlock, (2, 2, 2, 2), 64),
    "resnet34": _Shape(BasicBlock, (3, 4, 6, 3), 64),
    "resnet50": _Shape(Bottleneck, (3, 4, 6, 3), 64),
}
NAMES = tuple(_SHAPES)


class ResNet(nn.Module):
    """``(B, 3, H, W) -> (B, classes)`` logits."""

    def __init__(self, shape: _Shape, classes: int, width: float = 1.0) -> None:
        super().__init__()
        channels = max(8, round(shape.channels * width))
        self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.stages: list[str] = []
        stage_width = channels
        for index, blocks in enumerate(shape.blocks, start=1):
            layers = []
            for block in range(blocks):
                stride = 2 if index > 1 and block == 0 else 1
                layers.append(shape.block(channels, stage_width, stride))
                channels = stage_width * shape.block.expansion
            self.stages.append(f"layer{index}")
            self.add_module(f"layer{index}", nn.Sequential(*layers))
            stage_width *= 2
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def make(name: str, classes: int, width: float = 1.0) -> ResNet:
    return ResNet(_SHAPES[name], classes, width)


def infer_options(state: dict[str, Tensor], name: str) -> dict[str, float]:
    """Width multiplier from the shape of the first convolution."""
    first = state.get("conv1.weight")
    return {} if first is None else {"width": first.shape[0] / _SHAPES[name].channels}
