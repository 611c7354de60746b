"""Criteria by name. Another one is a class of :class:`sinf.criteria.base.Criterion`, and an entry here.

No torch is imported until a criterion is made, so that the command line can list the names at no cost.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sinf.registry import Registry

if TYPE_CHECKING:
    from sinf.criteria.base import Criterion

#: A class, or the module of this package and the class in it.
Entry = str | type["Criterion"]


def _kind(entry: Entry) -> type[Criterion]:
    if not isinstance(entry, str):
        return entry
    module, _, kind = entry.partition(":")
    imported: type[Criterion] = getattr(importlib.import_module(f"sinf.criteria.{module}"), kind)
    return imported


_TABLE: Registry[Entry] = Registry("criterion", _kind, unknown="no such criterion")
_TABLE |= {
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
    _TABLE.register(kind.name, kind)


def kind_of(name: str) -> type[Criterion]:
    """The class of a criterion.

    Raises:
        ConfigError: there is no such criterion.
    """
    return _kind(_TABLE.find(name))


def make_criterion(name: str, **options: Any) -> Criterion:
    """The criterion of this name, with its default options but for those given."""
    return kind_of(name)(**options)


def best_criterion(reconstruct: bool) -> str:
    """The name of the criterion that loses least, where the weights that stay make up for what goes or do not."""
    return "residual" if reconstruct else "joint"
