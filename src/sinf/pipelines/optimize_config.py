"""What optimize() is asked for. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from sinf.errors import ConfigError
from sinf.machine.sizes import DEFAULT, MemoryLimit
from sinf.option import IMAGES, RUN, Option, Seed, Threads, Unit
from sinf.pipelines.compression_options import Confidence, MaxLoss

if TYPE_CHECKING:
    from sinf.data.clusters import Clusters
else:
    Clusters = Any  # the command line reads these annotations, and imports no torch for it

METHODS = ("ranks", "channels")
#: Shares of the base model's cost, each a fifth less than the one before.
BUDGETS = (0.8, 0.64, 0.51, 0.41, 0.33, 0.26, 0.21, 0.17, 0.13)
CUTS, TAILS = (0.15, 0.3), (0.55, 0.35)
ROUTED_CUTS = (0.3, 0.6)

_SWITCH = Unit(bool, lambda on, flag: CUTS if on else (), bool)


@dataclass(frozen=True)
class OptimizeConfig:
    """What is asked for.

    Attributes:
        max_loss: of top-1 against the base model in its engine's f32, as a fraction.
        threads: of the processor, where it will run, and is timed; the candidates are made by all of torch's.
        selection: share of the calibration images that choose where no others are given to; the rest test.
        methods: how networks are made smaller, the likelier first; where one does well, those after it are not tried.
        budgets: what static networks keep of the cost, falling; each method is followed down to the first that loses
            more than the limit.
        by_time: whether that cost is time: of layers, as measured in the engine and the fastest of the precisions;
            otherwise it is MACs, with loading a weight counted as some.
        cuts: where cascades are cut, as shares of the MACs; none for no cascades.
        tails: what their small tails keep, as shares of what a static network keeps that likely loses the limit.
        clusters: semantic clusters, for bundles that send every input to the subgraph of its cluster; None for none.
        routed_cuts: where these are cut, as shares of the MACs. Their subgraphs keep the least of ``tails``.
        minutes: when they are over, no candidate is begun; those that are there are measured and tested. The base model
            in all precisions and the first smaller network are there in any case.
        pairs: measurements of time.
        compiled: whether the base model by torch.compile is timed beside them, where a C++ compiler is there.
        memory: bytes that the process may take.
    """

    max_loss: MaxLoss = 0.01
    confidence: Confidence = None
    engine: Annotated[
        str, Option("Where it will run, and is timed: torch, torch-compile, onnxruntime or openvino.")
    ] = "onnxruntime"
    precisions: Annotated[
        tuple[str, ...], Option("Precisions to try: f32, int8, bf16 (openvino); may be repeated.", flag="precision")
    ] = ("f32",)
    batch: Annotated[int, Option("Images in a batch, as the application has them.")] = 1
    threads: Threads = 1
    images: Annotated[
        int,
        Option(
            "How many of the scoring images decide what goes, and fit the weights that stay, equally many of a class.",
            IMAGES,
        ),
    ] = 4000
    selection: float = 1 / 3
    methods: tuple[str, ...] = METHODS
    budgets: tuple[float, ...] = BUDGETS
    by_time: bool = True
    cuts: Annotated[
        tuple[float, ...],
        Option("Also try cascades of a small tail and a full one.", RUN, flag="cascades", unit=_SWITCH),
    ] = CUTS
    tails: tuple[float, ...] = TAILS
    clusters: Clusters | None = None
    routed_cuts: tuple[float, ...] = ROUTED_CUTS
    minutes: Annotated[
        float | None,
        Option("Begin no candidate after so many minutes; the best so far is tested and written.", otherwise="none"),
    ] = None
    pairs: int = 100
    compiled: bool = True
    seed: Seed = 0
    memory: MemoryLimit = DEFAULT

    def __post_init__(self) -> None:
        from sinf.compress.methods import kind_of
        from sinf.engine.engines import require_precision, runtime_of
        from sinf.routing.threshold import require_limit

        require_limit(self.max_loss, self.confidence)
        if not self.precisions:
            usual = runtime_of(self.engine).precisions[0]
            raise ConfigError("a precision is needed", got="none", remedy=f"take {usual}")
        for precision in self.precisions:
            require_precision(self.engine, precision)
        for method in self.methods:
            kind_of(method)
        for name in ("batch", "threads", "images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", got=getattr(self, name), remedy="leave it out")
        shares = {
            "selection": (self.selection,), "budgets": self.budgets, "cuts": self.cuts, "tails": self.tails,
            "routed_cuts": self.routed_cuts,
        }  # fmt: skip
        for name, values in shares.items():
            if any(not 0 < share < 1 for share in values):
                raise ConfigError(f"{name} must be in (0, 1)", got=getattr(self, name), remedy="leave it out")
        if not self.methods or not self.budgets or list(self.budgets) != sorted(self.budgets, reverse=True):
            raise ConfigError("methods and falling budgets are needed", got=f"{self.methods}, {self.budgets}")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError("minutes must be more than 0", got=self.minutes, remedy="leave them out for no limit")
        if self.pairs < 2:
            raise ConfigError("pairs must be at least 2", got=self.pairs, remedy="take 100")
