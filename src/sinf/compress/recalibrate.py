"""Batch-norm statistics of a smaller network: what its layers now see, instead of what the base network's saw."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running mean and variance of every batch norm by those over ``batches`` (B, C, H, W), all layers at
    once, and return how many norms there are.

    ``network`` is changed in place and must not share its norms with another one. Images count the same, however they
    come in batches; a batch of a single image has no variance and is left out.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    images = 0
    try:
        for x in batches if norms else ():
            if len(x) > 1:
                images += len(x)
                for norm in norms:
                    norm.momentum = len(x) / images  # a mean over images
                network(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    return len(norms)
