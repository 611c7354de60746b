"""How much goes: the paper's schedule of ratios, or a budget of MACs. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sinf.errors import ConfigError
from sinf.graph.price import LayerTimes


@dataclass(frozen=True)
class Schedule:
    """Pruning ratio growing linearly with depth: ``first`` in the first layer of the tail, ``last`` in the last
    (Semantic Inference, arXiv 2310.01259: r_l = r_M + (r_L - r_M)(l - M) / (L - M), as fractions removed)."""

    first: float
    last: float

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(f"the pruning ratio {name!r} must be in [0, 1)", got=value, remedy="take 0.1 and 0.5")


@dataclass(frozen=True)
class Budget:
    """Fraction of the cost of a part that may stay: of its MACs, or of its time.

    ``weight_cost`` counts loading a weight as so many MACs. Without it a budget spares the deep layers, which have few
    MACs and most of the weights; at batch 1, where every weight is loaded for one image, they have most of the time.
    ``times`` are those of the network's layers where it will run (:func:`sinf.measure.layer_times.layer_times`); then
    the fraction is one of time, and MACs do not count.
    """

    macs: float
    weight_cost: float = 0.0
    times: LayerTimes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.macs <= 1:
            raise ConfigError("a MAC budget must be in (0, 1]", got=self.macs, remedy="take 0.5 to keep half")
        if not 0 <= self.weight_cost < 1e6:
            raise ConfigError("weight_cost must be in 0..1,000,000", got=self.weight_cost, remedy="take 0 or about 32")


def identity(rule: Schedule | Budget) -> dict[str, Any]:
    """What tells one rule from another, where steps are stored."""
    return {name: value for name, value in asdict(rule).items() if value is not None}
