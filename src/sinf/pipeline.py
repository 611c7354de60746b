"""build(): from a trained classifier and labelled images to a semantic-inference bundle, step by step, resumable.

Every step's result is a file in a work folder; a step whose file is there is not done again. All draws depend on the seed
alone, so a build that was killed and started again ends with the same bundle.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sinf import bundle as bundles
from sinf.bundle import Bundle, Part
from sinf.clusters import Clusters
from sinf.criteria import group_statistics, make_criterion
from sinf.data import LabelledImages
from sinf.errors import ConfigError, DataError
from sinf.models import BaseModel
from sinf.models.trace import trace
from sinf.network import Network
from sinf.risk import Calibration, Threshold, choose_threshold
from sinf.router import RoutePredictor, RouterConfig, calibrate, train_router
from sinf.statistics import collect
from sinf.subgraph.coupling import CoupledGroup
from sinf.subgraph.reconstruct import Mixes, reconstruct
from sinf.subgraph.select import Budget, Schedule, select
from sinf.subgraph.slice import slice_graph
from sinf.subgraph.verify import verify

Progress = Callable[[str, int, int], None]
_BATCH = 250


@dataclass(frozen=True)
class BuildConfig:
    """All that a build depends on besides model and images.

    Attributes:
        cut: name of the cut point, or None for the one nearest to ``cut_at`` of the MACs.
        subgraph: rule for the subgraphs of the clusters: a ``Schedule`` of ratios or a ``Budget`` of MACs.
        extractor: fraction of the feature extractor's MACs that stay, for all classes; 1 leaves it as it is.
        fallback: the same for the full tail.
        reconstruct: whether weights make up for removed channels.
        max_loss: limit of the loss against the base model, as a fraction (0.01 is one point).
        confidence: probability with which the limit holds for new images, or None for no guarantee.
        reconstruct_bytes: memory that activations may take while the extractor is reconstructed.
    """

    cut: str | None = None
    cut_at: float = 0.6
    criterion: str = "residual"
    subgraph: Schedule | Budget = field(default_factory=lambda: Budget(0.4))
    extractor: float = 1.0
    fallback: float = 1.0
    reconstruct: bool = True
    router: RouterConfig = field(default_factory=RouterConfig)
    max_loss: float = 0.01
    confidence: float | None = None
    round_to: int = 8
    seed: int = 0
    reconstruct_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        Budget(self.extractor)
        Budget(self.fallback)
        make_criterion(self.criterion)
        if self.round_to < 1:
            raise ConfigError("round_to must be at least 1", got=self.round_to, remedy="take 8")
        if not 0 < self.cut_at < 1:
            raise ConfigError("cut_at must be in (0, 1)", got=self.cut_at, remedy="take 0.6")


@dataclass(frozen=True)
class Images:
    """The images of a build, by use. ``calibration`` must share no image with what the base model was trained on, nor
    with the other two."""

    scoring: LabelledImages
    routing: LabelledImages
    calibration: LabelledImages


def build(
    base: BaseModel,
    images: Images,
    clusters: Clusters,
    config: BuildConfig,
    folder: str | Path,
    *,
    provenance: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Build a bundle and save it to ``folder``; intermediate results go to ``folder`` + ``.build`` until it is there."""
    _check(base, images, clusters)
    return _Build(base, images, clusters, config, Path(folder), progress or (lambda step, done, total: None)).run(
        provenance or {}
    )


def _check(base: BaseModel, images: Images, clusters: Clusters) -> None:
    for purpose, part in (("scoring", images.scoring), ("routing", images.routing), ("calibration", images.calibration)):
        if part.classes != base.spec.classes:
            raise DataError(
                f"{part.name}: the data must have the model's classes",
                got=f"{part.classes} instead of {base.spec.classes}",
                remedy="name another label column, or another model",
            )
        if purpose != "calibration":
            part.require_every_class(purpose)
    if clusters.classes != base.spec.classes:
        raise DataError("clusters must cover the model's classes", got=f"{clusters.classes} classes")


