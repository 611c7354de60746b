"""Accuracy within clusters at half of the tail's MACs, cut by cut, on CIFAR-100: how early may the network be cut?

    python benchmarks/cuts.py vgg16 WEIGHTS CIFAR100

The true cluster is given. Scored and fitted on 40 train images of every class, reported on the first ``rows`` of
test[50%:]; criterion residual. ``base_top1`` is the base model's, limited to the classes of the image's cluster;
``tail_share`` is the part of the base model's MACs that comes after the cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from table import Table

from criteria import CLUSTER, WEIGHTS, Job, Sides, measure, say
from sinf import load_images, load_model
from sinf.models.trace import trace
from sinf.network import Network

CUTS = {
    "vgg16": ("features.6", "features.13", "features.23", "features.33"),
    "vgg19": ("features.6", "features.13", "features.26", "features.39"),
    "resnet50": ("layer1", "layer2", "layer3"),
    "resnet56": ("layer1", "layer2", "layer3.4"),
}
CRITERION, BUDGET = "residual", 0.5
COLUMNS = (
    "model", "dataset", "method", "criterion", "reconstruct", "engine", "precision", "device", "cut", "tail_share",
    "budget", "weights", "base_top1", "top1", "loss", "macs_saved", "params_active", "images", "seed", "date",
    "versions",
)  # fmt: skip


def main(
    name: str,
    weights: Path,
    data: Path,
    rows: Annotated[int, typer.Option(help="How many images of test[50%:] to report on.")] = 5000,
) -> None:
    table = Table(
        f"cuts_{name}.csv", COLUMNS, ("cut", "weights"), model=name, dataset="cifar100", method=CLUSTER,
        criterion=CRITERION, engine="torch", precision="float32", budget=BUDGET, seed=0,
    )  # fmt: skip
    base = load_model(name, weights=weights)
    graph = trace(base.module, base.spec.preprocessing)
    train, test = load_images(data, "train"), load_images(data, "test[50%:]")
    for cut in CUTS[name]:
        network = Network(graph, cut)
        jobs = [Job(CLUSTER, CRITERION, "budget", BUDGET, kind, 0) for kind in WEIGHTS]
        sides = Sides(base, network, train, test, rows, jobs)
        share = network.tail_macs.total() / network.macs.total()
        for job in jobs:
            if table.has(cut=cut, weights=job.weights):
                continue
            row = measure(job, sides.of(CLUSTER, 0))
            table.add(**row, cut=cut, tail_share=share, weights=job.weights)
            say(f"{cut} {job.weights}: loss {row['loss']:.2f}, MACs of the tail saved {row['macs_saved']:.3f}")


if __name__ == "__main__":
    typer.run(main)
