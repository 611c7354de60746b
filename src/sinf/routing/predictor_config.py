"""Options of the route predictor. No torch here: those of a build, which the command line reads, hold them."""

from __future__ import annotations

from dataclasses import dataclass

from sinf.errors import ConfigError


@dataclass(frozen=True)
class RouterConfig:
    """Features are pooled to ``side`` x ``side`` and reduced to ``channels`` by a convolution of ``kernel`` x
    ``kernel``; another one, with a stride of two, makes ``hidden`` channels, and the last layer reads all that is left.

    At batch 1 a predictor's time is that of fetching its weights: a hidden layer that reads all positions at once has
    more of them and routes no better; 128 and 192 channels route 0.7 points better and take half as long again. (1 x 1
    is faster still, and loses more routes than that saves.)
    """

    side: int = 4
    channels: int = 96
    kernel: int = 3
    hidden: int = 128
    epochs: int = 8
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    dropout: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("side", 1, 1024),
            ("channels", 1, 65_536),
            ("kernel", 1, 31),
            ("hidden", 1, 65_536),
            ("epochs", 1, 10_000),
            ("batch", 2, 65_536),
            ("learning_rate", 1e-8, 10),
            ("weight_decay", 0, 10),
            ("dropout", 0, 0.99),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"the router's {name} must be in {low}..{high}", got=value, remedy=f"change {name}")
        if self.kernel % 2 == 0:
            raise ConfigError("the router's kernel must be odd", got=self.kernel, remedy="take 1 or 3")
