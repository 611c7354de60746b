"""Accuracy within clusters at half of the tail's MACs, cut by cut, on CIFAR-100: how early may the network be cut?

    python benchmarks/cuts.py vgg16 WEIGHTS CIFAR100

The true cluster is given. Scored and fitted on 40 train images of every class, reported on the first ``rows`` of
test[50%:]; criterion residual. ``base_top1`` is the base model's, limited to the classes of the image's cluster;
``tail_share`` is the part of the base model's MACs that comes after the cut.
"""

from __future__ import annotations

import csv
import datetime
from pathlib import Path
from typing import Annotated

import typer

from criteria import CLUSTER, RESULTS, WEIGHTS, Job, Sides, measure, say
from sinf import load_images, load_model
from sinf.files import replacing
from sinf.measure import machine
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
    path, facts = RESULTS / f"cuts_{name}.csv", machine()
    table: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="") as file:
            table = list(csv.DictReader(file))
    done = {(row["cut"], row["weights"]) for row in table}
    base = load_model(name, weights=weights)
    graph = trace(base.module, base.spec.preprocessing)
    train, test = load_images(data, "train"), load_images(data, "test[50%:]")
    for cut in CUTS[name]:
        network = Network(graph, cut)
        sides = Sides(base, network, train, test, rows)
        for kind in WEIGHTS:
            if (cut, kind) in done:
                continue
            job = Job(CLUSTER, CRITERION, "budget", BUDGET, kind, 0)
            row = measure(job, sides.of(CLUSTER, 0)) | {
                "model": name, "dataset": "cifar100", "method": CLUSTER, "criterion": CRITERION, "engine": "torch",
                "precision": "float32", "device": facts["processor"], "cut": cut, "budget": BUDGET, "weights": kind,
                "tail_share": network.tail_macs.total() / network.macs.total(), "seed": 0,
                "date": f"{datetime.date.today()}", "versions": facts["versions"],
            }  # fmt: skip
            table.append({k: f"{v:.5g}" if isinstance(v, float) else str(v) for k, v in row.items() if k in COLUMNS})
            with replacing(path) as partial, partial.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(table)
            say(f"{cut} {kind}: loss {row['loss']:.2f}, MACs of the tail saved {row['macs_saved']:.3f}")


if __name__ == "__main__":
    typer.run(main)
