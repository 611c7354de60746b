"""Statistics as plain tensors, so that a step's result can be kept in a file and serve every later budget."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from sinf.statistics.site import SiteStatistics, Statistics
from sinf.statistics.statistic import Statistic

_IMAGES = "images"


def to_tensors(statistics: Statistics, kinds: Collection[type[Statistic]]) -> dict[str, Tensor]:
    """Those of ``kinds`` by ``TYPE-FIELD.TARGET``; weights and what belongs to units are left out."""
    tensors = {_IMAGES: torch.tensor(statistics.images)}
    for target, site in statistics.items():
        for each in (each for each in site if type(each) in kinds):
            tensors |= {_key(type(each), field, target): tensor for field, tensor in each.tensors().items()}
    return tensors


def from_tensors(
    tensors: dict[str, Tensor], weights: dict[str, Tensor], kinds: Iterable[type[Statistic]]
) -> Statistics:
    """The inverse of :func:`to_tensors`: statistics of these ``kinds``; ``weights`` are (O, C, K) by target."""
    images, kinds = int(tensors[_IMAGES]), tuple(kinds)
    statistics = Statistics()
    for target, weight in weights.items():
        each = (kind(**{name: tensors[_key(kind, name, target)] for name in kind.fields()}) for kind in kinds)
        statistics[target] = SiteStatistics(target, weight, images, each)
    statistics.images = images
    return statistics


def _key(kind: type[Statistic], field: str, target: str) -> str:
    return f"{kind.__name__}-{field}.{target}"
