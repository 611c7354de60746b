"""Options of a build."""

from __future__ import annotations

from dataclasses import dataclass, field

from sinf.compress.methods import kind_of
from sinf.compress.select import Budget, Schedule
from sinf.criteria import best_criterion, make_criterion
from sinf.errors import ConfigError
from sinf.graph.cost import WEIGHT_COST
from sinf.machine.memory import DEFAULT, Memory
from sinf.routing.predictor import RouterConfig
from sinf.routing.threshold import require_limit


@dataclass(frozen=True)
class BuildConfig:
    """All that a build depends on besides model and images.

    Attributes:
        method: how extractor, full tail and subgraphs are made smaller: ``channels`` are removed, or layers are written
            by ``ranks``, as two.
        cut: name of the cut point, or None for the one nearest to ``cut_at`` of the MACs.
        criterion: what says which channels go; None for the one that loses least with, or without, reconstruction.
        subgraph: rule for the subgraphs of the clusters: a ``Schedule`` of ratios or a ``Budget`` of MACs.
        across_clusters: whether that budget is the mean of all subgraphs, spent in the cluster where it costs least,
            instead of each one's.
        extractor: fraction of the feature extractor's MACs that stay, for all classes; 1 leaves it as it is.
        fallback: the same for the full tail.
        common: instead of those two, one budget for both together, spent where it costs least.
        weight_cost: MACs that loading a weight counts for in those two (see ``Budget``).
        reconstruct: whether weights make up for removed channels.
        max_loss: limit of the loss against the base model, as a fraction (0.01 is one point).
        confidence: probability with which the limit holds for new images, or None for no guarantee.
        choices: among how many bundles or limits one will be taken for its results on the same calibration images; the
            guarantee of each is corrected for it (see :func:`sinf.routing.threshold.choose_threshold`).
        round_to: widths of layers are multiples of this.
        route_draws: how many augmented images the route predictor learns from (at most ten views of each; above five
            parts of images are exchanged too).
        keep_anyway: write the bundle also where it is not faster than the base model, or nearly everything falls back.
        common_images: how many of the scoring images decide which channels extractor and full tail, which serve all
            classes, keep.
        reconstruct_bytes: memory that activations may take while those two are reconstructed from all scoring images.
        memory: bytes that the process may take; batches are as large as that allows, and features that do not fit lie
            in files of the work folder.
    """

    method: str = "channels"
    cut: str | None = None
    cut_at: float = 0.6
    criterion: str | None = None
    subgraph: Schedule | Budget = field(default_factory=lambda: Budget(0.3, WEIGHT_COST))
    across_clusters: bool = False
    extractor: float = 1.0
    fallback: float = 1.0
    common: float = 1.0
    weight_cost: float = WEIGHT_COST
    reconstruct: bool = True
    router: RouterConfig = field(default_factory=RouterConfig)
    max_loss: float = 0.01
    confidence: float | None = None
    choices: int = 1
    round_to: int = 8
    seed: int = 0
    keep_anyway: bool = False
    common_images: int = 4000
    route_draws: int = 50_000
    reconstruct_bytes: int = 1 << 30
    memory: int = DEFAULT

    def __post_init__(self) -> None:
        Budget(self.extractor, self.weight_cost)
        Budget(self.fallback, self.weight_cost)
        Budget(self.common, self.weight_cost)
        if self.common < 1 and min(self.extractor, self.fallback) < 1:
            raise ConfigError(
                "a common budget stands instead of those of extractor and fallback",
                got=f"common {self.common:g}, extractor {self.extractor:g}, fallback {self.fallback:g}",
                remedy="leave it, or the other two, at 1",
            )
        if self.across_clusters and isinstance(self.subgraph, Schedule):
            raise ConfigError(
                "only a budget can be spent across clusters", got="ratios", remedy="give a budget of MACs, or leave it"
            )
        by_criterion = isinstance(self.subgraph, Schedule) or self.criterion is not None
        if by_criterion and not kind_of(self.method).by_criterion:
            got = "ratios" if isinstance(self.subgraph, Schedule) else f"the criterion {self.criterion}"
            raise ConfigError(f"{self.method} removes no channels, and takes a budget", got=got, remedy="leave it out")
        kind_of(self.method)
        make_criterion(self.criterion_name)
        Memory(self.memory)
        for name in ("route_draws", "common_images", "reconstruct_bytes", "choices"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be at least 1", got=getattr(self, name), remedy="leave it at its default"
                )
        if self.round_to < 1:
            raise ConfigError("round_to must be at least 1", got=self.round_to, remedy="take 8")
        require_limit(self.max_loss, self.confidence)
        if not 0 < self.cut_at < 1:
            raise ConfigError("cut_at must be in (0, 1)", got=self.cut_at, remedy="take 0.6")

    @property
    def criterion_name(self) -> str:
        return best_criterion(self.reconstruct) if self.criterion is None else self.criterion
