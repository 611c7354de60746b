"""Options of a build. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from sinf.compress.budget import Budget, Schedule
from sinf.criteria import best_criterion, make_criterion
from sinf.errors import ConfigError
from sinf.graph.price import LayerTimes
from sinf.graph.weight_cost import WEIGHT_COST
from sinf.machine.sizes import DEFAULT, MemoryLimit
from sinf.option import COMPRESSION, RUN, AnyThreads, Option, Seed, numbers
from sinf.pipelines.compression_options import (
    Confidence,
    Criterion,
    MaxLoss,
    Reconstruct,
    RoundTo,
    TimedBatch,
    TimedIn,
    TimedPrecision,
)
from sinf.routing.predictor_config import RouterConfig

_KEPT = 0.3  # of the tail, by a subgraph


@dataclass(frozen=True)
class BuildConfig:
    """All that a build depends on besides model and images.

    Attributes:
        cut: None for the one nearest to ``cut_at`` of the MACs.
        criterion: None for the one that loses least with, or without, reconstruction.
        macs: share of the tail's cost that a subgraph keeps; None for 0.3, or for ``ratios`` (see ``Schedule``).
        weight_cost: see ``Budget``; None for 0 where a budget is given, which is then one of MACs alone, else 32.
        time_in: engine where layers are timed before all else; then budgets are shares of time, and MACs do not count.
        times: of the base model's layers where the bundle will run, instead, where they are known.
        threads: of the processor, while layers are timed; None for as many as torch has.
        max_loss: a fraction (0.01 is one point).
        choices: the guarantee of each is corrected for it (see :func:`sinf.routing.threshold.choose_threshold`).
        route_draws: above five views of an image, parts of images are exchanged too.
        whole_images: how many of the scoring images decide which channels extractor and full tail, which serve all
            classes, keep.
        reconstruct_bytes: memory that activations may take while those two are reconstructed from all scoring images.
        memory: bytes that the process may take; batches are as large as that allows, and features that do not fit lie
            in files of the work folder.
    """

    method: Annotated[
        str,
        Option("How parts are made smaller: channels (are removed), ranks (low rank), or depth (fewer branches)."),
    ] = "channels"
    cut: Annotated[
        str | None, Option("Cut point (see sinf profile).", COMPRESSION, otherwise="nearest to 60 % of MACs")
    ] = None
    cut_at: float = 0.6
    criterion: Criterion = None
    macs: Annotated[
        float | None, Option("Fraction of the tail's MACs that a subgraph keeps.", otherwise=f"{_KEPT:g}")
    ] = None
    ratios: Annotated[
        tuple[float, float] | None,
        Option(
            "Instead of --macs: ratios removed in first and last layer, e.g. 0.05,0.5.",
            COMPRESSION,
            unit=numbers(float, 2),
        ),
    ] = None
    across_clusters: Annotated[
        bool, Option("--macs is the mean of all subgraphs, spent where it costs least.", COMPRESSION)
    ] = False
    extractor: Annotated[
        float, Option("Fraction of the extractor's MACs that stays, for all classes.", COMPRESSION)
    ] = 1.0
    full_tail: Annotated[float, Option("Fraction of the full tail's MACs that stays.", COMPRESSION)] = 1.0
    whole: Annotated[
        float, Option("Instead of those two: one budget for both, spent where it costs least.", COMPRESSION)
    ] = 1.0
    weight_cost: Annotated[
        float | None,
        Option(
            "MACs that loading a weight counts for in budgets.",
            COMPRESSION,
            otherwise="0 where a budget is given, else 32",
        ),
    ] = None
    time_in: Annotated[
        str | None, Option("Engine in whose measured time budgets count.", COMPRESSION, otherwise="MACs count")
    ] = None
    time_precision: TimedPrecision = "f32"
    time_batch: TimedBatch = 1
    times: LayerTimes | None = None
    threads: AnyThreads = None
    reconstruct: Reconstruct = True
    router: RouterConfig = field(default_factory=RouterConfig)
    max_loss: MaxLoss = 0.01
    confidence: Confidence = None
    choices: Annotated[
        int, Option("How many bundles or limits you compare on these images; the guarantee is corrected.", RUN)
    ] = 1
    round_to: RoundTo = 8
    seed: Seed = 0
    keep_anyway: Annotated[bool, Option("Write a bundle that is not faster than the base model all the same.", RUN)] = (
        False
    )
    whole_images: int = 4000
    route_draws: Annotated[
        int,
        Option("Cropped and flipped views that the route predictor learns from, ten of an image at most.", COMPRESSION),
    ] = 50_000
    reconstruct_bytes: int = 1 << 30
    memory: MemoryLimit = DEFAULT

    def __post_init__(self) -> None:
        from sinf.compress.methods import require_takes
        from sinf.machine.memory import Memory
        from sinf.routing.threshold import require_limit

        for share in (self.extractor, self.full_tail, self.whole):
            Budget(share, self.price)
        if self.whole < 1 and min(self.extractor, self.full_tail) < 1:
            raise ConfigError(
                "a budget of the whole stands instead of those of extractor and full tail",
                got=f"whole {self.whole:g}, extractor {self.extractor:g}, full tail {self.full_tail:g}",
                remedy="leave it, or the other two, at 1",
            )
        if self.ratios is not None and self.macs is not None:
            raise ConfigError("give macs or ratios", got="both", remedy="leave one of them out")
        if self.ratios is not None and self.across_clusters:
            raise ConfigError(
                "only a budget can be spent across clusters", got="ratios", remedy="give a budget of MACs, or leave it"
            )
        if self.timed_in is None and (self.time_precision, self.time_batch) != ("f32", 1):
            rule, got = "time_precision and time_batch say how layers are timed in time_in", "no time_in"
            raise ConfigError(rule, got=got, remedy="name an engine, or leave them out")
        if self.timed_in is not None and self.weight_cost is not None:
            raise ConfigError("weight_cost counts MACs", got="time_in", remedy="leave one of them out")
        require_takes(self.method, self.subgraph, self.criterion)
        make_criterion(self.criterion_name)
        Memory(self.memory)
        for name in ("route_draws", "whole_images", "reconstruct_bytes", "choices", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1", got=value, remedy="leave it at its default")
        if self.round_to < 1:
            raise ConfigError("round_to must be at least 1", got=self.round_to, remedy="take 8")
        require_limit(self.max_loss, self.confidence)
        if not 0 < self.cut_at < 1:
            raise ConfigError("cut_at must be in (0, 1)", got=self.cut_at, remedy="take 0.6")

    @property
    def price(self) -> float:
        """MACs that loading a weight counts for in all budgets."""
        if self.weight_cost is not None:
            return self.weight_cost
        named = self.macs is not None or min(self.extractor, self.full_tail, self.whole) < 1
        return 0.0 if named else WEIGHT_COST

    @property
    def subgraph(self) -> Schedule | Budget:
        """The rule for the subgraphs of the clusters."""
        if self.ratios is not None:
            return Schedule(*self.ratios)
        return Budget(_KEPT if self.macs is None else self.macs, self.price, self.times)

    @property
    def timed_in(self) -> TimedIn | None:
        """Where layers are timed before all else; None where MACs count, or times are known."""
        if self.time_in is None:
            return None
        import torch

        threads = torch.get_num_threads() if self.threads is None else self.threads
        return TimedIn(self.time_in, self.time_precision, self.time_batch, threads)

    @property
    def criterion_name(self) -> str:
        return best_criterion(self.reconstruct) if self.criterion is None else self.criterion
