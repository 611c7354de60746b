"""L1 norm of the filters that write a channel (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from sinf.criteria.base import Criterion, GroupStatistics


class L1(Criterion):
    """Relative to the mean of each layer, so that layers compare; needs no images."""

    name = "l1"

    def score(self, statistics: GroupStatistics) -> Tensor:
        total = torch.zeros(statistics.group.size)
        for writer in statistics.writers:
            mine = writer.unit >= 0
            norms = writer.weight.flatten(1).abs().sum(1)
            total.index_add_(0, writer.unit[mine], (norms / norms.mean().clamp(min=1e-30))[mine])
        return total
