"""Criteria at equal MACs on CIFAR-100: static, and per cluster with the true cluster given.

    python benchmarks/criteria.py vgg16 WEIGHTS CIFAR100

Scored on 20 train images of every class (40 for a cluster), the same for all criteria, in one pass; reported on the
first ``images`` of test[50%:]. Every row is one network: a criterion, a budget of MACs, how the budget is spent
(``uniform``: the same share of channels in every layer, so that criteria only choose which; ``budget``: where a channel
costs least by the criterion's own scores; ``clusters``: the same, one budget for all clusters together), and what is
done to the weights that stay:

    plain           nothing
    recalibrated    batch-norm statistics from the fitting images
    reconstructed   least squares on the same images

With ``--keep`` rows that are in the file are not measured again: the same command goes on where it was stopped, the
most telling rows first. ``base_top1`` of method semantic-truecluster is the base model's, limited to the cluster's
classes.
"""

from __future__ import annotations

import copy
import datetime
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from table import Table
from torch import Tensor, fx

from sinf import load_images, load_model
from sinf.compress.channels import importances
from sinf.compress.recalibrate import recalibrate
from sinf.compress.reconstruct import reconstruct
from sinf.compress.select import Budget, Candidates, Schedule, select, select_together
from sinf.criteria import NAMES, make_criterion
from sinf.data.clusters import Clusters, from_column
from sinf.data.images import BATCH, LabelledImages
from sinf.errors import ConfigError
from sinf.graph.cost import MacCount
from sinf.graph.coupling import CoupledGroup
from sinf.graph.network import PartedNetwork
from sinf.graph.prepare import prepare
from sinf.graph.slice import parameters_of, slice_graph
from sinf.graph.trace import trace
from sinf.graph.verify import verify
from sinf.models import BaseModel
from sinf.statistics import Independence, MapRanks, SecondMoments, Statistic, Statistics, collect

Kinds = set[type[Statistic]]
CUTS = {"vgg16": "features.23", "vgg19": "features.26", "resnet50": "layer2", "resnet56": "layer2"}
SCORED, COSTLY, FITTED = 20, 2, 10  # images of a class; COSTLY: for sums of single maps
ROUND_TO, WIDE = 8, 65  # widths; networks that are narrower all through could hardly choose, and are not rounded
CLUSTER_SCORED = 40
MAPS: Kinds = {MapRanks, Independence}
STATIC, CLUSTER = "static", "semantic-truecluster"
WEIGHTS = ("plain", "recalibrated", "reconstructed")
COLUMNS = (
    "model", "dataset", "method", "criterion", "allocation", "budget", "weights", "reconstruct", "engine", "precision",
    "device", "threads", "base_top1", "top1", "loss", "macs_saved", "params_active", "narrowest", "images",
    "scored_on", "seed", "date", "versions",
)  # fmt: skip
IDENTITY = ("method", "criterion", "allocation", "budget", "weights", "seed")


class Job(NamedTuple):
    """What tells a row from the others."""

    method: str
    criterion: str
    allocation: str
    budget: float
    weights: str
    seed: int


def plan() -> list[Job]:
    """All rows, the most telling first."""
    leading = ("residual", "joint", "dcs", "energy", "taylor", "l1", "random")
    both, spent, one, two = ("uniform", "budget"), ("budget", "clusters"), (0,), (1, 2)
    middle, ends, others = (0.5, 0.7, 0.3), (0.9, 0.1), (0.6, 0.4, 0.8, 0.2)
    tiers: list[Iterable[tuple]] = [
        product((STATIC,), NAMES, ("uniform",), middle, WEIGHTS, one),
        product((CLUSTER,), NAMES, ("uniform",), middle, WEIGHTS, one),
        product((STATIC,), ("random",), ("uniform",), middle + ends, WEIGHTS, two),
        product((STATIC,), NAMES, ("uniform",), ends, WEIGHTS, one),
        product((CLUSTER,), NAMES, ("uniform",), ends, WEIGHTS, one),
        product((CLUSTER,), ("random",), ("uniform",), middle + ends, WEIGHTS, two),
        product((STATIC,), leading, ("budget",), middle, WEIGHTS, one),
        product((CLUSTER,), ("residual", "joint"), spent, middle, WEIGHTS, one),
        product((CLUSTER,), leading, ("budget",), middle, WEIGHTS, one),
        product((STATIC, CLUSTER), NAMES, ("uniform",), others, WEIGHTS, one),
        product((STATIC, CLUSTER), leading, ("uniform",), middle, WEIGHTS, two),
        product((STATIC, CLUSTER), NAMES, both, middle + ends + others, WEIGHTS, one),
    ]
    jobs = [Job(*row) for tier in tiers for row in sorted(tier, key=lambda row: (row[5], middle_first(row[3])))]
    return list(dict.fromkeys(jobs))


