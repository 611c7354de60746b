"""Statistics as plain tensors, so that a step's result can be kept in a file and serve every later budget."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinf.statistics.kernel_rows import KernelRows
from sinf.statistics.site import SiteStatistics, Statistics
from sinf.statistics.sums import SUMS

_IMAGES = "images"


def to_tensors(statistics: Statistics) -> dict[str, Tensor]:
    """By ``SUM.TARGET``, parts of kernel rows by ``kernel_rows-PART.TARGET``; weights are left out."""
    tensors = {_IMAGES: torch.tensor(statistics.images)}
    for target, site in statistics.items():
        for name, value in site.sums.items():
            parts = {f"{name}-{part}": x for part, x in vars(value).items()} if name == "kernel_rows" else {name: value}
            tensors |= {f"{key}.{target}": tensor for key, tensor in parts.items()}
    return tensors


def from_tensors(tensors: dict[str, Tensor], weights: dict[str, Tensor]) -> Statistics:
    """The inverse of :func:`to_tensors`; ``weights`` are (O, C, K) by target."""
    images = int(tensors[_IMAGES])
    found = Statistics({target: SiteStatistics(target, weight, images) for target, weight in weights.items()})
    found.images = images
    for target, site in found.items():
        sums: dict[str, Any] = {name: tensors[f"{name}.{target}"] for name in SUMS if f"{name}.{target}" in tensors}
        if f"kernel_rows-gram.{target}" in tensors:
            parts = ("gram", "total", "products", "counts")
            sums["kernel_rows"] = KernelRows(*(tensors[f"kernel_rows-{part}.{target}"] for part in parts))
        site.sums = sums
    return found
