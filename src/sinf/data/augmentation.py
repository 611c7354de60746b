"""Views of images that networks learn from: cropped, flipped, and joined in pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def augment(pixels: Tensor, generator: torch.Generator, padding: int | None = None) -> Tensor:
    """Random crop after padding with grey (an eighth of the height by default), and random flip, of ``(B, H, W, C)``
    uint8 images."""
    batch, height, width, _ = pixels.shape
    padding = height // 8 if padding is None else padding
    padded = torch.nn.functional.pad(pixels, (0, 0, padding, padding, padding, padding), value=124)

    def draw(limit: int) -> Tensor:
        return torch.randint(limit, (batch, 1), generator=generator, device=generator.device).to(pixels.device)

    top, left, flip = draw(2 * padding + 1), draw(2 * padding + 1), draw(2)
    rows = top + torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device).expand(batch, width)
    columns = left + torch.where(flip == 1, width - 1 - columns, columns)
    images = torch.arange(batch, device=pixels.device)[:, None, None]
    return padded[images, rows[:, :, None], columns[:, None, :]]


def join_pairs(images: Tensor, generator: torch.Generator) -> Tensor:
    """CutMix (Yun et al., arXiv 1905.04899): every image of ``(B, C, H, W)`` gets a rectangle of another one, the same
    for all of a batch and at most half of an image."""
    batch, _, height, width = images.shape
    side = (0.5 * float(torch.rand(1, generator=generator))) ** 0.5
    rows, columns = int(side * height), int(side * width)
    top = int(torch.randint(height - rows + 1, (1,), generator=generator))
    left = int(torch.randint(width - columns + 1, (1,), generator=generator))
    other = images[torch.randperm(batch, generator=generator)]
    place = (..., slice(top, top + rows), slice(left, left + columns))
    joined = images.clone()
    joined[place] = other[place]
    return joined
