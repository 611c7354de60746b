"""What the headline compares on CIFAR-100: ways to make a network faster, each at a few sizes (a *plan*), what every
plan answers, and which plan a limit of the loss picks.

    python benchmarks/candidates.py vgg16 WEIGHTS CIFAR100 --work runs/headline     # prepares all plans; goes on

Scored on train images, routed by all of them. Everything is chosen on test[:50%]: for networks without routes the
cheapest plan whose loss there is within the limit; for routed ones the plan that is cheapest with the threshold that
the limit gets there, or, where a confidence is asked for, the plan that was cheapest on the share of test[:50%] that
does not set the threshold (so the guarantee holds of it). What is cheap is predicted, not timed: MACs, and what loading
weights and calling operations counts for beside them. test[50%:] is for the report alone.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor, nn

from sinf import BuildConfig, Images, LabelledImages, SemanticModel, build, load_images, load_model
from sinf.bundle.semantic import Bundle
from sinf.data.clusters import Clusters, from_column, one_cluster
from sinf.engine.engines import open_engine
from sinf.engine.onnx_parts import graph_to_onnx
from sinf.engine.onnxruntime_engine import OnnxRuntimeEngine
from sinf.engine.torch_engine import Routes
from sinf.errors import ConfigError
from sinf.graph.cost import WEIGHT_COST, MacCount
from sinf.graph.coupling import couple
from sinf.graph.prepare import prepare
from sinf.graph.slice import parameters_of
from sinf.graph.trace import trace
from sinf.measure.accuracy import Costs, Observation, observe
from sinf.measure.bootstrap import interval
from sinf.models import BaseModel
from sinf.pipelines.calibration import CALL_COST, part_images, set_thresholds, tail_costs
from sinf.pipelines.prune import Amount, PruneConfig, prune
from sinf.routing.clustering import find_clusters
from sinf.routing.deferral import Deferral
from sinf.routing.router import FRONT, FULL_TAIL, FeatureRouter, part_name
from sinf.routing.threshold import Calibration, Threshold
from sinf.storage.files import hash_tensors, sha256, write_tensors
from sinf.storage.steps import StepStore

CHANNELS, RANKS, RANKS_TIME = "static", "static-low-rank", "static-low-rank-time"
ROUTED, CASCADE = "semantic", "cascade"
GIVEN, FOUND = "semantic-ranks", "semantic-ranks-found"  # superclasses, or what the base model confuses; by ranks
IMAGES = 4000  # that pruning looks at, as many as `sinf prune` does without an option
DRAWS = 9999  # of the bootstrap over images
#: Cut point, and plans by method: a budget where there are no routes, else what differs from a build's defaults.
#: Without reconstruction an extractor and full tail that are pruned for all classes lose too much: they stay whole.
PLANS: dict[str, dict[str, Any]] = {
    "vgg16": {
        "cut": "features.23",
        RANKS_TIME: (0.42, 0.35, 0.5, 0.28, 0.46, 0.38, 0.33, 0.31),
        CASCADE: (
            {"cut": "features.13", "whole": 0.5, "subgraph": 0.15},
            {"cut": "features.13", "whole": 0.42, "subgraph": 0.12},
            {"cut": "features.13", "whole": 0.75, "subgraph": 0.15},
        ),
        ROUTED: ({"whole": 0.75, "subgraph": 0.12},),
        "semantic-wholeextractor": ({"full_tail": 0.85, "subgraph": 0.1},),
        RANKS: (0.5, 0.65, 0.35),
        CHANNELS: (0.7, 0.8, 0.6),
        "semantic-noreconstruct": ({"subgraph": 0.5}, {"subgraph": 0.3}),
    },
    "resnet50": {
        "cut": "layer2",
        RANKS_TIME: (0.8, 0.65, 0.5),
        ROUTED: ({"whole": 0.85, "subgraph": 0.3},),
        "semantic-wholeextractor": ({"subgraph": 0.3},),
        RANKS: (0.65, 0.5),
        CHANNELS: (0.9, 0.8, 0.7),
        "semantic-noreconstruct": ({"subgraph": 0.6}, {"subgraph": 0.4}),
    },
    "resnet56": {
        "cut": "layer2",
        RANKS_TIME: (0.8, 0.72, 0.65),
        CASCADE: (
            {"cut": "layer1", "whole": 0.8, "subgraph": 0.3},
            {"cut": "layer2", "whole": 0.8, "subgraph": 0.3},
        ),
        ROUTED: ({"extractor": 0.95, "subgraph": 0.5},),
        "semantic-wholeextractor": ({"subgraph": 0.5},),
        RANKS: (0.65, 0.57, 0.5),
        CHANNELS: (0.95, 0.9),
        "semantic-noreconstruct": ({"subgraph": 0.7}, {"subgraph": 0.5}),
    },
}
PLANS["vgg19"] = PLANS["vgg16"] | {"cut": "features.26"}
LIMITS = {"vgg16": (0.5, 1.0, 2.0), "vgg19": (0.5, 1.0, 2.0), "resnet50": (1.0, 2.0), "resnet56": (1.0, 2.0)}


@dataclass(frozen=True)
class Plan:
    """One network to be made: its method, and a budget (of MACs, with a weight's price for the methods that have one)
    or what differs from a build's defaults."""

    method: str
    budget: float | None = None
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        sizes = [f"{name} {value}" for name, value in self.changes]
        return ", ".join(sizes) if self.budget is None else f"{self.budget:g}"

    @property
    def routed(self) -> bool:
        return self.budget is None

    @property
    def family(self) -> str:
        """Of these plans one is chosen: all of a method, and all routed ones of removed channels."""
        return self.method if not self.routed or self.method in (CASCADE, GIVEN, FOUND) else ROUTED

    def prune_config(self) -> PruneConfig:
        assert self.budget is not None
        cost = 0.0 if self.method == RANKS else WEIGHT_COST
        method = "channels" if self.method == CHANNELS else "ranks"
        return PruneConfig(Amount(macs=self.budget, weight_cost=cost), method, limits=None, images=IMAGES)

    def build_config(self, cut: str) -> BuildConfig:
        """The limit is out of the way: thresholds are set for every limit by :func:`choose`."""
        changes: dict[str, Any] = dict(self.changes)
        changes["macs"] = changes.pop("subgraph")
        method = "channels" if self.family == ROUTED else "ranks"
        return BuildConfig(
            method=method, reconstruct=self.method != "semantic-noreconstruct", max_loss=0.5, keep_anyway=True,
            weight_cost=WEIGHT_COST, **({"cut": cut} | changes),
        )  # fmt: skip


def plans(name: str, methods: Iterable[str] | None = None) -> list[Plan]:
    """All plans of a network, or those of some methods; the most telling first."""
    table = {method: sizes for method, sizes in PLANS[name].items() if method != "cut"}
    wanted = list(table) if methods is None else list(methods)
    return [
        Plan(method, changes=tuple(size.items())) if isinstance(size, dict) else Plan(method, size)
        for method in wanted
        for size in table[method]
    ]


class Answers(NamedTuple):
    """Whether base and pruned are right about images (N,)."""

    right: Tensor
    base_right: Tensor


class Setup:
    """Base model, images and work folder of one comparison. What was computed once is read again."""

    def __init__(self, name: str, weights: Path, data: Path, work: Path, fresh: bool = False) -> None:
        self.name, self.work, self.fresh = name, work, fresh
        self.base = load_model(name, weights=weights)
        self.train = load_images(data, "train")
        self.images = Images(load_images(data, "train[:10000]"), self.train, load_images(data, "test[:50%]"))
        self.report = load_images(data, "test[50%:]")
        self.cut: str = PLANS[name]["cut"]
        self.store = StepStore(work / "answers")

    @property
    def halves(self) -> tuple[LabelledImages, LabelledImages]:
        """The images that choose, and those that are reported."""
        return self.images.calibration, self.report

    @cached_property
    def base_graph(self) -> nn.Module:
        return trace(self.base.module, self.base.spec.preprocessing)

    def pruned(self, plan: Plan) -> BaseModel:
        return prune(self.base, self.train, plan.prune_config(), self.work / "steps", progress=say)

    def bundle(self, plan: Plan) -> Bundle:
        """Built, or read where it was built before and ``fresh`` is not asked for."""
        folder, steps = self.folder(plan), self.work / "steps"
        if folder.is_dir() and not self.fresh:
            return Bundle.load(folder)
        config = plan.build_config(self.cut)
        return build(self.base, self.images, self.clusters(plan), config, folder, work=steps, progress=say)

    def clusters(self, plan: Plan) -> Clusters:
        if plan.method == CASCADE:
            return one_cluster(self.base.spec.classes)
        if plan.method != FOUND:
            return from_column(self.images.scoring)
        cut = dict(plan.changes).get("cut", self.cut)
        return find_clusters(self.base, self.images.scoring, cut=cut, progress=say).clusters

    def folder(self, plan: Plan) -> Path:
        """Where the bundle of a plan is."""
        return self.work / "bundles" / f"{self.name} {plan.method} {plan.label}".replace(" ", "_").replace(",", "")

    def answers(self, pruned: BaseModel) -> tuple[Answers, Answers]:
        """Of a network without routes, on both halves."""
        found = []
        for images in self.halves:
            depends = {"images": images.fingerprint(), "model": hash_tensors(pruned.module.state_dict())}

            def compute(images: LabelledImages = images) -> dict[str, Tensor]:
                ours = prepare(trace(pruned.module, pruned.spec.preprocessing))
                return {"right": self.right(ours, images), "base_right": self.right(prepare(self.base_graph), images)}

            found.append(Answers(**self.store.get("answers", depends, compute)))
        return found[0], found[1]

    @torch.no_grad()
    def right(self, model: nn.Module, images: LabelledImages) -> Tensor:
        batches = images.batches(self.base.spec.preprocessing)
        return torch.cat([model(x).argmax(1) == y for x, y in batches])

    def observations(self, plan: Plan, bundle: Bundle) -> tuple[Observation, Observation]:
        """Of a routed network, on both halves; kept as long as the bundle's tensors stay the same."""
        tensors = {path.name: sha256(path) for path in sorted(self.folder(plan).glob("*.safetensors"))}
        found = []
        for images in self.halves:

            def compute(images: LabelledImages = images) -> dict[str, Tensor]:
                observed = observe(SemanticModel(bundle), images)
                rows = {"fallback_right": observed.fallback_right, "base_right": observed.base_right}
                return rows | {f"routes.{name}": value for name, value in observed.routes._asdict().items()}

            depends = {"images": images.fingerprint(), "bundle": tensors}
            rows = self.store.get("observation", depends, compute)
            routes = Routes(**{name: rows[f"routes.{name}"] for name in Routes._fields})
            found.append(Observation(routes, rows["fallback_right"], rows["base_right"]))
        return found[0], found[1]


@dataclass(frozen=True)
class Choice:
    """What a limit of the loss picks, and what it does to the images of the report: ``losses`` (N,) in {-1, 0, 1}.
    Shares are fractions of 1, ``asked`` and ``calibration_loss`` are in percentage points; ``cost`` is predicted, as a
    share of the base model's."""

    plan: Plan
    asked: float
    confidence: float | None
    calibration_loss: float
    cost: float
    losses: Tensor
    base_top1: float
    macs_saved: float
    params_active: float
    fallback: float = 0.0
    subgraph_ran: float = 0.0
    deferral: Deferral = field(default_factory=Deferral)
    threshold: Threshold | None = None

    @property
    def loss(self) -> float:
        return 100 * float(self.losses.double().mean())

    def interval(self) -> tuple[float, float]:
        """95 % of the loss in points: a bootstrap over images, base model and candidate of one image together."""
        low, high = interval(np.mean, self.losses, draws=DRAWS)
        return 100 * low, 100 * high


class Static:
    """A plan without routes, made and observed."""

    def __init__(self, setup: Setup, plan: Plan) -> None:
        self.plan, self.model = plan, setup.pruned(plan)
        self.calibration, self.report = setup.answers(self.model)
        self.cost = _predicted(self.model.module, self.model) / _predicted(setup.base.module, setup.base)
        macs, base = (_count(model).total() for model in (self.model, setup.base))
        self.macs_saved = 1 - macs / base

    def at(self, asked: float) -> Choice:
        """As it is: there is nothing to set."""
        loss = self.calibration.base_right.double().mean() - self.calibration.right.double().mean()
        return Choice(
            self.plan, asked, None, 100 * float(loss), self.cost,
            self.report.base_right.float() - self.report.right.float(), float(self.report.base_right.double().mean()),
            self.macs_saved, parameters_of(self.model.module),
        )  # fmt: skip


class Routed:
    """A routed plan, built and observed."""

    def __init__(self, setup: Setup, plan: Plan) -> None:
        self.plan, self.bundle = plan, setup.bundle(plan)
        self.model = SemanticModel(self.bundle)
        self.calibration, self.report = setup.observations(plan, self.bundle)
        self.parts = part_images(setup.images.calibration, 0)
        self.costs, self.predicted = Costs.of(self.model), _predicted_parts(self.model)
        self.base_cost = _predicted(self.model.network.graph, setup.base)

    def at(self, asked: float, confidence: float | None = None, on_fitting: bool = False) -> Choice:
        """With the threshold that a limit (in points) gets from test[:50%]; ``on_fitting`` sets it on the same images
        that fit everything else, to choose among plans by.

        Raises:
            ConfigError: no threshold keeps the limit.
        """
        fitting, rest = (self.calibration.select(rows) for rows in self.parts)
        setting = fitting if on_fitting else rest
        tails = tail_costs(self.model, WEIGHT_COST)
        deferral, threshold = set_thresholds(fitting, setting, asked / 100, confidence, tails)
        chosen, reported = (part.calibration(deferral, threshold.early) for part in (setting, self.report))
        value, macs = threshold.value, self.costs.macs
        return Choice(
            self.plan, asked, confidence, 100 * threshold.loss,
            setting.mean_cost(self.predicted, chosen, value) / self.base_cost,
            reported.losses(value), float(self.report.base_right.double().mean()),
            1 - self.report.mean_cost(macs, reported, value) / self.costs.base_macs,
            self.report.mean_cost(self.costs.parameters, reported, value),
            1 - share(reported, Calibration.routed, value), share(reported, Calibration.subgraph_ran, value),
            deferral, threshold,
        )  # fmt: skip


def routers(
    one: Routed, choices: Mapping[str, Choice], engine: str, images: Any, warm: int = 300
) -> dict[str, FeatureRouter]:
    """The bundle of a plan in an engine, with the thresholds of every choice, by the choice's name. All share one
    engine, whose parts are made by the first ``warm`` of the images."""
    running: dict[str, FeatureRouter] = {}
    engines: dict[Deferral, FeatureRouter] = {}
    for name, choice in choices.items():
        assert choice.threshold is not None
        if choice.deferral not in engines:
            bundle = replace(one.bundle, deferral=choice.deferral, threshold=choice.threshold)
            engines[choice.deferral] = open_engine(SemanticModel(bundle), engine)
            open_parts(engines[choice.deferral], len(bundle.clusters), images)
        whole = engines[choice.deferral]
        limits = choice.threshold.value, choice.threshold.early
        running[name] = FeatureRouter(whole.engine, whole.size, *limits)
        for i in range(min(warm, len(images))):
            running[name](images[i : i + 1])
    return running


def open_parts(router: FeatureRouter, clusters: int, images: Any) -> None:
    """Every part runs once: one that few images need would be made while it is timed."""
    features, log_clusters, *_ = router.engine.run(FRONT, images[:1])
    for cluster in range(clusters):
        router.engine.run(part_name(cluster), features, log_clusters)
    router.engine.run(FULL_TAIL, features)


def in_engine(model: BaseModel, engine: str) -> Callable[[Any], Any]:
    """A network without routes in torch or ONNX Runtime, for batches of one."""
    graph = prepare(trace(model.module, model.spec.preprocessing))
    if engine == "torch":
        return graph
    content = graph_to_onnx(graph, model.spec.preprocessing.size, 1).SerializeToString()
    sessions = OnnxRuntimeEngine(lambda part: content)
    return lambda images: sessions.run("whole", images)[0]


def share(calibration: Calibration, of: Callable[[Calibration, float], Tensor], threshold: float) -> float:
    return float(of(calibration, threshold).double().mean())


def choose_static(made: Iterable[Static], asked: float) -> Choice | None:
    """The cheapest network whose loss on test[:50%] is within a limit (points)."""
    within = [choice for choice in (one.at(asked) for one in made) if choice.calibration_loss <= asked]
    return min(within, key=lambda choice: choice.cost, default=None)


def choose_routed(made: Iterable[Routed], asked: float, confidence: float | None = None) -> Choice | None:
    """The plan that is cheapest with the threshold that the limit (points) gets, at that threshold."""
    made, on_fitting = list(made), confidence is not None
    choices = [(at(one, asked, on_fitting=on_fitting), one) for one in made]
    within = [(choice, one) for choice, one in choices if choice is not None]
    if not within:
        return None
    best, one = min(within, key=lambda pair: pair[0].cost)
    return best if confidence is None else at(one, asked, confidence)


def at(one: Routed, asked: float, confidence: float | None = None, on_fitting: bool = False) -> Choice | None:
    """None where no threshold keeps the limit."""
    try:
        return one.at(asked, confidence, on_fitting)
    except ConfigError:
        return None


def _count(model: BaseModel) -> MacCount:
    graph = trace(model.module, model.spec.preprocessing)
    return MacCount(graph, couple(graph, free_output=True))


def _predicted(module: nn.Module, model: BaseModel) -> float:
    """What one input costs at batch 1, in MACs."""
    graph = trace(module, model.spec.preprocessing)
    return _count(model).total(None, WEIGHT_COST) + CALL_COST * calls(graph)


def calls(graph: Any) -> int:
    return sum(node.op.startswith("call") for node in graph.graph.nodes)


def _predicted_parts(model: SemanticModel) -> dict[str, Any]:
    """The same for every part of a bundle."""
    network, router = model.network, model.bundle.router
    graphs = network.graphs_of(model.bundle.parts)
    costs = {name: network.cost_of(graph, WEIGHT_COST) + CALL_COST * calls(graph) for name, graph in graphs.items()}
    costs["router"] = router.macs + WEIGHT_COST * sum(p.numel() for p in router.parameters()) + CALL_COST * 10
    return costs


def write_observed(one: Routed, path: Path) -> None:
    """Every test image in the order of the file (N,), as safetensors: every field of an Observation."""
    halves = (one.calibration, one.report)
    rows = {name: [getattr(half.routes, name) for half in halves] for name in Routes._fields}
    rows |= {name: [getattr(half, name) for half in halves] for name in ("fallback_right", "base_right")}
    write_tensors({name: torch.cat(parts) for name, parts in rows.items()}, path)


def say(step: str, done: int, total: int, last: list[str] = [""]) -> None:  # noqa: B006  (what was said already)
    if step != last[0]:
        last[0] = step
        print(f"{datetime.datetime.now():%H:%M:%S} {step}", file=sys.stderr, flush=True)


def main(
    name: str,
    weights: Path,
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder for results of steps; may be used again.")],
    only: Annotated[str, typer.Option(help="Methods, with commas between [default: all].")] = "",
    threads: int = 1,
    observed: Annotated[
        Path | None, typer.Option(help="Also write what the first routed plan does with all test images.")
    ] = None,
) -> None:
    torch.set_num_threads(threads)
    setup = Setup(name, weights, data, work, fresh=True)
    for plan in plans(name, only.split(",") if only else None):
        print(f"{datetime.datetime.now():%H:%M:%S} {plan.method} {plan.label} ...", flush=True)
        try:
            made = Routed(setup, plan) if plan.routed else Static(setup, plan)
        except ConfigError as error:  # a budget out of reach
            print(f"left out: {error}", flush=True)
            continue
        if observed is not None and plan.method == ROUTED and isinstance(made, Routed):
            write_observed(made, observed)
            observed = None
        for asked in LIMITS[name]:
            choice = at(made, asked) if isinstance(made, Routed) else made.at(asked)
            if choice is None:
                print(f"  asked {asked:g}: out of reach", flush=True)
                continue
            print(
                f"  asked {asked:g}: test[:50%] loses {choice.calibration_loss:.2f}, cost {choice.cost:.3f}, "
                f"MACs saved {choice.macs_saved:.3f}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
