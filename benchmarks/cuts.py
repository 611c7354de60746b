"""Accuracy within clusters at half of the tail's MACs, cut by cut, on CIFAR-100: how early may the network be cut?

    python benchmarks/cuts.py vgg16 WEIGHTS CIFAR100
    python benchmarks/cuts.py resnet56 WEIGHTS CIFAR100 --scored 200 --only reconstructed,low-rank
    python benchmarks/cuts.py resnet56 WEIGHTS CIFAR100 --scored 200 --only low-rank-bundle

The true cluster is given. Scored and fitted on ``scored`` train images of every class, reported on the first ``rows``
of test[50%:]. Channels go by the criterion residual, and the weights that stay are treated in three ways; or none goes,
and every cluster's tail is written in low rank: by itself, or (low-rank-bundle) in a bundle as sinf build makes it,
after the base model's extractor, loaded and evaluated as one. ``base_top1`` is the base model's, limited to the classes
of the image's cluster; ``tail_share`` is the part of the base model's MACs that comes after the cut.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from table import Table
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from criteria import CLUSTER, CLUSTER_SCORED, WEIGHTS, Job, Side, Sides, measure, say
from sinf import LabelledImages, load_images, load_model
from sinf.compress.low_rank import LowRank, choose_ranks, factor, metrics, reconstruct_ranks
from sinf.compress.select import Budget
from sinf.data.clusters import from_column
from sinf.engine.torch_engine import SemanticModel
from sinf.graph.apply import apply
from sinf.graph.network import PartedNetwork
from sinf.graph.slice import parameters_of
from sinf.graph.trace import trace
from sinf.measure.accuracy import evaluate
from sinf.models import BaseModel
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.routing.predictor import RouterConfig

CUTS = {
    "vgg16": ("features.6", "features.13", "features.23", "features.33"),
    "vgg19": ("features.6", "features.13", "features.26", "features.39"),
    "resnet50": ("layer1", "layer2", "layer3"),
    "resnet56": ("layer1", "layer2", "layer3.4"),
}
CRITERION, RANKS, BUNDLE, BUDGET = "residual", "low-rank", "low-rank-bundle", 0.5
ROUTED = 1000  # images for a route predictor that nothing here asks
COLUMNS = (
    "model", "dataset", "method", "criterion", "reconstruct", "engine", "precision", "device", "cut", "tail_share",
    "budget", "weights", "base_top1", "top1", "loss", "macs_saved", "params_active", "images", "scored_on", "seed",
    "date", "versions",
)  # fmt: skip


@torch.no_grad()
def by_ranks(sides: list[Side]) -> dict[str, Any]:
    """One row, as ``measure`` makes it of channels. The head keeps all classes here; those of others are not looked
    at."""
    right = base = images = parameters = 0
    macs = whole = 0
    for side in sides:
        tail, members = side.graph, side.network.coupling.output.index(side.start)
        known = metrics(side.sites)
        ranks = choose_ranks(Budget(BUDGET), side.macs, known)
        solved = factor(tail, ranks, known)
        solved = reconstruct_ranks(tail, side.network.coupling, solved, ranks, known, side.fit)
        coupling = side.network.coupling
        smaller = apply(tail, coupling, coupling.keep_all(), solved)
        x, y = side.test
        answers = torch.cat([smaller(each)[:, members].argmax(1) for each in x.split(250)])
        right, base, images = right + int((answers == y).sum()), base + side.base_right, images + len(y)
        macs, whole = macs + macs_of(smaller, x[:1]), whole + macs_of(tail, x[:1])
        parameters += parameters_of(smaller)
    return {
        "base_top1": base / images, "top1": right / images, "loss": 100 * (base - right) / images,
        "macs_saved": 1 - macs / whole, "params_active": parameters / len(sides), "images": images,
        "reconstruct": True, "criterion": RANKS,
    }  # fmt: skip


def in_bundle(
    base: BaseModel, cut: str, train: LabelledImages, calibration: LabelledImages, test: LabelledImages, scored: int,
    work: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One row, of the subgraphs of a bundle that is built, saved and opened; a head has its cluster's classes alone."""
    config = BuildConfig(
        method="ranks", cut=cut, macs=BUDGET, keep_anyway=True, max_loss=0.9, route_draws=ROUTED,
        router=RouterConfig(epochs=1, hidden=16),
    )  # fmt: skip
    scoring = train.sample(scored * base.spec.classes)
    with TemporaryDirectory() as folder:
        images = Images(scoring, scoring.sample(ROUTED), calibration)
        build(base, images, from_column(train), config, Path(folder, "bundle"), work=work)
        model = SemanticModel.from_pretrained(Path(folder, "bundle"))
    found = evaluate(model, test)
    macs = sum(each.images * each.tail_macs for each in found.clusters) / found.images
    return {
        "base_top1": found.base_within, "top1": found.within, "loss": 100 * (found.base_within - found.within),
        "macs_saved": 1 - macs / model.network.tail_macs.total(), "images": found.images, "reconstruct": True,
        "params_active": sum(each.tail_parameters for each in found.clusters) / len(found.clusters),
        "criterion": RANKS,
    }  # fmt: skip