class _Build:
    def __init__(
        self,
        base: BaseModel,
        images: Images,
        clusters: Clusters,
        config: BuildConfig,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.base, self.images, self.clusters, self.config = base, images, clusters, config
        self.folder, self.progress = folder, progress
        self.work = folder.with_name(folder.name + ".build")
        self.network = Network(trace(base.module, base.spec.preprocessing), config.cut, config.cut_at)
        self.criterion = make_criterion(config.criterion)

    def run(self, provenance: dict[str, str]) -> Bundle:
        self._open_work_folder()
        common, fallback = self._common()
        features = self._features(common)
        parts = {"common": common, "fallback": fallback}
        for cluster, name in enumerate(self.clusters.names):
            self.progress("subgraphs", cluster, len(self.clusters))
            parts[bundles.part_name(cluster)] = self._subgraph(cluster, name, common, features)
        self.progress("subgraphs", len(self.clusters), len(self.clusters))
        del features
        router = self._router(common)
        result = Bundle(
            spec=self.base.spec,
            class_names=tuple(self.images.scoring.class_names),
            clusters=self.clusters,
            cut=self.network.cut.name,
            threshold=None,
            parts=parts,
            base_state={k: v for k, v in self.base.module.state_dict().items()},
            router=router,
            router_config=self.config.router,
            provenance=provenance | {"criterion": self.config.criterion, "seed": str(self.config.seed)},
        )
        result = self._calibrate(result)
        result.save(self.folder)
        shutil.rmtree(self.work, ignore_errors=True)
        return result

    # ---- steps

    def _common(self) -> tuple[Part, Part]:
        """The extractor and the full tail, each made smaller for all classes if asked for."""
        config, network = self.config, self.network
        stored = self._load("common")
        if stored is not None:
            return stored, self._load_or_fail("fallback")
        if config.extractor == 1 and config.fallback == 1:
            whole = Part(network.coupling.keep_all(), {})
            return self._store("common", whole), self._store("fallback", whole)
        sites = collect(
            network.graph,
            network.coupling,
            self._batches(self.images.scoring, "statistics"),
            classes=self.base.spec.classes,
            seed=config.seed,
        )
        early, late = network.groups_before(), network.groups_after()
        keep = network.coupling.keep_all()
        if config.extractor < 1:
            keep = self._select(Budget(config.extractor), early, sites, keep, network.extractor_macs)
        keep_common = keep.clone()
        if config.fallback < 1:
            keep = self._select(Budget(config.fallback), late, sites, keep, network.tail_macs)
        del sites
        self._verify(network.graph, keep, self._some_images())
        mixes: Mixes = {}
        if config.reconstruct:
            smaller = slice_graph(network.graph, network.coupling, keep)
            inputs = self._reconstruction_images()
            self.progress("reconstruction", 0, 0)
            mixes = reconstruct(network.graph, network.coupling, keep, smaller, inputs, inputs)
        before = {t: m for t, m in mixes.items() if t in network.extractor_targets}
        after = {t: m for t, m in mixes.items() if t not in network.extractor_targets}
        self._store("fallback", Part(keep, after))
        return self._store("common", Part(keep_common, before)), Part(keep, after)

    def _features(self, common: Part) -> tuple[Tensor, Tensor]:
        """Features of all scoring images, of the base extractor and of the one that will run."""
        network = self.network
        smaller = network.extractor(common)
        whole, small = [], []
        with torch.no_grad():
            for x, _ in self._batches(self.images.scoring, "features"):
                whole.append(network.parts.extractor(x))
                small.append(smaller(x) if common.changes else whole[-1])
        base_features = torch.cat(whole)
        return base_features, torch.cat(small) if common.changes else base_features

    def _subgraph(self, cluster: int, name: str, common: Part, features: tuple[Tensor, Tensor]) -> Part:
        stored = self._load(bundles.part_name(cluster))
        if stored is not None:
            return stored
        network, config = self.network, self.config
        members = list(self.clusters.members[cluster])
        labels = self.images.scoring.labels
        mine = torch.nonzero(torch.isin(labels, torch.tensor(members))).flatten()
        base_features, small_features = features[0][mine], features[1][mine]
        tail = network.parts.tail
        batches = zip(base_features.split(_BATCH), labels[mine].split(_BATCH), strict=True)
        sites = collect(
            tail, network.coupling, batches, classes=self.base.spec.classes, answer=members, seed=config.seed + cluster
        )
        keep = network.with_classes(common.keep, members)
        keep = self._select(config.subgraph, network.groups_after(), sites, keep, network.tail_macs)
        self._verify(tail, keep, base_features[:4])
        mixes: Mixes = {}
        if config.reconstruct:
            smaller = slice_graph(tail, network.coupling, keep)
            mixes = reconstruct(tail, network.coupling, keep, smaller, base_features, small_features)
        return self._store(bundles.part_name(cluster), Part(keep, mixes))

    def _router(self, common: Part) -> RoutePredictor:
        path = self.work / "router.safetensors"
        shape = self.network.feature_shape(common)
        if path.exists():
            router = RoutePredictor(shape, len(self.clusters), self.config.router)
            router.load_state_dict(load_file(path))
            return router.eval().requires_grad_(False)
        extractor, of_class = self.network.extractor(common), self.clusters.of_class()
        onto = torch.nn.functional.one_hot(of_class, len(self.clusters)).float()
        features, targets = [], []
        with torch.no_grad():
            for x, _ in self._batches(self.images.routing, "route features"):
                base_features = self.network.parts.extractor(x)
                targets.append(self.network.parts.tail(base_features).softmax(1) @ onto)
                features.append((extractor(x) if common.changes else base_features).half())
        router = train_router(
            torch.cat(features),
            torch.cat(targets),
            self.config.router,
            lambda done, total: self.progress("router", done, total),
        )
        bundles.write_tensors(router.state_dict(), path)
        return router

    def _calibrate(self, bundle: Bundle) -> Bundle:
        from sinf.engine.torch_engine import SemanticModel

        images = self.images.calibration
        model = SemanticModel(bundle)
        clusters = self.clusters.of_class()[images.labels]
        with torch.no_grad():
            features = torch.cat([model.extractor(x) for x, _ in self._batches(images, "calibration features")])
            calibrate(model.router, features, clusters)
            fallback_right, base_right = [], []
            for x, y in self._batches(images, "calibration"):
                base_right.append(self.base.module(x).argmax(1) == y)
                fallback_right.append(model.run_fallback(model.extractor(x)).argmax(1) == y)
            confidence, routed_right = model.route_all(features, images.labels)
        outcome = Calibration(confidence, routed_right, torch.cat(fallback_right), torch.cat(base_right))
        threshold: Threshold = choose_threshold(outcome, self.config.max_loss, self.config.confidence)
        return bundle.calibrated(threshold, model.router)

    # ---- helpers

    def _select(
        self,
        rule: Schedule | Budget,
        groups: list[CoupledGroup],
        sites: dict,
        keep: Tensor,
        macs: object,
    ) -> Tensor:
        graph, coupling = self.network.graph, self.network.coupling
        importance = {g.name: self.criterion.score(group_statistics(graph, coupling, g, sites)) for g in groups}
        return select(rule, groups, importance, macs, keep, self.config.round_to)  # type: ignore[arg-type]

    def _verify(self, graph: torch.fx.GraphModule, keep: Tensor, inputs: Tensor) -> None:
        network = self.network
        slot = network.features_slot if graph is network.parts.tail else None
        verify(graph, network.coupling, keep, slice_graph(graph, network.coupling, keep), inputs, slot)

    def _batches(self, images: LabelledImages, step: str):  # noqa: ANN202
        total = len(images)
        for done, batch in enumerate(images.batches(self.base.spec.preprocessing, _BATCH)):
            self.progress(step, min(total, done * _BATCH), total)
            yield batch
        self.progress(step, total, total)

    def _some_images(self) -> Tensor:
        return next(iter(self.images.scoring.batches(self.base.spec.preprocessing, 4)))[0]

    def _reconstruction_images(self) -> Tensor:
        """As many scoring images as fit in memory, equally many of every class."""
        per_image = self.network.peak_bytes() * 4  # both networks, input and output of a layer
        count = max(2 * self.base.spec.classes, min(len(self.images.scoring), self.config.reconstruct_bytes // per_image))
        sample = self.images.scoring.sample(count, self.config.seed)
        return torch.cat([x for x, _ in sample.batches(self.base.spec.preprocessing, _BATCH)])

    # ---- the work folder

    def _fingerprint(self) -> str:
        weights = hashlib.sha256()
        for key, value in sorted(self.base.module.state_dict().items()):
            weights.update(key.encode() + value.contiguous().numpy().tobytes())
        record = {
            "spec": self.base.spec.to_json(),
            "weights": weights.hexdigest(),
            "clusters": [self.clusters.names, self.clusters.members],
            "config": asdict(self.config) | {"rule": type(self.config.subgraph).__name__, "max_loss": 0, "confidence": 0},
            "images": [(i.name, len(i), int(i.labels.sum())) for i in (self.images.scoring, self.images.routing)],
        }
        return json.dumps(record, sort_keys=True, default=str)

    def _open_work_folder(self) -> None:
        note = self.work / "build.json"
        fingerprint = self._fingerprint()
        if note.exists() and note.read_text() != fingerprint:
            shutil.rmtree(self.work)  # steps of another build help nobody
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            note.write_text(fingerprint)
        except OSError as error:
            raise ConfigError(f"the work folder must be writable: {self.work}", got=error) from error

    def _store(self, name: str, part: Part) -> Part:
        bundles.write_tensors(part.to_tensors(self.network.coupling, ""), self.work / f"{name}.safetensors")
        return part

    def _load(self, name: str) -> Part | None:
        path = self.work / f"{name}.safetensors"
        return Part.from_tensors(load_file(path), self.network.coupling, "") if path.exists() else None

    def _load_or_fail(self, name: str) -> Part:
        part = self._load(name)
        if part is None:
            raise ConfigError(f"the work folder lacks {name}", got=self.work, remedy="remove it and build again")
        return part
