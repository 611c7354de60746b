"""What comes out of static pruning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sinf.compress.budget import Budget, Schedule
from sinf.errors import VerificationError
from sinf.measure.delivery import ExpectedLoss
from sinf.measure.timing import Latency
from sinf.models import BaseModel
from sinf.models.described import difference

_CLOSE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Pruned(BaseModel):
    """A smaller model: by which method and rule it was made, its expected loss, and its time beside the base model's at
    every batch size of the limits (none of both without limits)."""

    method: str
    rule: Schedule | Budget
    expected: ExpectedLoss | None = None
    times: tuple[Latency, ...] = ()

    @torch.no_grad()
    def require_answers_of(self, graph: nn.Module, x: Tensor) -> None:
        """Compare with the network that this describes, which was checked against the masked base model, on ``x``
        (N, C, H, W), normalised.

        Raises:
            VerificationError: they differ by more than rounding.
        """
        apart = difference(graph(x.clone()), self.module(x.clone()))
        if not apart <= _CLOSE:
            raise VerificationError(
                "the plain model must answer as the pruned network does",
                got=f"a relative difference of {apart:.2g}",
                remedy="report it with its name",
            )
