"""What a residual branch is worth: nats of the answer that are lost when it becomes its mean, or one convolution.

    python benchmarks/branches.py resnet56 WEIGHTS CIFAR100

By second order, as budgets are spent (sinf.compress.depth, sinf.compress.low_rank): half the trace of the Fisher
information of what a branch writes times the covariance of what its stand-in does not explain. A stand-in is one
convolution that reads what the branch reads, fitted by least squares. For each share of the MACs the branches that lose
least a MAC go; beside it is what ranks lose for the same MACs, a weight counted as nothing. ``count`` are branches that
go, or layers that become two. Nothing is timed, and later layers are not solved again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from candidates import IMAGES, say
from table import Table
from torch import Tensor, fx

from sinf import load_images, load_model
from sinf.compress.compressor import Scope
from sinf.compress.depth import branches
from sinf.compress.low_rank import Metric, Rank, choose_ranks, metrics
from sinf.compress.passes import plan_passes
from sinf.compress.select import Budget
from sinf.errors import ConfigError
from sinf.graph.network import Network
from sinf.graph.trace import trace
from sinf.machine.memory import Memory
from sinf.pipelines.whole import WHOLE, whole_scope
from sinf.statistics import Fisher, KernelRows, OutputMoments, Statistics, collect

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25)
STAND_INS = {0: "mean", 1: "1x1 convolution", 3: "3x3 convolution"}  # by the side of the kernel
FITTED, AT_ONCE = 1500, 100  # images that stand-ins are fitted to
POSITIONS, DAMPING = 64, 1e-3  # of each image; of the mean second moment
COLUMNS = ("model", "dataset", "macs_saved", "by", "nats", "count", "images", "seed", "date", "versions")


def reads(scope: Scope, targets: Iterable[str]) -> dict[str, str]:
    """By last layer of a branch, the first: the one that comes first of those that the branch alone needs."""
    order = [str(node.target) for node in scope.graph.graph.nodes if node.op == "call_module"]
    layers = {branch.end: branch.layers for branch in branches(scope)}
    return {end: min(layers[end], key=order.index) for end in targets}


class _Ends(fx.Interpreter):
    """Runs a network, and keeps what branches read and write."""

    def __init__(self, graph: fx.GraphModule, first: dict[str, str]) -> None:
        super().__init__(graph)
        self.first, self.of = first, {start: end for end, start in first.items()}
        self.read: dict[str, Tensor] = {}
        self.written: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Tensor:
        out: Tensor = super().run_node(n)
        if n.op == "call_module" and n.target in self.of:
            self.read[self.of[str(n.target)]] = self.env[n.args[0]]
        if n.op == "call_module" and n.target in self.first:
            self.written[str(n.target)] = out
        return out


@torch.no_grad()
def unexplained(
    graph: fx.GraphModule, first: dict[str, str], x: Tensor, kernel: int, seed: int = 0
) -> dict[str, Tensor]:
    """``(O, O)``, by last layer of a branch: the covariance of what one convolution of so large a ``kernel`` does not
    explain; for a kernel of 0, of all that is written."""
    draw, sums = torch.Generator().manual_seed(seed), {}
    for some in x.split(AT_ONCE):
        ends = _Ends(graph, first)
        ends.run(some)
        for end, start in first.items():
            stride, written = graph.get_submodule(start).stride, ends.written[end].flatten(2)
            at = torch.randperm(written.shape[2], generator=draw)[:POSITIONS]
            y = written[:, :, at].transpose(1, 2).flatten(0, 1).double()
            u = y.new_ones(len(y), 1)
            if kernel:
                patches = F.unfold(ends.read[end], kernel, padding=kernel // 2, stride=stride)[:, :, at]
                u = torch.cat([patches.transpose(1, 2).flatten(0, 1).double(), u], 1)
            mine = (u.T @ u, y.T @ u, y.T @ y, torch.tensor(float(len(y))))
            sums[end] = mine if end not in sums else tuple(a + b for a, b in zip(sums[end], mine, strict=True))
    found = {}
    for end, (gram, cross, outer, count) in sums.items():
        damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype) * bool(kernel)
        mix = torch.linalg.solve(damped, cross.T).T
        found[end] = (outer - mix @ cross.T - cross @ mix.T + mix @ gram @ mix.T) / count
    return found


def nats(statistics: Statistics, covariances: dict[str, Tensor]) -> dict[str, float]:
    """Of an image, by last layer of a branch."""
    found = {}
    for end, covariance in covariances.items():
        site = statistics[end]
        found[end] = 0.5 * float((site[Fisher].total.double() * covariance).sum()) / site.images
    return found


def cheapest(lost: dict[str, float], saved: dict[str, float], wanted: float) -> tuple[float, int] | None:
    """Nats of the branches that go, and how many: those that lose least a MAC, until ``wanted`` are saved."""
    total, gone, count = 0.0, 0.0, 0
    for end in sorted((end for end in lost if saved[end] > 0), key=lambda end: lost[end] / saved[end]):
        if gone >= wanted:
            break
        total, gone, count = total + lost[end], gone + saved[end], count + 1
    return (total, count) if gone >= wanted else None


def of_ranks(scope: Scope, known: dict[str, Metric], share: float) -> tuple[float, int] | None:
    """Nats of ranks that save a share of the MACs, and of how many layers."""
    try:
        ranks = choose_ranks(Budget(1 - share), scope.regions[WHOLE].macs, known)
    except ConfigError:
        return None
    return sum(lost_by(known[target], rank) for target, rank in ranks.items()), len(ranks)


def lost_by(metric: Metric, rank: Rank) -> float:
    effects = metric.kernel_rows if rank.separable else metric.values
    return 0.5 * float(effects[rank.channels :].sum())


def main(
    name: str,
    weights: Path,
    data: Path,
    images: Annotated[int, typer.Option(help="That say what is lost.")] = IMAGES,
) -> None:
    torch.set_num_threads(1)
    table = Table(
        f"branches_{name}.csv", COLUMNS, ("macs_saved", "by"), model=name, dataset="cifar100", images=images, seed=0
    )
    base = load_model(name, weights=weights)
    network, train = Network(trace(base.module, base.spec.preprocessing)), load_images(data, "train").sample(images)
    scope = whole_scope(base, network, train, images, 0, lambda: say)
    needs = (OutputMoments, Fisher, KernelRows)
    passes = plan_passes(Memory(), network.graph, network.coupling, needs, classes=base.spec.classes)
    statistics = collect(
        network.graph, network.coupling, scope.batches(), classes=base.spec.classes, needs=needs, at_once=passes.at_once
    )
    macs, whole = network.macs.by_layer(), network.macs.total()
    branched = branches(scope)
    first = reads(scope, [branch.end for branch in branched])
    x = train.sample(FITTED).inputs(base.spec.preprocessing)[:]
    for kernel, by in STAND_INS.items():
        lost = nats(statistics, unexplained(network.graph, first, x, kernel))
        saved = {
            branch.end: sum(macs[target] for target in branch.layers)
            - stand_in_macs(network.graph, macs, first[branch.end], branch.end, kernel)
            for branch in branched
        }
        for share in SHARES:
            add(table, share, by, cheapest(lost, saved, share * whole))
    known = metrics(statistics)
    for share in SHARES:
        add(table, share, "ranks", of_ranks(scope, known, share))
    table.forget_older()


def stand_in_macs(graph: fx.GraphModule, macs: dict[str, int], first: str, end: str, kernel: int) -> float:
    """Of one convolution that reads what the ``first`` layer of a branch reads and writes what its ``end`` does."""
    into, last = graph.get_submodule(first).weight.shape[1], graph.get_submodule(end)
    positions = macs[end] / last.weight.numel()
    return positions * len(last.weight) * into * kernel**2


def add(table: Table, share: float, by: str, found: tuple[float, int] | None) -> None:
    if found is None:
        print(f"{by}: {100 * share:.0f} % are out of reach", flush=True)
        return
    table.add(macs_saved=share, by=by, nats=found[0], count=found[1])
    print(f"{100 * share:.0f} % of the MACs, {by}: {found[0]:.4f} nats, {found[1]} of them", flush=True)


if __name__ == "__main__":
    typer.run(main)
