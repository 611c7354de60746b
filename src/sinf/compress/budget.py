"""How much goes: the paper's schedule of ratios, or a budget of MACs. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass

from sinf.errors import ConfigError


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
    """Fraction of the MACs of a part that may stay.

    ``weight_cost`` counts loading a weight as so many MACs. Without it a budget spares the deep layers, which have few
    MACs and most of the weights; at batch 1, where every weight is loaded for one image, they have most of the time.
    """

    macs: float
    weight_cost: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.macs <= 1:
            raise ConfigError("a MAC budget must be in (0, 1]", got=self.macs, remedy="take 0.5 to keep half")
        if not 0 <= self.weight_cost < 1e6:
            raise ConfigError("weight_cost must be in 0..1,000,000", got=self.weight_cost, remedy="take 0 or about 32")
