"""What comes out of static pruning."""

from __future__ import annotations

from dataclasses import dataclass

from sinf.compress.budget import Budget, Schedule
from sinf.measure.delivery import ExpectedLoss
from sinf.measure.timing import Latency
from sinf.models import BaseModel


@dataclass(frozen=True, kw_only=True)
class Pruned(BaseModel):
    """A smaller model: by which method and rule it was made, its expected loss, and its time beside the base model's at
    every batch size of the limits (none of both without limits)."""

    method: str
    rule: Schedule | Budget
    expected: ExpectedLoss | None = None
    times: tuple[Latency, ...] = ()
