"""MACs of a dynamically pruned network, input by input."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sinf.graph.cost import MacCount


def macs_of(count: MacCount, keep: Tensor) -> Tensor:
    """``(B,)`` float64 MACs of inputs whose kept units are ``keep`` (B, units), as :meth:`MacCount.total` counts; bool,
    or shares that are kept."""
    total = torch.zeros(len(keep), dtype=torch.float64)
    for target, module, positions in count.nodes:
        weight = module.weight
        out = torch.full((len(keep),), float(weight.shape[0]), dtype=torch.float64)
        into = torch.full_like(out, float(weight.shape[1]))
        written, read = count.coupling.writes.get(target), count.coupling.reads.get(target)
        if written is not None and read is not None:
            out = keep[:, written.units].sum(1).double()
            if getattr(module, "groups", 1) == 1:
                into = keep[:, read.units].sum(1).double() * read.repeat
        total += positions * out * into
    return total


@dataclass(frozen=True)
class Spread:
    """How MACs (or anything else) are distributed over inputs: mean, standard deviation, and percentiles."""

    mean: float
    std: float
    p5: float
    median: float
    p95: float

    @staticmethod
    def of(values: Tensor) -> Spread:
        quantiles = values.double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
        return Spread(float(values.double().mean()), float(values.double().std(correction=0)), *quantiles.tolist())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
