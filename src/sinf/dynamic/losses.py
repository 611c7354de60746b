"""What ManiDP adds to the cross entropy (arXiv 2103.05861, section 3).

    loss = mean_i CE_i  +  lambda_c sum_l mean_i( w_i mean_c pi_ilc )  +  lambda_s sum_l ||G(f_l) - G(pi_l)||_F^2 / B^2

    w_i = max(0, 1 - CE_i / (c T))          complexity: hard inputs (a large cross entropy) may keep their channels
    G(v) = rows of v at length 1, times their transpose      similarity: similar features want similar sub-networks

``f_l`` (B, C) are the layer's features before the mask, averaged over positions; ``pi_l`` (B, U) its saliencies; T is
the mean cross entropy of the previous epoch, c = 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def instance_weights(cross_entropy: Tensor, mean_before: float, c: float = 0.5) -> Tensor:
    """``w_i`` (B,) of the complexity loss: 1 for a perfectly known input, 0 for a hard one.

    ``cross_entropy`` (B,) is that of each input; the published code lets gradients through it, and detached it makes
    the weights constants. ``mean_before`` is the T of the formula. Before there is a T (infinity) every weight is 1; at
    a T of 0 every input that has any cross entropy left counts as hard.
    """
    if mean_before <= 0:
        return (cross_entropy <= 0).to(cross_entropy.dtype)
    return (1 - cross_entropy / (c * mean_before)).clamp(0, 1)


def complexity(saliencies: Sequence[Tensor], weights: Tensor, total: int | None = None) -> Tensor:
    """``sum_l mean_i(w_i mean_c pi)``: of saliencies (B, U_l) and instance weights (B,).

    ``total`` is the number of inputs to divide by where these are a share of a larger batch.
    """
    count = len(weights) if total is None else total
    return torch.stack([(weights * saliency.mean(1)).sum() for saliency in saliencies]).sum() / count


def gram(rows: Tensor, eps: float = 1e-12) -> Tensor:
    """``(B, B)`` cosine similarities of ``(B, C)`` rows; a row of zeros is similar to nothing, itself included."""
    norm = rows.norm(dim=1, keepdim=True)
    there = norm > eps
    unit = torch.where(there, rows / torch.where(there, norm, 1.0), 0.0)  # no gradient of a division by nothing
    return unit @ unit.T


def similarity(features: Sequence[Tensor], saliencies: Sequence[Tensor]) -> Tensor:
    """``sum_l ||G(f_l) - G(pi_l)||_F^2 / B^2`` of features (B, C_l) and saliencies (B, U_l)."""
    terms = [(gram(f) - gram(s)).square().mean() for f, s in zip(features, saliencies, strict=True)]
    return torch.stack(terms).sum()


def boosting_penalty(saliencies: Sequence[Tensor], total: int | None = None) -> Tensor:
    """``sum_l mean_i sum_c |g|``: the L1 term of FBS (arXiv 1810.05331)."""
    count = len(saliencies[0]) if total is None else total
    return torch.stack([saliency.abs().sum() for saliency in saliencies]).sum() / count
