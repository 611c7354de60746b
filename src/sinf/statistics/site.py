"""Statistics by site and by unit, asked for by their type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, cast

from torch import Tensor

from sinf.errors import ConfigError
from sinf.statistics.of_outputs import Sensitivity
from sinf.statistics.statistic import OfUnits, Statistic

S = TypeVar("S", bound=Statistic)


class SiteStatistics:
    """Statistics of one site over some images: ``site[SecondMoments]`` is what was collected of that type.

    Attributes:
        weight: ``(O, C, K)`` the layer's weight: C channels read, O written, K weights a pair.
        images: how many images were looked at.
    """

    def __init__(self, target: str, weight: Tensor, images: int = 0, statistics: Iterable[Statistic] = ()) -> None:
        self.target, self.weight, self.images = target, weight, images
        self._by_type: dict[type[Statistic], Statistic] = {type(each): each for each in statistics}
        self._derived: dict[str, Tensor] = {}

    def __getitem__(self, kind: type[S]) -> S:
        """What was collected of this type.

        Raises:
            ConfigError: nothing was.
        """
        if kind not in self._by_type:
            remedy = "name it in what the criterion or the compressor needs"
            raise ConfigError("what is read of a site must have been collected", got=kind.__name__, remedy=remedy)
        return cast(S, self._by_type[kind])

    def __contains__(self, kind: type[Statistic]) -> bool:
        return kind in self._by_type

    def __iter__(self) -> Iterator[Statistic]:
        return iter(self._by_type.values())

    def __add__(self, other: SiteStatistics) -> SiteStatistics:
        """Statistics of both sets of images together."""
        both = [each + other[type(each)] for each in self]
        return SiteStatistics(self.target, self.weight, self.images + other.images, both)

    def but(self, *others: Statistic) -> SiteStatistics:
        """The same images with other statistics of these types."""
        return SiteStatistics(self.target, self.weight, self.images, [*self, *others])

    def add(self, more: Statistic) -> None:
        """Add statistics of further images, in place where it can be."""
        self._derived.clear()
        kind = type(more)
        if kind in self._by_type:
            self._by_type[kind] += more
        else:
            self._by_type[kind] = more

    def once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """What is computed from the statistics and asked for again, such as the inverse of a matrix: not to be
        changed."""
        if name not in self._derived:
            self._derived[name] = compute()
        return self._derived[name]

    @property
    def channels(self) -> int:
        """C."""
        return self.weight.shape[1]

    @property
    def sensitivity(self) -> Tensor:
        """``(O,)`` mean over images of the squared gradient of the softened answer (a random direction of its
        covariance), summed over positions: the diagonal of the Fisher information of the layer's output."""
        return self[Sensitivity].total / max(1, self.images)

    @property
    def readout(self) -> Tensor:
        """``(C, C)``: how a pair of input channels acts on the answer through this layer, W' diag(sensitivity) W."""
        weighted = self.weight * self.sensitivity.sqrt()[:, None, None]
        flat = weighted.transpose(1, 2).flatten(0, 1)
        return flat.T @ flat


class Statistics(dict[str, SiteStatistics]):
    """All sites by target, and statistics that belong to no site.

    Attributes:
        images: how many images were looked at.
        units: of all units, by type.
    """

    def __init__(self, sites: dict[str, SiteStatistics] | None = None) -> None:
        super().__init__(sites or {})
        self.images = 0
        self.units: dict[type[OfUnits], OfUnits] = {}
