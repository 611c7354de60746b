"""VGG with batch norm for small images (Simonyan & Zisserman, ICLR 2015; torchvision's layer order and key names).

One linear layer replaces the three of the ImageNet network, as is usual for 32x32 images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_CONVS_PER_BLOCK = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_CHANNELS = (64, 128, 256, 512, 512)
_LEAST = 8
_CONV_WEIGHT = re.compile(r"features\.\d+\.weight")
NAMES = tuple(_CONVS_PER_BLOCK)


def _channels(base: int, width: float) -> int:
    return max(_LEAST, round(base * width))


class VGG(nn.Module):
    """``(B, 3, H, W) -> (B, classes)`` logits; H and W at least 32."""

    def __init__(self, convs_per_block: tuple[int, ...], classes: int, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for convs, base in zip(convs_per_block, _CHANNELS, strict=True):
            out = _channels(base, width)
            for _ in range(convs):
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def make(name: str, classes: int, width: float = 1.0) -> VGG:
    return VGG(_CONVS_PER_BLOCK[name], classes, width)


def positions(state: Mapping[str, Tensor]) -> dict[str, str]:
    """By name, where convolutions and norms stand: VGGs of other depths have other numbers for the same place."""
    position_of = {}
    for index, place in _convolutions(state).items():
        position_of[f"features.{index}"] = f"block {place[0]} convolution {place[1]}"
        position_of[f"features.{index + 1}"] = f"block {place[0]} norm {place[1]}"
    return position_of


def _convolutions(state: Mapping[str, Tensor]) -> dict[int, tuple[int, int]]:
    """By number in ``features``, the block of each convolution and its number there, both from 0."""
    numbers = sorted(int(k.split(".")[1]) for k, t in state.items() if _CONV_WEIGHT.fullmatch(k) and t.ndim == 4)
    position_of: dict[int, tuple[int, int]] = {}
    block = number = 0
    for index in numbers:
        if position_of:
            pooled = index - 4 in position_of  # a pooling stands between two blocks
            block, number = (block + 1, 0) if pooled else (block, number + 1)
        position_of[index] = (block, number)
    return position_of


def infer_options(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Width multiplier from the shapes of all convolutions: the plain quotient of the first where it gives them all,
    otherwise the middle of what their rounding leaves."""
    widths = [  # of the published network, and found
        (_CHANNELS[min(block, len(_CHANNELS) - 1)], state[f"features.{index}.weight"].shape[0])
        for index, (block, _) in _convolutions(state).items()
    ]
    if not widths:
        return {}
    exact = widths[0][1] / _CHANNELS[0]
    if all(_channels(base, exact) == out for base, out in widths):
        return {"width": exact}
    low = max((out - 0.5) / base if out > _LEAST else 0 for base, out in widths)
    high = min((out + 0.5) / base for base, out in widths)
    return {"width": (low + high) / 2}