def middle_first(budget: float) -> int:
    return (0.5, 0.7, 0.3, 0.6, 0.4, 0.8, 0.2, 0.9, 0.1).index(budget)


class Side:
    """What a row of one method needs: graph, groups, statistics, images to fit and to report, all or of one cluster."""

    def __init__(
        self, network: PartedNetwork, graph: fx.GraphModule, groups: list[CoupledGroup], macs: MacCount, start: Tensor,
        sites: Statistics, fit: Tensor, test: tuple[Tensor, Tensor], slot: Any = None,
    ) -> None:  # fmt: skip
        self.network, self.graph, self.groups, self.macs, self.start = network, graph, groups, macs, start
        self.sites, self.fit, self.test, self.slot = sites, fit, test, slot
        self.round_to = ROUND_TO if max(group.size for group in groups) >= WIDE else 1
        self.last: tuple[Job | None, Tensor] = None, start

    def keep(self, job: Job) -> Tensor:
        """The units that stay; the rows of one selection come one after the other."""
        if not self.has(job):
            rule = Budget(job.budget) if job.allocation == "budget" else self.uniform(job.budget)
            self.remember(job, select(rule, *self.candidates(job), self.round_to))
        return self.last[1]

    def has(self, job: Job) -> bool:
        return self.last[0] == job._replace(weights="")

    def remember(self, job: Job, keep: Tensor) -> None:
        self.last = job._replace(weights=""), keep

    def candidates(self, job: Job) -> Candidates:
        scores = SCORES.get(job.criterion, published)(self, job)
        return Candidates(self.groups, scores, self.macs, self.start)

    def uniform(self, budget: float) -> Schedule:
        """The smallest ratio, the same in every layer, that stays within a budget of MACs."""
        scores = {group.name: torch.arange(group.size).float() for group in self.groups}
        whole, low, high = self.macs.total(self.start), 0.0, 1.0

        def spent(ratio: float) -> float:
            keep = select(Schedule(ratio, ratio), self.groups, scores, self.macs, self.start, self.round_to)
            return self.macs.total(keep) / whole

        if spent(0.999) > budget:
            raise ConfigError("the budget must be within reach", got=budget)
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if spent(min(middle, 0.999)) <= budget else (middle, high)
        return Schedule(min(high, 0.999), min(high, 0.999))

    def network_of(self, job: Job) -> tuple[fx.GraphModule, Tensor]:
        keep = self.keep(job)
        smaller = slice_graph(self.graph, self.network.coupling, keep)
        verify(self.graph, self.network.coupling, keep, smaller, self.fit[:4], self.slot)
        if job.weights == "reconstructed":
            reconstruct(self.graph, self.network.coupling, keep, smaller, self.fit, self.fit)
        elif job.weights == "recalibrated":
            smaller = copy.deepcopy(smaller)
            recalibrate(smaller, self.fit.split(BATCH))
        return smaller, keep

    @torch.no_grad()
    def right(self, graph: fx.GraphModule) -> int:
        ready = prepare(graph)
        x, y = self.test
        pairs = zip(x.split(BATCH), y.split(BATCH), strict=True)
        return sum(int((ready(images).argmax(1) == labels).sum()) for images, labels in pairs)

    @cached_property
    def base_right(self) -> int:
        return self.right(slice_graph(self.graph, self.network.coupling, self.start))


