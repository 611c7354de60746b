"""Criteria by name. Another one is a class of :class:`sinf.criteria.base.Criterion`, and an entry here.

No torch is imported until a criterion is made, so that the command line can list the names at no cost.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sinf.errors import ConfigError

if TYPE_CHECKING:
    from sinf.criteria.base import Criterion

#: By name: the class, or the module of this package and the class in it.
_TABLE: dict[str, str | type[Criterion]] = {
    "residual": "residual:ResidualEnergy",
    "joint": "joint:JointEnergy",
    "dcs": "dcs:DCS",
    "energy": "energy:Energy",
    "taylor": "taylor:Taylor",
    "taylor-squared": "taylor:SquaredTaylor",
    "fisher": "fisher:FisherRatio",
    "tvs": "tvs:TVSeparation",
    "chip": "chip:CHIP",
    "hrank": "hrank:HRank",
    "activation": "activation:ActivationMean",
    "apoz": "apoz:APoZ",
    "l1": "l1:L1",
    "l2": "l2:L2",
    "bn-scale": "bn_scale:BatchNormScale",
    "fpgm": "fpgm:FPGM",
    "lamp": "lamp:LAMP",
    "random": "random:Random",
}
#: Names of the criteria of this package.
NAMES = tuple(_TABLE)


def register(kind: type[Criterion]) -> None:
    """Let ``build`` and ``prune`` take a criterion by its name.

    Raises:
        ConfigError: another one has that name.
    """
    if kind.name in _TABLE and kind_of(kind.name) is not kind:
        raise ConfigError("every criterion has a name of its own", got=kind.name, remedy="give another name")
    _TABLE[kind.name] = kind


def kind_of(name: str) -> type[Criterion]:
    """The class of a criterion.

    Raises:
        ConfigError: there is no such criterion.
    """
    if name not in _TABLE:
        raise ConfigError("no such criterion", got=name, remedy=f"take one of {', '.join(_TABLE)}")
    found = _TABLE[name]
    if isinstance(found, str):
        module, _, kind = found.partition(":")
        imported: type[Criterion] = getattr(importlib.import_module(f"sinf.criteria.{module}"), kind)
        return imported
    return found


def make_criterion(name: str, **options: Any) -> Criterion:
    """The criterion of this name, with its default options but for those given."""
    return kind_of(name)(**options)


def best_criterion(reconstruct: bool) -> str:
    """The name of the criterion that loses least, where the weights that stay make up for what goes or do not."""
    return "residual" if reconstruct else "joint"
