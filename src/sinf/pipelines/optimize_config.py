"""What optimize() is asked for. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from sinf.errors import ConfigError
from sinf.machine.sizes import DEFAULT
from sinf.option import IMAGES, RUN, Option, Seed, Unit
from sinf.pipelines.compression_options import Confidence, MaxLoss

#: Shares of the base model's cost, each a fifth less than the one before.
BUDGETS = (0.8, 0.64, 0.51, 0.41, 0.33, 0.26, 0.21, 0.17, 0.13)
CUTS, TAILS = (0.15, 0.3), (0.5, 0.3)

Engine = Annotated[str, Option("Where it will run, and is timed: torch, torch-compile, onnxruntime or openvino.")]
_SWITCH = Unit(bool, lambda on, flag: CUTS if on else (), bool)


def _tried() -> tuple[str, ...]:
    from sinf.compress.methods import TRIED

    return TRIED


@dataclass(frozen=True)
class OptimizeConfig:
    """What is asked for.

    Attributes:
        max_loss: of top-1 against the base model in its engine's f32, as a fraction.
        threads: of the processor.
        selection: share of the calibration images that choose where no others are given to; the rest test.
        methods: how networks are made smaller.
        budgets: what static networks keep of the cost, falling; each method is followed down to the first that loses
            more than the limit.
        cuts: where cascades are cut, as shares of the MACs; none for no cascades.
        tails: what their small tails keep, as shares of what the smallest static network within the limit keeps.
        pairs: measurements of time.
        memory: bytes that the process may take.
    """

    max_loss: MaxLoss = 0.01
    confidence: Confidence = None
    engine: Engine = "torch"
    precisions: Annotated[
        tuple[str, ...], Option("f32, bf16 (openvino) or int8; may be repeated.", flag="precision")
    ] = ("f32",)
    batch: Annotated[int, Option("Images in a batch, as the application has them.")] = 1
    threads: int = 1
    images: Annotated[
        int,
        Option(
            "How many of the scoring images decide what goes, and fit the weights that stay, equally many of a class.",
            IMAGES,
        ),
    ] = 4000
    selection: float = 1 / 3
    methods: tuple[str, ...] = field(default_factory=_tried)
    budgets: tuple[float, ...] = BUDGETS
    cuts: Annotated[
        tuple[float, ...],
        Option("Also try cascades of a small tail and a full one.", RUN, flag="cascades", unit=_SWITCH),
    ] = CUTS
    tails: tuple[float, ...] = TAILS
    pairs: int = 100
    seed: Seed = 0
    memory: int = DEFAULT

    def __post_init__(self) -> None:
        from sinf.compress.methods import kind_of
        from sinf.engine.engines import PRECISIONS, require_precision
        from sinf.routing.threshold import require_limit

        require_limit(self.max_loss, self.confidence)
        if not self.precisions:
            raise ConfigError("a precision is needed", got="none", remedy=f"take {PRECISIONS[self.engine][0]}")
        for precision in self.precisions:
            require_precision(self.engine, precision)
        for method in self.methods:
            kind_of(method)
        for name in ("batch", "threads", "images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", got=getattr(self, name), remedy="leave it out")
        shares = {"selection": (self.selection,), "budgets": self.budgets, "cuts": self.cuts, "tails": self.tails}
        for name, values in shares.items():
            if any(not 0 < share < 1 for share in values):
                raise ConfigError(f"{name} must be in (0, 1)", got=getattr(self, name), remedy="leave it out")
        if not self.methods or not self.budgets or list(self.budgets) != sorted(self.budgets, reverse=True):
            raise ConfigError("methods and falling budgets are needed", got=f"{self.methods}, {self.budgets}")
        if self.pairs < 2:
            raise ConfigError("pairs must be at least 2", got=self.pairs, remedy="take 100")
