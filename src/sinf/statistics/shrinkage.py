"""Second moments from few rows.

With fewer rows than channels, some channels seem to follow exactly from others, and directions seem never to occur: all
by chance. Oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero, Shrinkage Algorithms for MMSE Covariance
Estimation, 2010) moves the estimate towards one without correlations, by as much as the number of rows leaves in doubt.
It is applied to correlations, so that every channel keeps its own scale.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shrunk(moments: Tensor, rows: int) -> Tensor:
    """``(C, C)`` float64: second moments (or a covariance) over ``rows`` rows, with the same diagonal."""
    moments = moments.double()
    size = len(moments)
    scale = torch.diagonal(moments).clamp(min=0).sqrt()
    across = torch.outer(scale, scale)
    correlation = torch.where(across > 0, moments / across.clamp(min=1e-300), torch.zeros_like(moments))
    share = _share(float(correlation.square().sum()), float(torch.diagonal(correlation).sum()), size, rows)
    return (1 - share) * moments + share * torch.diag(torch.diagonal(moments))


def _share(square: float, trace: float, size: int, rows: int) -> float:
    """From tr R^2 and tr R of a correlation matrix R (size, size)."""
    if size < 2 or rows < 1:
        return 0.0 if rows else 1.0
    spread = square - trace**2 / size
    if spread <= 0:
        return 1.0  # no correlation but that of chance
    return min(1.0, ((1 - 2 / size) * square + trace**2) / ((rows + 1 - 2 / size) * spread))
