"""What a convolution loses in three forms of low rank, at the same MACs.

    python benchmarks/forms.py vgg16 WEIGHTS CIFAR100

Through channels and separable are what sinf chooses from (sinf.compress.low_rank). Beside them *between channels*
(Tucker-2): a 1x1 convolution to ``r`` channels, the kernel from these to ``s``, and a 1x1 convolution from those. Nats
of the answer of an image, by second order as budgets are spent, each layer on its own; nothing is timed or solved
again.
What the first convolution drops is counted in the metric that separable layers have, what the last one drops in that of
channels; ``r`` and ``s`` lose least together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from candidates import say
from table import Table
from torch import Tensor

from sinf import load_images, load_model
from sinf.compress.low_rank import Metric, metrics
from sinf.compress.low_rank.metric import roots
from sinf.graph.network import Network
from sinf.graph.trace import trace
from sinf.statistics import Fisher, KernelRows, OutputMoments, SiteStatistics, collect

SHARES = (0.5, 0.3, 0.2, 0.15, 0.1, 0.07)  # of a layer's MACs
IMAGES = 1000
GRID = 16  # widths that are tried of the first convolution
COLUMNS = ("model", "dataset", "macs", "channels", "separable", "between", "best_of_two", "layers", "won", "images",
           "seed", "date", "versions")  # fmt: skip


class Between:
    """A layer from some of its inputs' directions to some of its outputs': what either drops, in nats."""

    def __init__(self, site: SiteStatistics, metric: Metric) -> None:
        rows, fisher = site[KernelRows], metric.root @ metric.root
        weight = rows.as_kernel(site.weight).double()  # (O, C, kh, kw)
        self.shape = weight.shape
        _, channels, _, columns = self.shape
        correlation = rows.row_correlation().double()
        by_row = weight.permute(2, 0, 1, 3).flatten(2)  # (kh, O, C kw)
        # Of the answer to errors of what rows read, which are correlated between rows as the rows are.
        self.sensitivity = torch.einsum("ij,iox,op,jpy->xy", correlation, by_row, fisher, by_row)
        self.covariance = rows.covariance()
        own = _diagonal(self.covariance, channels, columns) / columns
        self.half, self.whiten = roots(own)
        effect = self.half @ _diagonal(self.sensitivity, channels, columns) @ self.half
        self.directions = torch.linalg.eigh(effect).eigenvectors.flip(1)
        self.of_outputs = 0.5 * (metric.values.sum() - metric.values.cumsum(0))

    def of_inputs(self, rank: int) -> float:
        """Nats that are lost by all but ``rank`` directions of the inputs."""
        _, channels, _, columns = self.shape
        some = self.directions[:, :rank]
        dropped = torch.eye(channels, dtype=torch.float64) - self.half @ some @ some.T @ self.whiten
        wide = torch.kron(dropped, torch.eye(columns, dtype=torch.float64))
        return 0.5 * float((self.sensitivity * (wide @ self.covariance @ wide.T)).sum())

    def least(self, weights: float) -> float:
        """Nats that are lost with so many weights."""
        out, channels, rows, columns = self.shape
        lost = [float("inf")]
        for first in range(GRID, channels + 1, max(GRID, channels // GRID)):
            last = int((weights - channels * first) / (rows * columns * first + out))
            if last > 0:
                lost.append(self.of_inputs(first) + float(self.of_outputs[min(last, out) - 1]))
        return min(lost)


def _diagonal(matrix: Tensor, channels: int, columns: int) -> Tensor:
    """``(C, C)``: the sum of the blocks of ``matrix`` (C kw, C kw) that belong to one column of the kernel."""
    return matrix.view(channels, columns, channels, columns).diagonal(dim1=1, dim2=3).sum(2)


def losses(site: SiteStatistics, metric: Metric) -> Iterator[tuple[float, float, float]]:
    """By share of the MACs: nats lost through channels, separable, and between channels."""
    between = Between(site, metric)
    out, channels, rows, columns = between.shape
    for share in SHARES:
        weights = share * out * channels * rows * columns
        ranks = weights / (channels * rows * columns + out), weights / (channels * columns + out * rows)
        forms = zip((metric.values, metric.kernel_rows), ranks, strict=True)
        through, separable = (0.5 * float(values[int(rank) :].sum()) for values, rank in forms)
        yield through, separable, between.least(weights)


def main(name: str, weights: Path, data: Path, images: Annotated[int, typer.Option(help="How many.")] = IMAGES) -> None:
    torch.set_num_threads(1)
    table = Table(f"forms_{name}.csv", COLUMNS, ("macs",), model=name, dataset="cifar100", images=images, seed=0)
    base = load_model(name, weights=weights)
    network = Network(trace(base.module, base.spec.preprocessing))
    some = load_images(data, "train").sample(images)
    statistics = collect(
        network.graph, network.coupling, some.batches(base.spec.preprocessing), classes=some.classes,
        needs=(OutputMoments, Fisher, KernelRows),
    )  # fmt: skip
    metric_of, all_of_them = metrics(statistics), []
    wide = [
        target for target, site in statistics.items() if site[KernelRows].present and site.weight.shape[1] >= 2 * GRID
    ]
    for number, target in enumerate(wide):
        all_of_them.append(list(losses(statistics[target], metric_of[target])))
        say("layers", number + 1, len(wide))
    for share, of_layers in zip(SHARES, torch.tensor(all_of_them).transpose(0, 1), strict=True):
        channels, separable, between = of_layers.sum(0).tolist()
        two = of_layers[:, :2].amin(1)
        row = {"channels": channels, "separable": separable, "between": between, "best_of_two": float(two.sum())}
        print(table.add(macs=share, **row, layers=len(wide), won=int((of_layers[:, 2] < two).sum())), flush=True)
    table.forget_older()


if __name__ == "__main__":
    typer.run(main)