#: How criteria that are not published are scored, by name; another script may add its own.
SCORES: dict[str, Callable[[Side, Job], dict[str, Tensor]]] = {}


def published(side: Side, job: Job) -> dict[str, Tensor]:
    """The importances of every group by a criterion of the library."""
    options = {"seed": job.seed} if job.criterion == "random" else {}
    return importances(
        make_criterion(job.criterion, **options), side.network.graph, side.network.coupling, side.groups, side.sites
    )


class Sides:
    """The sides of each method and seed, made when first asked for, with what the criteria of the jobs need and
    ``needs``; those of clusters score and fit on ``scored`` images of a class."""

    def __init__(
        self, base: BaseModel, network: PartedNetwork, train: LabelledImages, test: LabelledImages, rows: int,
        jobs: list[Job], scored: int = CLUSTER_SCORED, needs: Iterable[type[Statistic]] = (),
    ) -> None:  # fmt: skip
        self.base, self.network, self.train, self.jobs = base, network, train, jobs
        self.scored, self.needs = scored, needs
        self.test = test.select(list(range(min(rows, len(test)))))
        self.clusters: Clusters = from_column(train)
        self.of = cache(self._of)

    def _of(self, method: str, seed: int) -> list[Side]:
        say(f"statistics: {method}, seed {seed}")
        needs = self._needs(method, seed)
        return [self._static(seed, needs)] if method == STATIC else list(self._by_cluster(seed, needs))

    def _needs(self, method: str, seed: int) -> Kinds:
        criteria = {job.criterion for job in self.jobs if (job.method, job.seed) == (method, seed)}
        # criteria that are not published are made of those that are
        names = [name for criterion in criteria for name in ((criterion,) if criterion in NAMES else NAMES)]
        return {*self.needs, *(need for name in names for need in make_criterion(name).needs)}

    def _static(self, seed: int, needs: Kinds) -> Side:
        network, classes = self.network, self.base.spec.classes
        scoring = self.train.sample(SCORED * classes, seed)
        found = self._collect(network.graph, scoring.batches(self.base.spec.preprocessing), needs - MAPS, None, seed)
        if needs & MAPS:
            # Sums of single maps are over fewer images: criteria compare channels of a layer, never with the others.
            few = scoring.sample(COSTLY * classes, seed).batches(self.base.spec.preprocessing)
            maps = self._collect(network.graph, few, MAPS, None, seed)
            for target, site in found.items():
                found[target] = site.but(*maps[target])
        return Side(
            network, network.graph, network.groups_free(), network.macs, network.coupling.keep_all(), found,
            tensors(scoring.sample(FITTED * classes, seed), self.base)[0], tensors(self.test, self.base),
        )  # fmt: skip

    def _by_cluster(self, seed: int, needs: Kinds) -> Iterator[Side]:
        network = self.network
        scoring = self.train.sample(self.scored * self.base.spec.classes, seed)
        train, test = self._features(scoring), self._features(self.test)
        for members in self.clusters.members:
            mine, theirs = (isin(labels, members) for labels in (scoring.labels, self.test.labels))
            x, y = train[mine], scoring.labels[mine]
            batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
            found = self._collect(network.parts.tail, batches, needs, list(members), seed)
            keep = network.with_classes(network.coupling.keep_all(), list(members))
            answers = torch.searchsorted(torch.tensor(members), self.test.labels[theirs])
            yield Side(
                network, network.parts.tail, network.groups_after(), network.tail_macs, keep, found, x,
                (test[theirs], answers), network.features_slot,
            )  # fmt: skip

    def _collect(self, graph: fx.GraphModule, batches: Any, needs: Kinds, answer: Any, seed: int) -> Statistics:
        classes = self.base.spec.classes
        return collect(graph, self.network.coupling, batches, classes=classes, answer=answer, needs=needs, seed=seed)

    @torch.no_grad()
    def _features(self, images: LabelledImages) -> Tensor:
        extractor = prepare(self.network.parts.extractor)
        return torch.cat([extractor(x).contiguous() for x, _ in images.batches(self.base.spec.preprocessing)])


