"""No criterion at all: the floor that every other one must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from sinf.criteria.base import Criterion, GroupStatistics


class Random(Criterion):
    """Uniform draws, the same for the same seed and group."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, statistics: GroupStatistics) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + int(statistics.group.units[0]))
        return torch.rand(statistics.group.size, generator=generator)