def macs_of(graph: fx.GraphModule, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        graph(x)
    return counter.get_total_flops() // 2


def main(
    name: str,
    weights: Path,
    data: Path,
    rows: Annotated[int, typer.Option(help="How many images of test[50%:] to report on.")] = 5000,
    scored: Annotated[int, typer.Option(help="Images of a class to score and fit on.")] = CLUSTER_SCORED,
    only: Annotated[str, typer.Option(help="What is done, with commas between.")] = ",".join(WEIGHTS),
    cut: Annotated[str, typer.Option(help="Only after these, with commas between.")] = "",
    threads: int = 1,
    keep: Annotated[bool, typer.Option(help="Leave out rows that are in the file.")] = False,
    work: Annotated[Path | None, typer.Option(help="Where steps of bundles are kept, for a run that goes on.")] = None,
) -> None:
    known = (*WEIGHTS, RANKS, BUNDLE)
    unknown = set(only.split(",")) - set(known)
    if unknown:
        raise typer.BadParameter(f"--only knows {', '.join(known)}; got {', '.join(sorted(unknown))}")
    torch.set_num_threads(threads)
    table = Table(
        f"cuts_{name}.csv", COLUMNS, ("cut", "weights", "scored_on"), keep=keep, model=name, dataset="cifar100",
        method=CLUSTER, criterion=CRITERION, engine="torch", precision="float32", budget=BUDGET, seed=0,
    )  # fmt: skip
    base = load_model(name, weights=weights)
    graph = trace(base.module, base.spec.preprocessing)
    train, test = load_images(data, "train"), load_images(data, "test[50%:]")
    for after in cut.split(",") if cut else CUTS[name]:
        ways = [way for way in only.split(",") if not table.has(cut=after, weights=way, scored_on=scored)]
        jobs = {way: Job(CLUSTER, CRITERION, "budget", BUDGET, way, 0) for way in ways if way in WEIGHTS}
        network = PartedNetwork(graph, after)
        sides = Sides(
            base, network, train, test, rows, [*jobs.values()], scored, LowRank.needs if RANKS in ways else ()
        )
        share = network.tail_macs.total() / network.macs.total()
        for way in ways:
            if way == BUNDLE:
                calibration = load_images(data, "test[:50%]")
                row = in_bundle(base, after, train, calibration, sides.test, scored, work)
            elif way == RANKS:
                row = by_ranks(sides.of(CLUSTER, 0))
            else:
                row = measure(jobs[way], sides.of(CLUSTER, 0))
            table.add(**row | {"scored_on": scored}, cut=after, tail_share=share, weights=way)
            say(f"{after} {way}: loss {row['loss']:.2f}, MACs of the tail saved {row['macs_saved']:.3f}")


if __name__ == "__main__":
    typer.run(main)
