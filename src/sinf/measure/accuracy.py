"""Accuracy, MACs, parameters and memory of a bundle beside its base model; for time, :mod:`sinf.measure.timing`."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from sinf.bundle.semantic import Bundle
from sinf.data.images import BATCH, LabelledImages
from sinf.engine.torch_engine import Routes, SemanticModel
from sinf.graph.slice import parameters_of
from sinf.measure.timing import Progress
from sinf.routing.deferral import Deferral
from sinf.routing.router import FULL_TAIL, part_name
from sinf.routing.threshold import Calibration
from sinf.storage.shelf import Shelf


@dataclass(frozen=True)
class ClusterReport:
    """One semantic cluster: accuracies and shares are fractions of its ``images``; MACs are of its subgraph's tail."""

    name: str
    images: int
    base_top1: float
    top1: float
    base_within: float
    within: float
    route_accuracy: float
    fallback: float
    tail_macs: int
    tail_parameters: int


@dataclass(frozen=True)
class Evaluation:
    """Base model and bundle on labelled images. ``loss`` is in percentage points, the other shares are fractions of 1.

    ``subgraph_ran`` is the share that runs a subgraph; some of them fall back after it. ``within`` is the accuracy when
    the true cluster is given: of the base model limited to the cluster's classes, and of the cluster's subgraph.
    ``empty_classes`` names the classes of which there was no image.
    """

    images: int
    base_top1: float
    top1: float
    loss: float
    base_top5: float
    top5: float
    base_within: float
    within: float
    route_accuracy: float
    fallback: float
    subgraph_ran: float
    threshold: float
    promise: str
    base_macs: int
    macs: float
    macs_saved: float
    base_parameters: int
    parameters_active: float
    clusters: list[ClusterReport] = field(default_factory=list)
    empty_classes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Costs:
    """MACs and parameters of every part of a bundle, by name: ``extractor``, ``router``, ``full_tail`` and the
    clusters."""

    macs: dict[str, int]
    parameters: dict[str, int]
    base_macs: int
    base_parameters: int

    @staticmethod
    def of(model: SemanticModel) -> Costs:
        network, router = model.network, model.bundle.router
        graphs = network.graphs_of(model.bundle.parts)
        macs = {name: network.cost_of(graph) for name, graph in graphs.items()}
        parameters = {name: parameters_of(graph) for name, graph in graphs.items()}
        macs["router"], parameters["router"] = router.macs, sum(p.numel() for p in router.parameters())
        return Costs(macs, parameters, network.macs.total(), parameters_of(network.graph))


@dataclass(frozen=True)
class SharedOutputs:
    """What does not depend on routes: the features of images (N, C, H, W), and who is right (N,)."""

    features: Tensor
    labels: Tensor
    fallback_right: Tensor
    base_right: Tensor


@dataclass(frozen=True)
class Observation:
    """What a bundle and its base model do with images (N,), for every threshold at once."""

    routes: Routes
    fallback_right: Tensor
    base_right: Tensor

    def select(self, rows: Tensor) -> Observation:
        """Some of the images."""
        return Observation(Routes(*(t[rows] for t in self.routes)), self.fallback_right[rows], self.base_right[rows])

    def calibration(self, deferral: Deferral, early_threshold: float = 0.0) -> Calibration:
        """What the choice of a threshold needs."""
        routes = self.routes
        return Calibration(
            deferral.confidence(routes.log_route, routes.energy, routes.log_within, routes.margin),
            routes.right,
            self.fallback_right,
            self.base_right,
            routes.log_route.exp(),
            early_threshold,
        )

    def mean_cost(self, by_part: dict[str, int], calibration: Calibration, threshold: float) -> float:
        """Mean cost of an image at a threshold, from that of every part (MACs or parameters, see :class:`Costs`)."""
        ran, fell_back = calibration.subgraph_ran(threshold), ~calibration.routed(threshold)
        return mean_cost(by_part, self.routes.route, ran, fell_back)


