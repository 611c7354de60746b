"""build(): from a trained classifier and labelled images to a semantic-inference bundle, step by step, resumable.

Every step's result is a file in a work folder; a step whose file is there is not done again. All draws depend on the
seed alone, so a build that was killed and started again ends with the same bundle.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sinf.bundle.semantic import Bundle
from sinf.compress.compressor import Progress, Rule, Run, compress
from sinf.compress.methods import make_compressor
from sinf.compress.passes import Passes, plan_build
from sinf.compress.select import Budget
from sinf.data.clusters import Clusters
from sinf.data.disjoint import require_disjoint
from sinf.data.images import LabelledImages
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import DataError
from sinf.graph.network import Part, PartedNetwork
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.machine.memory import Memory, Notice, activations, weight_bytes
from sinf.measure.accuracy import Observation, observe_routes, run_shared
from sinf.measure.delivery import Limits, Verdict
from sinf.measure.estimate import BOTH, ROUTER, Estimate, Pace, build_time
from sinf.models import BaseModel
from sinf.models.described import described
from sinf.pipelines.build_config import BuildConfig
from sinf.pipelines.build_worth import IMAGES, LONG, Prospect
from sinf.pipelines.calibration import part_images, set_thresholds, tail_costs, without_threshold
from sinf.pipelines.place import ranges_of
from sinf.pipelines.prune_config import describe
from sinf.pipelines.route_images import RouteImages
from sinf.pipelines.subgraphs import Subgraphs
from sinf.pipelines.times import network_times
from sinf.pipelines.whole import EXTRACTOR, TAIL, WHOLE, whole_scope
from sinf.routing.deferral import Deferral
from sinf.routing.predictor import RoutePredictor, calibrate, make_predictor, predictor_macs, train_router
from sinf.routing.router import FULL_TAIL
from sinf.storage.files import hash_tensors
from sinf.storage.shelf import Shelf
from sinf.storage.steps import StepStore, Tensors
from sinf.version import __version__

#: What it may cost that some classes have no images.
_COSTS = {
    "scoring": "what they need may be removed; clusters without images are made from those of the others",
    "routing": "more of them may take a wrong route, and fall back",
    "calibration": "the limit of the loss does not speak of them",
}


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
    work: str | Path | None = None,
    provenance: dict[str, str] | None = None,
    report: Callable[[Verdict], None] | None = None,
    progress: Progress | None = None,
    expect: Callable[[Estimate], None] | None = None,
    key: bytes | None = None,
    notice: Notice | None = None,
    worth: Callable[[Prospect], None] | None = None,
) -> Bundle:
    """Build a bundle and save it to ``folder``, signed where there is a ``key``.

    Results of steps are kept in ``work`` (by default ``folder`` + ``.build``, removed at the end), where other builds
    of the same base model find what they have in common. ``expect`` is told how long it will take, and ``notice`` how
    much memory, before it begins; ``expect`` again after the first steps, where much is left. A build of a minute or
    more that is not kept anyway begins with what it can bring at best, which ``worth`` is told. Before it is saved the
    bundle is timed beside the base model in torch, on calibration images, and ``report`` is called with what it brings
    (without it, a bundle that is kept anyway is not timed).

    Raises:
        DoesNotPayError: it cannot be faster at best; or it is not, or nearly everything falls back. Steps stay, so that
            the same build with ``keep_anyway`` is done at once.
    """
    base = described(base)
    _check(base, images, clusters)
    folder = Path(folder)
    store = StepStore(folder.with_name(folder.name + ".build") if work is None else Path(work))
    progress = progress or (lambda step, done, total: None)
    config = _timed(base, images.scoring, config, store, progress)
    making = _Build(base, images, clusters, config, store, progress)
    if notice is not None:
        notice(making.memory.summary())
        making.notice = notice
    expected = None if expect is None and config.keep_anyway else making.expected()
    if expect is not None and expected is not None:
        expect(expected)
    if not config.keep_anyway and expected is not None and expected.seconds >= LONG:
        prospect = making.prospect()
        if worth is not None:
            worth(prospect)
        prospect.require()
    start = time.perf_counter()

    def after_first_steps() -> None:
        rest = None if expected is None else expected.rest({BOTH, ROUTER}, time.perf_counter() - start)
        if expect is not None and rest is not None and rest.seconds >= LONG:
            expect(rest)

    bundle = making.run(provenance or {}, after_first_steps)
    verdict = None if report is None and config.keep_anyway else making.verdict(bundle)
    if verdict is not None and report is not None:
        report(verdict)
    if verdict is not None and not config.keep_anyway:
        verdict.require()
    bundle.save(folder, key=key)
    if work is None:
        shutil.rmtree(store.folder, ignore_errors=True)
    return bundle


def _timed(
    base: BaseModel, scoring: LabelledImages, config: BuildConfig, store: StepStore, progress: Progress
) -> BuildConfig:
    """The config with times of the base model's layers, and all budgets of these, where they are to be."""
    if config.timed_in is None:
        return config
    times = network_times(
        base, config.timed_in, store, progress,
        ranges=lambda: ranges_of(scoring, base.spec.preprocessing, config.seed),
    )  # fmt: skip
    return replace(config, times=times)


