"""What scoring costs: time and memory of every criterion, and how DCS's grows with images and clusters.

    python benchmarks/scoring.py vgg16 WEIGHTS CIFAR100

Every row is a process of its own, so that its peak of memory is its own: all layers of the network are scored for all
classes, from the first image to the last score, with images of the train split that are decoded before. ``clusters``
says for how many clusters; each has its own pass over its own images, which are all images together. ``bytes`` is what
the process has at its peak above what it had before the pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from sinf.criteria import NAMES

COLUMNS = (
    "model", "dataset", "criterion", "images", "clusters", "seconds", "bytes", "threads", "device", "date", "versions",
)  # fmt: skip
IMAGES = 10_000


def plan() -> list[tuple[str, int, int]]:
    """Criterion, images, clusters."""
    rows = [("dcs", IMAGES, 1), ("residual", IMAGES, 1)]
    rows += [("dcs", images, 1) for images in (1250, 2500, 5000)]
    rows += [("dcs", IMAGES, clusters) for clusters in (5, 20)]
    rows += [(name, IMAGES, 1) for name in NAMES]
    return list(dict.fromkeys(rows))


def score(name: str, weights: str, data: str, criterion: str, images: int, clusters: int) -> dict[str, float]:
    """One row, in this process."""
    import torch

    from sinf import load_images, load_model
    from sinf.compress.channels import importances
    from sinf.criteria import make_criterion
    from sinf.data.clusters import from_column
    from sinf.data.images import BATCH
    from sinf.graph.network import PartedNetwork
    from sinf.graph.trace import trace
    from sinf.measure.accuracy import memory_bytes
    from sinf.statistics import collect

    torch.set_num_threads(1)
    base = load_model(name, weights=weights)
    network = PartedNetwork(trace(base.module, base.spec.preprocessing))
    sample = load_images(data, "train").sample(images)
    rule = make_criterion(criterion)
    pixels = sample.pixels(base.spec.preprocessing)
    of_class = from_column(sample).of_class() * clusters // len(from_column(sample))
    groups = [torch.nonzero(of_class[sample.labels] == c).flatten() for c in range(clusters)]
    before = memory_bytes() or 0
    start = time.perf_counter()
    for cluster, rows in enumerate(groups):
        members = torch.nonzero(of_class == cluster).flatten().tolist()
        parts = rows.split(BATCH)
        batches = ((base.spec.preprocessing.normalise(pixels[part]), sample.labels[part]) for part in parts)
        found = collect(
            network.graph, network.coupling, batches, classes=base.spec.classes, needs=rule.needs, pool=rule.pool,
            answer=None if clusters == 1 else members,
        )  # fmt: skip
        importances(rule, network.graph, network.coupling, network.groups_free(), found)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": max(0, (memory_bytes("VmHWM") or 0) - before)}


def main(
    name: str,
    weights: Path,
    data: Path,
    row: Annotated[str, typer.Option(help="Used by the program itself: one row as JSON.")] = "",
    minutes: Annotated[float, typer.Option(help="Begin no row after this time.")] = 1e9,
    keep: Annotated[bool, typer.Option(help="Leave out rows that are in the file.")] = False,
) -> None:
    if row:
        criterion, images, clusters = json.loads(row)
        print(json.dumps(score(name, str(weights), str(data), criterion, images, clusters)))
        return
    from table import Table

    begin = time.monotonic()
    table = Table(
        f"scoring_{name}_cpu.csv", COLUMNS, COLUMNS[2:5], keep=keep, model=name, dataset="cifar100", threads=1
    )
    for criterion, images, clusters in plan():
        what = {"criterion": criterion, "images": images, "clusters": clusters}
        if table.has(**what) or time.monotonic() - begin > 60 * minutes:
            continue
        command = [sys.executable, __file__, name, weights, data, "--row", json.dumps(list(what.values()))]
        answer = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
        found = json.loads(answer.stdout.splitlines()[-1])
        table.add(**what, seconds=found["seconds"], bytes=int(found["bytes"]))
        print(what, found, flush=True)


if __name__ == "__main__":
    typer.run(main)