def mean_cost(by_part: dict[str, int], route: Tensor, subgraph_ran: Tensor, fell_back: Tensor) -> float:
    """Mean cost of an image, from that of every part and from where the images (N,) went."""
    subgraphs = torch.tensor([by_part[part_name(c)] for c in range(int(route.max()) + 1)], dtype=torch.float64)
    tails = subgraphs[route] * subgraph_ran + by_part[FULL_TAIL] * fell_back
    return by_part["extractor"] + by_part["router"] + float(tails.mean())


@torch.no_grad()
def run_shared(
    model: SemanticModel, images: LabelledImages, progress: Progress | None = None, shelf: Shelf | None = None
) -> SharedOutputs:
    """Run base model, extractor and full tail over all images; features lie on the ``shelf`` if there is one."""
    features, done = torch.empty(0), 0
    fallback: list[Tensor] = []
    base: list[Tensor] = []
    for x, y in images.batches(model.bundle.spec.preprocessing):
        now = model.extractor(x)
        if not done:
            shape = (len(images), *now.shape[1:])
            features = torch.empty(shape) if shelf is None else shelf.empty(*shape)
        features[done : done + len(x)] = now
        base.append(model.engine.base(x).argmax(1) == y)
        fallback.append(model.run_full_tail(now).argmax(1) == y)
        done += len(x)
        if shelf is not None:
            shelf.forget()
        if progress is not None:
            progress(done, len(images))
    return SharedOutputs(features, images.labels, torch.cat(fallback), torch.cat(base))


def observe(model: SemanticModel, images: LabelledImages, progress: Progress | None = None) -> Observation:
    """Run every image through base model, routed subgraph and full tail."""
    return observe_routes(model, run_shared(model, images, progress), images.batch)


def observe_routes(model: SemanticModel, shared: SharedOutputs, batch: int = BATCH) -> Observation:
    """The rest of :func:`observe`, for a model that is calibrated in between."""
    return Observation(model.route_all(shared.features, shared.labels, batch), shared.fallback_right, shared.base_right)


@torch.no_grad()
def evaluate(
    model: SemanticModel, images: LabelledImages, *, batch: int | None = None, progress: Progress | None = None
) -> Evaluation:
    """Run base and bundle over labelled images, ``batch`` at once or as many as these are given in; what is said of an
    image does not depend on its batch."""
    empty = images.warn_of_empty_classes("the evaluation")
    clusters = model.bundle.clusters
    router = model.feature_router.one_by_one()
    of_class = clusters.of_class()
    rows: dict[str, list[Tensor]] = {}

    def add(**values: Tensor) -> None:
        for name, value in values.items():
            rows.setdefault(name, []).append(value)

    done = 0
    for x, y in images.batches(model.bundle.spec.preprocessing, batch):
        base = model.engine.base(x)
        routed = router.route(x)
        true = of_class[y]
        limited = base.masked_fill(of_class[None] != true[:, None], -torch.inf)
        add(
            y=y,
            true=true,
            base=base.argmax(1) == y,
            right=routed.logits.argmax(1) == y,
            base5=_in_top5(base, y),
            right5=_in_top5(routed.logits, y),
            base_within=limited.argmax(1) == y,
            within=_within(model, x, y, true),
            route=routed.route,
            fell_back=routed.fell_back,
            subgraph_ran=routed.subgraph_ran,
        )
        done += len(y)
        if progress is not None:
            progress(done, len(images))
    return _summary(model, {name: torch.cat(parts) for name, parts in rows.items()}, empty)


def _in_top5(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.topk(min(5, logits.shape[1]), 1).indices == y[:, None]).any(1)


def _within(model: SemanticModel, x: Tensor, y: Tensor, true: Tensor) -> Tensor:
    """Whether the subgraph of the true cluster answers right."""
    features = model.extractor(x)
    right = torch.zeros(len(y), dtype=torch.bool)
    for cluster in true.unique().tolist():
        mine = true == cluster
        members = torch.tensor(model.bundle.clusters.members[cluster])
        right[mine] = members[model.run_subgraph(cluster, features[mine]).argmax(1)] == y[mine]
    return right