def isin(labels: Tensor, members: tuple[int, ...]) -> Tensor:
    return torch.nonzero(torch.isin(labels, torch.tensor(members))).flatten()


def tensors(images: LabelledImages, base: BaseModel) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in images.batches(base.spec.preprocessing)]), images.labels


def say(text: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def measure(job: Job, sides: list[Side]) -> dict[str, Any]:
    """One row: images and MACs are added up over sides, parameters are their mean; ``narrowest`` is the share of
    channels that stays in the layer that loses most."""
    if job.allocation == "clusters" and not sides[0].has(job):
        parts, images = [side.candidates(job) for side in sides], sum(len(side.fit) for side in sides)
        shares = [len(side.fit) / images for side in sides]
        found = select_together(Budget(job.budget), parts, shares, sides[0].round_to)
        for side, keep in zip(sides, found, strict=True):
            side.remember(job, keep)
    right = base = images = 0
    macs, whole, parameters, narrowest = 0, 0, 0, 1.0
    for side in sides:
        smaller, keep = side.network_of(job)
        right, base, images = right + side.right(smaller), base + side.base_right, images + len(side.test[1])
        macs, whole = macs + side.macs.total(keep), whole + side.macs.total(side.start)
        parameters += parameters_of(smaller)
        narrowest = min([narrowest, *(float(keep[group.units].double().mean()) for group in side.groups)])
    return {
        "base_top1": base / images, "top1": right / images, "loss": 100 * (base - right) / images,
        "macs_saved": 1 - macs / whole, "params_active": parameters / len(sides), "narrowest": narrowest,
        "images": images, "scored_on": scored_on(job), "reconstruct": job.weights == "reconstructed",
    }  # fmt: skip


def scored_on(job: Job) -> int:
    """Images of a class that the criterion looked at."""
    needs = set(make_criterion(job.criterion).needs) if job.criterion in NAMES else {SecondMoments}
    few = bool(needs & MAPS)
    if not needs:
        return 0
    return (COSTLY if few else SCORED) if job.method == STATIC else (10 if few else CLUSTER_SCORED)


def run(
    path: str, jobs: list[Job], name: str, weights: Path, data: Path, rows: int, minutes: float, keep: bool
) -> None:
    """Measure the jobs (with ``keep`` those that are not in the file), and write it after each."""
    torch.set_num_threads(1)
    start = datetime.datetime.now()
    table = Table(
        path,
        COLUMNS,
        IDENTITY,
        keep=keep,
        model=name,
        dataset="cifar100",
        engine="torch",
        precision="float32",
        threads=1,
    )
    base = load_model(name, weights=weights)
    network = PartedNetwork(trace(base.module, base.spec.preprocessing), CUTS[name])
    jobs = [job for job in jobs if not table.has(**job._asdict())]
    sides = Sides(base, network, load_images(data, "train"), load_images(data, "test[50%:]"), rows, jobs)
    for job in jobs:
        if datetime.datetime.now() - start > datetime.timedelta(minutes=minutes):
            continue
        try:
            row = measure(job, sides.of(job.method, job.seed))
        except ConfigError as error:  # a budget out of reach
            say(f"left out: {tuple(job)}: {error}")
            continue
        table.add(**row, **job._asdict())
        say(f"{' '.join(map(str, job))}: loss {row['loss']:.2f}, MACs saved {row['macs_saved']:.3f}")


def main(
    name: str,
    weights: Path,
    data: Path,
    rows: Annotated[int, typer.Option(help="How many images of test[50%:] to report on.")] = 2000,
    minutes: Annotated[float, typer.Option(help="Begin no row after this time.")] = 1e9,
    keep: Annotated[bool, typer.Option(help="Leave out rows that are in the file.")] = False,
) -> None:
    run(f"criteria_{name}.csv", plan(), name, weights, data, rows, minutes, keep)


if __name__ == "__main__":
    typer.run(main)
