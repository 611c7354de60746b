"""Sums over images, by site and by unit, and how those of two sets of images become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: How many images a sample keeps at most: enough for a linear classifier, little beside the network.
SAMPLE = 4096


@dataclass
class Sample:
    """Pooled features of some images, all of them if there are few, for what has no sums (logistic regression).

    ``features`` (n, D), ``labels`` (n,), and ``ranks`` (n,): every image draws a number, and the ``SAMPLE`` images
    with the smallest stay, so that it does not matter how the images came in batches.
    """

    features: Tensor
    labels: Tensor
    ranks: Tensor

    def __add__(self, other: Sample) -> Sample:
        features, labels, ranks = (
            torch.cat([getattr(self, name), getattr(other, name)]) for name in ("features", "labels", "ranks")
        )
        kept = torch.argsort(ranks, stable=True)[:SAMPLE].sort().values
        return Sample(features[kept], labels[kept], ranks[kept])


@dataclass
class SiteStatistics:
    """Sums at one site over some images. C channels read, O channels written, K weights a pair.

    A sum is read as an attribute by its name in :data:`sinf.statistics.sums.SUMS`, where their shapes are
    (``site.gram``, ``site.class_sums``).

    Attributes:
        weight: ``(O, C, K)`` the layer's weight.
        images: how many images were looked at.
        sums: those that were asked for, by name.
    """

    target: str
    weight: Tensor
    images: int = 0
    sums: dict[str, Any] = field(default_factory=dict)
    _derived: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "sums" or name not in self.sums:
            raise AttributeError(f"{name!r} was not collected: name it in what the criterion needs")
        return self.sums[name]

    def __add__(self, other: SiteStatistics) -> SiteStatistics:
        """Statistics of both sets of images together."""
        sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        return SiteStatistics(self.target, self.weight, self.images + other.images, sums)

    def add(self, name: str, value: Any) -> None:
        """Add to one sum, in place where it can be."""
        self._derived.clear()
        if name in self.sums:
            self.sums[name] += value
        else:
            self.sums[name] = value

    def once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """What is computed from the sums and asked for again, such as the inverse of a matrix: not to be changed."""
        if name not in self._derived:
            self._derived[name] = compute()
        return self._derived[name]

    @property
    def channels(self) -> int:
        """C."""
        return self.weight.shape[1]

    @property
    def positions(self) -> int:
        """How many (image, position) pairs ``gram`` adds up."""
        return int(self.sums["positions"])

    @property
    def sensitivity(self) -> Tensor:
        """``(O,)`` mean over images of the squared gradient of the softened answer (a random direction of its
        covariance), summed over positions: the diagonal of the Fisher information of the layer's output."""
        return self.sums["sensitivity"] / max(1, self.images)

    @property
    def readout(self) -> Tensor:
        """``(C, C)``: how a pair of input channels acts on the answer through this layer, W' diag(sensitivity) W."""
        weighted = self.weight * self.sensitivity.sqrt()[:, None, None]
        flat = weighted.transpose(1, 2).flatten(0, 1)
        return flat.T @ flat


class Statistics(dict[str, SiteStatistics]):
    """All sites by target, and sums that belong to no site.

    Attributes:
        images: how many images were looked at.
        units: ``(units,)`` each, by name: sums over images of what happens at all sites together when a unit goes.
    """

    def __init__(self, sites: dict[str, SiteStatistics] | None = None) -> None:
        super().__init__(sites or {})
        self.images = 0
        self.units: dict[str, Tensor] = {}