def _summary(model: SemanticModel, rows: dict[str, Tensor], empty: list[str]) -> Evaluation:
    costs = Costs.of(model)
    went = (rows["route"], rows["subgraph_ran"], rows["fell_back"])

    def mean(name: str, mask: Tensor | None = None) -> float:
        values = rows[name] if mask is None else rows[name][mask]
        return float(values.double().mean()) if len(values) else float("nan")

    rows["routed_right"] = rows["route"] == rows["true"]
    macs = mean_cost(costs.macs, *went)
    reports = []
    for cluster, name in enumerate(model.bundle.clusters.names):
        mine = rows["true"] == cluster
        reports.append(
            ClusterReport(
                name,
                int(mine.sum()),
                mean("base", mine),
                mean("right", mine),
                mean("base_within", mine),
                mean("within", mine),
                mean("routed_right", mine),
                mean("fell_back", mine),
                costs.macs[part_name(cluster)],
                costs.parameters[part_name(cluster)],
            )
        )
    return Evaluation(
        images=len(rows["y"]),
        base_top1=mean("base"),
        top1=mean("right"),
        loss=100 * (mean("base") - mean("right")),
        base_top5=mean("base5"),
        top5=mean("right5"),
        base_within=mean("base_within"),
        within=mean("within"),
        route_accuracy=mean("routed_right"),
        fallback=mean("fell_back"),
        subgraph_ran=mean("subgraph_ran"),
        threshold=model.threshold,
        promise=promise(model),
        base_macs=costs.base_macs,
        macs=macs,
        macs_saved=1 - macs / costs.base_macs,
        base_parameters=costs.base_parameters,
        parameters_active=mean_cost(costs.parameters, *went),
        clusters=reports,
        empty_classes=empty,
    )


def promise(model: SemanticModel, engine: str = "torch", precision: str = "f32") -> str:
    """What is promised of a bundle's loss in an engine, with the threshold that it has now."""
    calibrated = model.bundle.threshold
    if calibrated is None:
        return "No promise: the bundle is not calibrated."
    return calibrated.promise(model.threshold, engine, precision)


def first_images(images: LabelledImages, model: SemanticModel, count: int) -> Tensor:
    """The first ``count`` images, normalised, (n, C, H, W)."""
    preprocessing = model.bundle.spec.preprocessing
    return preprocessing.normalise(images.pixels(preprocessing, 0, count))


def memory_bytes(kind: str = "VmRSS") -> int | None:
    """Memory of this process (``VmRSS`` now, ``VmHWM`` at its peak, ``RssAnon`` without files), None where Linux does
    not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(kind + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def folder_bytes(folder: str | Path) -> int:
    """Size of all files of a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def facts(folder: str | Path | None, load_seconds: float, engine: str = "torch") -> dict[str, Any]:
    """What stands beside the times of a bundle: engine, size on disk (of every file too), load time, peak memory of the
    process, machine."""
    sizes = None
    if folder is not None and Path(folder).is_dir():
        sizes = {path.name: path.stat().st_size for path in sorted(Path(folder).iterdir()) if path.is_file()}
    return {
        "engine": engine,
        "load_seconds": load_seconds,
        "bundle_bytes": None if sizes is None else sum(sizes.values()),
        "file_bytes": sizes,
        "peak_memory_bytes": memory_bytes("VmHWM"),
        **machine(),
    }


def machine() -> dict[str, str]:
    """What figures depend on: processor, cores, versions."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {
        "processor": processor,
        "cores": str(os.cpu_count()),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
    }


def tail_shares(bundle: Bundle) -> tuple[float, float]:
    """What the subgraphs of a bundle keep of the base model's tail, in the mean over clusters: a share of the MACs and
    one of the weights."""
    network = bundle.network()
    tails = [network.tail(bundle.parts[part_name(cluster)]) for cluster in range(len(bundle.clusters))]

    def count(tail: fx.GraphModule) -> tuple[float, float]:
        macs = network.cost_of(tail)
        return macs, network.cost_of(tail, 1.0) - macs

    base = count(network.parts.tail)
    kept = [count(tail) for tail in tails]
    return sum(k[0] for k in kept) / (len(kept) * base[0]), sum(k[1] for k in kept) / (len(kept) * base[1])
