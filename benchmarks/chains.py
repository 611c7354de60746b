"""Whether a third stage between a cascade's small and full tail pays, on CIFAR-100.

    python benchmarks/chains.py vgg16 WEIGHTS CIFAR100 --work runs/chains

- two tails: a small one, and the full one where that is unsure, as sinf builds cascades;
- three tails: a middle one for all classes in between;
- coarse to fine: in between the subgraph of the superclass that the small tail names.

All by ranks, cut at the same place, from one extractor and one full tail, in torch. A tail is sure by the margin of its
logits. For each limit, sizes and thresholds are those that cost least on test[:50%], where the mean loss is within the
limit, and are reported once, on test[50%:]. The cost is predicted: MACs with the price of weights and calls, of the
stages that an image runs, as a share of the base model's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from candidates import say
from table import Table
from torch import Tensor, fx

from sinf import BaseModel, BuildConfig, Images, LabelledImages, SemanticModel, load_images, load_model
from sinf.bundle.semantic import Bundle
from sinf.data.clusters import Clusters, from_column, one_cluster
from sinf.graph.cost import WEIGHT_COST
from sinf.graph.network import PartedNetwork
from sinf.measure.delivery import ExpectedLoss
from sinf.pipelines.build import make_bundle
from sinf.pipelines.calibration import CALL_COST, tail_costs
from sinf.routing.deferral import margin_of
from sinf.routing.predictor import RouterConfig
from sinf.storage.steps import StepStore

LIMITS = (0.25, 0.5, 1.0, 2.0)  # points
CUT, WHOLE, SUBGRAPH = 0.15, 0.65, 0.1
SIZES = (0.15, 0.2, 0.25, 0.4)  # of the tail, that tails for all classes keep
SCORED = 10_000  # train images, five hundred of a superclass
LEVELS = 31  # quantiles of a margin that are tried as its threshold
TWO, THREE, FINE = "two tails", "three tails", "coarse to fine"
COLUMNS = (
    "model", "dataset", "what", "asked", "small", "middle", "base_top1", "chosen_loss", "loss", "loss_low", "loss_high",
    "cost", "passed_on", "fallback", "images", "engine", "device", "seed", "date", "versions",
)  # fmt: skip


class Stage(NamedTuple):
    """What a tail says of images (N,): their classes, how sure it is, and its share of the base model's cost."""

    name: str
    answers: Tensor
    margin: Tensor
    cost: float


class Chain(NamedTuple):
    """Stages with the margins below which an image is passed on, of all but the last."""

    what: str
    stages: tuple[Stage, ...]
    thresholds: tuple[float, ...]

    def run(self, rows: Tensor, start: float) -> tuple[Tensor, float, list[float]]:
        """Classes of these rows, the mean cost where all begin with ``start``, and the shares that reach each stage."""
        left, answers, cost, shares = torch.ones(len(rows), dtype=torch.bool), torch.zeros(len(rows)).long(), start, []
        for number, stage in enumerate(self.stages):
            shares.append(float(left.double().mean()))
            cost += shares[-1] * stage.cost
            answers = torch.where(left, stage.answers[rows], answers)
            if number < len(self.thresholds):
                left = left & (stage.margin[rows] < self.thresholds[number])
        return answers, cost, shares