def make_bundle(
    base: BaseModel, images: Images, clusters: Clusters, config: BuildConfig, store: StepStore, progress: Progress
) -> Bundle:
    """What :func:`build` makes, neither timed nor saved, and without its threshold: no answer of a subgraph counts
    until it has one. A part of the calibration images fits the deferral; the others are not looked at."""
    _check(base, images, clusters)
    return _Build(base, images, clusters, config, store, progress).made({})


def _check(base: BaseModel, images: Images, clusters: Clusters) -> None:
    for purpose, part in (
        ("scoring", images.scoring),
        ("routing", images.routing),
        ("calibration", images.calibration),
    ):
        if part.classes != base.spec.classes:
            raise DataError(
                f"{part.name}: the data must have the model's classes",
                got=f"{part.classes} instead of {base.spec.classes}",
                remedy="name another label column, or another model",
            )
        part.require_labels(purpose)
        part.warn_of_empty_classes(purpose, _COSTS[purpose])
    for purpose, part in (("scoring", images.scoring), ("routing", images.routing)):
        require_disjoint(images.calibration, "calibration", part, purpose)
    if clusters.classes != base.spec.classes:
        raise DataError("clusters must cover the model's classes", got=f"{clusters.classes} classes")


class _Build:
    def __init__(
        self,
        base: BaseModel,
        images: Images,
        clusters: Clusters,
        config: BuildConfig,
        store: StepStore,
        progress: Progress,
        *,
        fit: bool = True,
    ) -> None:
        self.base, self.images, self.clusters, self.config = base, images, clusters, config
        self.store, self.progress, self.fit = store, progress, fit and config.reconstruct
        self.notice: Notice | None = None
        self.network = PartedNetwork(
            trace(base.module, base.spec.preprocessing),
            config.cut,
            config.cut_at,
            lambda shape: predictor_macs(shape, len(clusters), config.router),
        )
        self.compressor = make_compressor(config.method, config)
        self.memory = Memory(config.memory)
        self.shelf = Shelf(store.folder, self.memory.cache)
        self.whole_passes, self.tail_passes = plan_build(
            self.memory, self.network, base.module, (images.scoring, images.routing, images.calibration),
            self.compressor.needs, pool=self.compressor.pool, beside=self.compressor.bytes_beside,
            whole=min(config.extractor, config.full_tail, config.whole) < 1,
        )  # fmt: skip
        each, fixed = 2 * activations(self.network.graph).forward, 4 * weight_bytes(base.module)
        self.limits = Limits().within(self.memory, each, fixed)  # of what is timed
        # What every step depends on. Steps add to it what they use, and nothing else.
        self.origin = {
            "sinf": __version__,
            "spec": base.spec.to_json(),
            "weights": hash_tensors(base.module.state_dict()),
            "scoring": images.scoring.fingerprint(),
            "cut": self.network.cut.name,
            "seed": config.seed,
        }
        self.compaction = self.origin | {
            name: getattr(config, name)
            for name in (
                "method",
                "criterion_name",
                "extractor",
                "whole",
                "reconstruct",
                "round_to",
                "whole_images",
                "reconstruct_bytes",
            )
        }
        self.compaction["weight_cost"] = config.price
        if config.times is not None:
            self.compaction["times"] = config.times

    def expected(self) -> Estimate:
        """How long all steps take, where none is stored."""
        config, images = self.config, self.images
        return build_time(
            Pace.of(self.network.graph, self.base.spec.preprocessing.size, images.scoring.batch),
            self.network,
            scoring=len(images.scoring),
            routing=self._route_images().passes * len(images.routing),
            calibration=len(images.calibration),
            clusters=len(self.clusters),
            whole=min(config.extractor, config.full_tail, config.whole) < 1,
            whole_images=config.whole_images,
            reconstruct=config.reconstruct,
        )

    def prospect(self) -> Prospect:
        """What a bundle can bring at best: by parts that are made from a few images, with weights as they come."""
        config, network, count = self.config, self.network, len(self.clusters)
        few = self.images.scoring.sample(IMAGES, config.seed)
        with tempfile.TemporaryDirectory(dir=self.store.folder) as folder:
            small = _Build(
                self.base, Images(few, few, few), self.clusters, config, StepStore(Path(folder)),
                lambda step, done, total: None, fit=False,
            )  # fmt: skip
            extractor, full_tail = small._whole()
            subgraph = small._subgraphs().first(extractor)
        with torch.random.fork_rng(devices=[]):  # nobody else's draws are to change
            router = make_predictor(network.feature_shape(extractor), count, config.router).eval().folded()
        parts = network.graphs_of({"extractor": extractor, "subgraph": subgraph, FULL_TAIL: full_tail})
        return Prospect.of(
            network.graph, None if count == 1 else router.to(memory_format=torch.channels_last), parts,
            self.images.calibration, self.base.spec.preprocessing, self.limits,
            lambda done, total: self.progress("is it worth it?", done, total),
        )  # fmt: skip

    def run(self, provenance: dict[str, str], after_first_steps: Callable[[], None]) -> Bundle:
        return self._calibrate(self._parts(provenance, after_first_steps))

    def made(self, provenance: dict[str, str]) -> Bundle:
        """The same without a threshold."""
        return self._fit_deferral(self._parts(provenance, lambda: None))

    def _parts(self, provenance: dict[str, str], after_first_steps: Callable[[], None]) -> Bundle:
        extractor, full_tail = self._whole()
        router = self._router(extractor)
        after_first_steps()
        parts = {"extractor": extractor, FULL_TAIL: full_tail, **self._subgraphs().of(extractor)}
        return Bundle(
            spec=self.base.spec,
            class_names=tuple(self.images.scoring.class_names),
            clusters=self.clusters,
            cut=self.network.cut.name,
            deferral=Deferral(),
            threshold=None,
            parts=parts,
            base_state=dict(self.base.module.state_dict()),
            router=router,
            router_config=self.config.router,
            provenance=provenance | self._provenance(),
        )

    def verdict(self, bundle: Bundle) -> Verdict:
        fallback = 1.0 if bundle.threshold is None else bundle.threshold.fallback
        networks = prepare(self.network.graph), SemanticModel(bundle)
        feed = self.base.spec.preprocessing
        return Verdict.of(*networks, fallback, self.images.calibration, feed, self.limits, self.progress)

    def _provenance(self) -> dict[str, str]:
        config = self.config
        rule = f"{describe(config.subgraph)}{', one budget for all' if config.across_clusters else ''}"
        return self.compressor.describe() | {"seed": str(config.seed), "subgraphs": rule}

    # ---- steps

    def _whole(self) -> tuple[Part, Part]:
        """The extractor and the full tail, each made smaller for all classes if asked for."""
        config, network = self.config, self.network
        if config.extractor == config.full_tail == config.whole == 1:
            return Part(network.coupling.keep_all()), Part(network.coupling.keep_all())
        shares = ((config.whole, WHOLE), (config.extractor, EXTRACTOR), (config.full_tail, TAIL))
        rules: list[Rule] = [
            (Budget(share, config.price, config.times), region) for share, region in shares if share < 1
        ]

        def compute() -> Tensors:
            scope = whole_scope(
                self.base, network, self.images.scoring, config.whole_images, config.seed, lambda: self.progress
            )
            part = compress(self.compressor, [scope], rules, self._run(self.whole_passes))[0]
            return part.to_tensors(network.coupling, "")

        tensors = self.store.get("whole", self.compaction | {"full_tail": config.full_tail}, compute)
        return network.split(Part.from_tensors(tensors, network.coupling, ""))

    def _subgraphs(self) -> Subgraphs:
        config = self.config
        return Subgraphs(
            self.base, self.network, self.images.scoring, self.clusters, self.compressor, config.subgraph,
            config.across_clusters, config.seed, self._run(self.tail_passes), self.shelf, self.origin, self.compaction,
        )  # fmt: skip

    def _run(self, passes: Passes) -> Run:
        config = self.config
        return Run(self.store, passes, self.progress, self.fit, config.reconstruct_bytes, notice=self.notice)

    def _router(self, extractor: Part) -> RoutePredictor:
        """The route predictor, before its calibration."""
        config = self.config
        routing = self.origin | {
            "routing": self.images.routing.fingerprint(),
            "draws": config.route_draws,
            "clusters": self.clusters.members,
        }

        views = self._route_images()

        def compute() -> Tensors:
            features: list[Tensor] = []
            rows = 0

            def keep(values: Tensor) -> None:  # as the predictor pools them first of all
                nonlocal rows
                pooled = router.pool(values.float()).half()
                if not features:
                    shape = (views.passes * len(views.images), *pooled.shape[1:])
                    features.append(self.shelf.empty(*shape, dtype=pooled.dtype))
                features[0][rows : rows + len(pooled)] = pooled
                rows += len(pooled)
                self.shelf.forget()

            def teach() -> Tensors:  # the base model's own features are made on the way to what it thinks
                return views.targets((lambda values: None) if extractor.changes else keep)

            targets = self.store.get("targets", routing, teach)["targets"]
            if not features:
                views.features(extractor, keep)
            trained = train_router(
                features[0], targets, config.router, lambda done, total: self.progress("router", done, total)
            )
            return trained.state_dict()

        router = make_predictor(self.network.feature_shape(extractor), len(self.clusters), config.router)
        if len(self.clusters) == 1:
            return router.eval()
        reads = {"extractor": hash_tensors(extractor.to_tensors(self.network.coupling, ""))}
        depends = routing | asdict(config.router) | reads
        router.load_state_dict(self.store.get("router", depends, compute))
        return router.eval().requires_grad_(False)

    def _route_images(self) -> RouteImages:
        config = self.config
        return RouteImages(
            self.base, self.network, self.images.routing, self.clusters, config.route_draws, config.seed, self.progress
        )

    def _calibrate(self, bundle: Bundle) -> Bundle:
        """Temperature, deferral and thresholds, of the whole pipeline on images that nothing else has seen."""
        images, config = self.images.calibration, self.config
        model = SemanticModel(bundle)
        fitting, rest = part_images(images, config.seed)
        observed = self._observed(model, images, fitting)
        deferral, threshold = set_thresholds(
            observed.select(fitting),
            observed.select(rest),
            config.max_loss,
            config.confidence,
            tail_costs(model, config.price),
            choices=config.choices,
        )
        return replace(bundle, deferral=deferral, threshold=threshold)

    def _fit_deferral(self, bundle: Bundle) -> Bundle:
        """The same without the threshold, so by the images that fit alone."""
        config, model = self.config, SemanticModel(bundle)
        fitting, _ = part_images(self.images.calibration, config.seed)
        observed = self._observed(model, self.images.calibration.select(fitting), torch.arange(len(fitting)))
        costs = tail_costs(model, config.price)
        deferral, threshold = without_threshold(observed, config.max_loss, costs)
        return replace(bundle, deferral=deferral, threshold=threshold)

    def _observed(self, model: SemanticModel, images: LabelledImages, fitting: Tensor) -> Observation:
        """What the pipeline does with images; the rows of those that fit set the temperature of the route predictor."""
        shared = run_shared(model, images, lambda done, total: self.progress("calibration", done, total), self.shelf)
        if len(self.clusters) > 1:
            router, of_class = model.bundle.router, self.clusters.of_class()
            calibrate(router, shared.features[fitting], of_class[images.labels[fitting]])
        return observe_routes(model, shared, images.batch)
