"""Criteria: rules that give every channel an importance, one published rule a file."""

from __future__ import annotations

from sinf.criteria.base import Criterion, GroupStatistics, SiteCriterion, group_statistics
from sinf.criteria.dcs import DCS
from sinf.criteria.energy import Energy
from sinf.criteria.magnitude import L1
from sinf.criteria.random import Random
from sinf.criteria.residual import ResidualEnergy
from sinf.errors import ConfigError

CRITERIA: dict[str, type[Criterion]] = {c.name: c for c in (DCS, ResidualEnergy, Energy, L1, Random)}


def make_criterion(name: str) -> Criterion:
    """The criterion of this name with its default options."""
    if name not in CRITERIA:
        raise ConfigError("no such criterion", got=name, remedy=f"take one of {', '.join(CRITERIA)}")
    return CRITERIA[name]()


__all__ = [
    "CRITERIA",
    "DCS",
    "L1",
    "Criterion",
    "Energy",
    "GroupStatistics",
    "Random",
    "ResidualEnergy",
    "SiteCriterion",
    "group_statistics",
    "make_criterion",
]