class Observed:
    """All tails, for all images of ``images``, run once."""

    def __init__(self, base: BaseModel, train: LabelledImages, images: LabelledImages, store: StepStore) -> None:
        self.base, self.train, self.images, self.store = base, train, images, store
        scored = train.sample(SCORED, 0)
        parts = Images(scored, scored.sample(1000), images)
        small = {size: self._bundle(one_cluster(base.spec.classes), parts, size) for size in SIZES}
        model = SemanticModel(small[SIZES[0]])
        network, preprocessing = model.network, base.spec.preprocessing
        whole = _cost(network, network.graph)
        with torch.inference_mode():
            self.expected = torch.cat([base.module(x).argmax(1) for x, _ in images.batches(preprocessing)])
            features = torch.cat([model.extractor(x) for x, _ in images.batches(preprocessing)])
        self.start = _cost(network, network.extractor(model.bundle.parts["extractor"])) / whole
        full, _ = self._logits(model, features, None)
        self.full = Stage("full", full.argmax(1), margin_of(full), tail_costs(model, WEIGHT_COST)[1] / whole)
        self.small, self.fine = {}, {}
        clusters = from_column(train)
        named = SemanticModel(self._bundle(clusters, parts, SUBGRAPH))
        onto = torch.nn.functional.one_hot(clusters.of_class()).float()
        for size, bundle in small.items():
            opened = SemanticModel(bundle)
            logits, cost = self._logits(opened, features, 0)
            self.small[size] = Stage(f"{size:g}", logits.argmax(1), margin_of(logits), cost / whole)
            route = (logits.softmax(1) @ onto).argmax(1)
            self.fine[size] = self._named(named, clusters, features, route, whole)
            say(f"small tail {size:g}", 0, 1)

    def _bundle(self, clusters: Clusters, images: Images, size: float) -> Bundle:
        config = BuildConfig(
            method="ranks", cut_at=CUT, whole=WHOLE, macs=size, weight_cost=WEIGHT_COST, max_loss=0.9,
            keep_anyway=True, router=RouterConfig(epochs=1, hidden=16), route_draws=1000,
        )  # fmt: skip
        return make_bundle(self.base, images, clusters, config, self.store, say)

    @torch.inference_mode()
    def _logits(self, model: SemanticModel, features: Tensor, cluster: int | None) -> tuple[Tensor, float]:
        """Of the full tail (None), or of a cluster's subgraph, and the mean cost of subgraphs."""
        run = model.run_full_tail if cluster is None else lambda part: model.run_subgraph(cluster, part)
        return torch.cat([run(part).clone() for part in features.split(250)]), tail_costs(model, WEIGHT_COST)[0]

    @torch.inference_mode()
    def _named(self, model: SemanticModel, clusters: Clusters, features: Tensor, route: Tensor, whole: float) -> Stage:
        """The subgraphs of the clusters that a small tail names."""
        answers, margin = torch.zeros_like(route), torch.zeros(len(route))
        for cluster in route.unique().tolist():
            rows, classes = torch.nonzero(route == cluster).flatten(), torch.tensor(clusters.members[cluster])
            logits = model.run_subgraph(cluster, features[rows])
            answers[rows], margin[rows] = classes[logits.argmax(1)], margin_of(logits)
        return Stage(f"{SUBGRAPH:g} of the superclass", answers, margin, tail_costs(model, WEIGHT_COST)[0] / whole)

    def chains(self, what: str, rows: Tensor) -> Iterator[Chain]:
        """With thresholds at quantiles of the margins on ``rows``, of the second stage on what reaches it."""
        for size, first in self.small.items():
            middles: list[Stage | None] = [None]
            if what == THREE:
                middles = [stage for larger, stage in self.small.items() if larger > size]
            elif what == FINE:
                middles = [self.fine[size]]
            for middle, low in product(middles, _levels(first.margin[rows], 2 * LEVELS if what == TWO else LEVELS)):
                if middle is None:
                    yield Chain(what, (first, self.full), (low,))
                    continue
                reach = rows[first.margin[rows] < low]
                for high in _levels(middle.margin[reach], LEVELS):
                    yield Chain(what, (first, middle, self.full), (low, high))


def _cost(network: PartedNetwork, graph: fx.GraphModule) -> float:
    """As :func:`sinf.pipelines.calibration.tail_costs` counts it."""
    calls = sum(node.op.startswith("call") for node in graph.graph.nodes)
    return CALL_COST * calls + network.cost_of(graph, WEIGHT_COST)


def _levels(margin: Tensor, count: int) -> list[float]:
    return [] if not len(margin) else sorted(set(torch.quantile(margin, torch.linspace(0, 1, count)).tolist()))


def main(
    name: str,
    weights: Path,
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder for results of steps; may be used again.")],
    threads: int = 1,
) -> None:
    torch.set_num_threads(threads)
    table = Table(
        f"chains_{name}.csv", COLUMNS, ("what", "asked"), model=name, dataset="cifar100", engine="torch", seed=0
    )
    base = load_model(name, weights=weights)
    images = load_images(data, "test")
    observed = Observed(base, load_images(data, "train"), images, StepStore(work))
    choosing, reporting = torch.arange(len(images)).tensor_split(2)
    labels = images.labels
    for what in (TWO, THREE, FINE):
        best: dict[float, tuple[float, float, Chain]] = {}
        for chain in observed.chains(what, choosing):
            answers, cost, _ = chain.run(choosing, observed.start)
            right = observed.expected[choosing] == labels[choosing]
            loss = 100 * float((right.double() - (answers == labels[choosing]).double()).mean())
            for asked in LIMITS:
                if loss <= asked and (asked not in best or cost < best[asked][0]):
                    best[asked] = cost, loss, chain
        for asked, (_, chosen_loss, chain) in best.items():
            add(table, observed, chain, asked, chosen_loss, reporting)


def add(
    table: Table, observed: Observed, chain: Chain, asked: float, chosen_loss: float, rows: Tensor
) -> dict[str, Any]:
    answers, cost, shares = chain.run(rows, observed.start)
    loss = ExpectedLoss.of(observed.expected[rows], answers, observed.images.labels[rows])
    row = table.add(
        what=chain.what, asked=asked, small=chain.stages[0].name,
        middle=chain.stages[1].name if len(chain.stages) > 2 else "", base_top1=loss.base_top1, chosen_loss=chosen_loss,
        loss=loss.points, loss_low=loss.low, loss_high=loss.high, cost=cost, passed_on=shares[1], fallback=shares[-1],
        images=loss.images,
    )  # fmt: skip
    print(f"{chain.what} asked {asked:g}: {loss}, cost {cost:.3f}", flush=True)
    return row


if __name__ == "__main__":
    typer.run(main)
