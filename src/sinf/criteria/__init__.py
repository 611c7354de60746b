"""Criteria: rules that give every channel an importance, one published rule a file.

A criterion is made by its name (:func:`make_criterion`) or from its class. This module itself imports no torch, so
that the command line can list the names at no cost.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sinf.errors import ConfigError

if TYPE_CHECKING:
    from sinf.criteria.activation import ActivationMean
    from sinf.criteria.apoz import APoZ
    from sinf.criteria.base import Criterion, FilterCriterion, GroupStatistics, SiteCriterion, group_statistics
    from sinf.criteria.bn_scale import BatchNormScale
    from sinf.criteria.chip import CHIP
    from sinf.criteria.dcs import DCS
    from sinf.criteria.energy import Energy
    from sinf.criteria.fisher import FisherRatio
    from sinf.criteria.fpgm import FPGM
    from sinf.criteria.hrank import HRank
    from sinf.criteria.joint import JointEnergy
    from sinf.criteria.l1 import L1
    from sinf.criteria.l2 import L2
    from sinf.criteria.lamp import LAMP
    from sinf.criteria.random import Random
    from sinf.criteria.residual import ResidualEnergy
    from sinf.criteria.taylor import SquaredTaylor, Taylor
    from sinf.criteria.tvs import TVSeparation

    CRITERIA: dict[str, type[Criterion]]

#: The class of every criterion, by the name that options and tables use.
_CLASSES = {
    "residual": "ResidualEnergy",
    "joint": "JointEnergy",
    "dcs": "DCS",
    "energy": "Energy",
    "taylor": "Taylor",
    "taylor-squared": "SquaredTaylor",
    "fisher": "FisherRatio",
    "tvs": "TVSeparation",
    "chip": "CHIP",
    "hrank": "HRank",
    "activation": "ActivationMean",
    "apoz": "APoZ",
    "l1": "L1",
    "l2": "L2",
    "bn-scale": "BatchNormScale",
    "fpgm": "FPGM",
    "lamp": "LAMP",
    "random": "Random",
}
#: Names of all criteria.
NAMES = tuple(_CLASSES)

_HOMES = {
    "APoZ": "apoz",
    "ActivationMean": "activation",
    "BatchNormScale": "bn_scale",
    "CHIP": "chip",
    "Criterion": "base",
    "DCS": "dcs",
    "Energy": "energy",
    "FPGM": "fpgm",
    "FilterCriterion": "base",
    "FisherRatio": "fisher",
    "GroupStatistics": "base",
    "HRank": "hrank",
    "JointEnergy": "joint",
    "L1": "l1",
    "L2": "l2",
    "LAMP": "lamp",
    "Random": "random",
    "ResidualEnergy": "residual",
    "SiteCriterion": "base",
    "SquaredTaylor": "taylor",
    "TVSeparation": "tvs",
    "Taylor": "taylor",
    "group_statistics": "base",
}

__all__ = [
    "CHIP",
    "CRITERIA",
    "DCS",
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "NAMES",
    "APoZ",
    "ActivationMean",
    "BatchNormScale",
    "Criterion",
    "Energy",
    "FilterCriterion",
    "FisherRatio",
    "GroupStatistics",
    "HRank",
    "JointEnergy",
    "Random",
    "ResidualEnergy",
    "SiteCriterion",
    "SquaredTaylor",
    "TVSeparation",
    "Taylor",
    "best_criterion",
    "group_statistics",
    "make_criterion",
]


def best_criterion(reconstruct: bool) -> str:
    """The name of the criterion that loses least, where the weights that stay make up for what goes or do not."""
    return "residual" if reconstruct else "joint"


def make_criterion(name: str, **options: Any) -> Criterion:
    """The criterion of this name, with its default options but for those given."""
    if name not in _CLASSES:
        raise ConfigError("no such criterion", got=name, remedy=f"take one of {', '.join(NAMES)}")
    made: Criterion = __getattr__(_CLASSES[name])(**options)
    return made


def __getattr__(name: str) -> Any:
    """Import a class when it is first used."""
    if name == "CRITERIA":
        return {name: __getattr__(kind) for name, kind in _CLASSES.items()}
    if name not in _HOMES:
        raise AttributeError(f"module 'sinf.criteria' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sinf.criteria.{_HOMES[name]}"), name)
