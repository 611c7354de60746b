"""VGG with batch norm for small images (Simonyan & Zisserman, ICLR 2015; torchvision's layer order and key names).

One linear layer replaces the three of the ImageNet network, as is usual for 32x32 images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CONVS_PER_BLOCK = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_CHANNELS = (64, 128, 256, 512, 512)
NAMES = tuple(_CONVS_PER_BLOCK)


class VGG(nn.Module):
    """``(B, 3, H, W) -> (B, classes)`` logits; H and W at least 32."""

    def __init__(self, convs_per_block: tuple[int, ...], classes: int, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for convs, base in zip(convs_per_block, _CHANNELS, strict=True):
            out = max(8, round(base * width))
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


def infer_options(state: dict[str, Tensor]) -> dict[str, float]:
    """Width multiplier from the shape of the widest convolution, which rounding changes least."""
    widest = max((t.shape[0] for k, t in state.items() if k.startswith("features.") and t.ndim == 4), default=None)
    first = state.get("features.0.weight")
    if widest is None or first is None:
        return {}
    return {"width": _width(first.shape[0], widest)}


def _width(first: int, widest: int) -> float:
    """The multiplier that gives both; any of those that do, if they are given no exact one."""
    exact = first / _CHANNELS[0]
    return exact if max(8, round(_CHANNELS[-1] * exact)) == widest else widest / _CHANNELS[-1]
