"""Why a compact network loses more by rank than by channels: losses at equal MACs, and spectra of its layers.

    python benchmarks/compact.py SHARED --work runs/compact

Losses: MobileNetV3-small of benchmarks/weights, by rank (multiples of 8, the default, and any) and by channels, without
a limit, at three budgets of MACs; fitted to 4,000 train images or to 600, reported on test[50%:]. Checked: as `sinf
prune` does, what channels are predicted to lose is checked layer by layer, on images of test[:50%]. Not held: solutions
are hardly damped; not held but pooled: those are that have fewer rows than unknowns, of layers that read one value a
channel of an image.

Spectra, beside VGG16's: a layer in low rank that keeps a share of its MACs (``kept``) keeps so many ``directions`` of
those that its outputs can have, and loses a share of the ``energy`` of its outputs (their variance) and of their
``effect`` on the answer, by which ranks are chosen, in the better of the two forms. Kinds of layers: means by MACs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from networks import COMPACT, COMPACT_WEIGHTS, opened
from table import Table
from torch import Tensor, nn

from sinf import load_images, load_model
from sinf.compress.budget import Budget
from sinf.compress.least_squares import NormalEquations
from sinf.compress.low_rank import LowRank, Metric, metrics
from sinf.compress.prices import Prices
from sinf.data.images import LabelledImages
from sinf.errors import ConfigError
from sinf.graph.delta import can_factor
from sinf.graph.network import Network
from sinf.graph.trace import trace
from sinf.measure.delivery import ExpectedLoss, Limits, answers_of
from sinf.models import BaseModel
from sinf.pipelines.prune import Amount, PruneConfig, prune, pruner
from sinf.statistics import OutputMoments, collect

SCORED, BUDGETS = 4000, (0.9, 0.8, 0.7)
FEW = 600
METHODS = {
    "ranks": ("ranks", 8, SCORED), "ranks, any": ("ranks", 1, SCORED), "channels": ("channels", 8, SCORED),
    "channels, checked": ("channels", 8, SCORED), f"ranks, {FEW} images": ("ranks", 8, FEW),
    f"channels, {FEW} images": ("channels", 8, FEW), f"channels, checked, {FEW} images": ("channels", 8, FEW),
    f"ranks, {FEW} images, not held": ("ranks", 8, FEW), f"ranks, {FEW} images, not held but pooled": ("ranks", 8, FEW),
}  # fmt: skip
NOT_HELD = 1e-9  # times the mean second moment
ANYWAY = Limits(1.0, pairs=2, batches=(1,), keep_anyway=True)  # nothing is refused, and times do not count here
LOSSES = (
    "network", "method", "macs", "loss", "loss_low", "loss_high", "differ", "images", "device", "date", "versions",
)  # fmt: skip
SPECTRA = (
    "network", "kind", "layers", "macs", "kept", "directions", "energy_lost", "effect_lost", "images", "device", "date",
    "versions",
)  # fmt: skip


def main(
    shared: Path,
    work: Annotated[Path, typer.Option(help="Folder for statistics, removed at the end.")],
    keep: Annotated[bool, typer.Option(help="Leave out what is in the files.")] = False,
    only: Annotated[str, typer.Option(help="Losses of the methods whose name holds this, and nothing else.")] = "",
) -> None:
    data = shared / "data" / "cifar100"
    scoring, test = load_images(data, f"train[:{SCORED}]"), load_images(data, "test[50%:]")
    compact = opened(COMPACT, COMPACT_WEIGHTS)
    losses("mobilenetv3-small", compact, scoring, load_images(data, "test[:50%]"), test, work, keep, only)
    shutil.rmtree(work, ignore_errors=True)
    if only:
        return
    spectra("mobilenetv3-small", compact, scoring, keep)
    usual = load_model("vgg16", weights=shared / "weights" / "vgg16_cifar100.safetensors")
    spectra("vgg16", usual, scoring.select(list(range(FEW))), keep)  # its many positions make up for few images


def losses(
    name: str, base: BaseModel, scoring: LabelledImages, held_out: LabelledImages, test: LabelledImages, work: Path,
    keep: bool, only: str,
) -> None:  # fmt: skip
    table = Table(
        "compact_losses.csv", LOSSES, ("network", "method", "macs"), keep=keep, network=name, images=len(test)
    )
    before = answers_of(base.module, test, base.spec.preprocessing)
    for way, (method, step, count) in METHODS.items():
        if only not in way:
            continue
        config = PruneConfig(Amount(macs=BUDGETS[0]), method, None, images=count, round_to=step)
        make: Any = pruner(base, scoring, config, work / way)
        if "checked" in way:
            checked = replace(config, limits=ANYWAY)
            make = partial(prune_within, base, scoring, held_out, checked, work / way)
        for macs in BUDGETS:
            if table.has(network=name, method=way, macs=macs):
                continue
            try:
                with held(way):
                    made = make(Budget(macs))
                after = answers_of(made.module, test, base.spec.preprocessing)
            except ConfigError as error:
                print(way, macs, error, flush=True)
                continue
            lost = ExpectedLoss.of(before, after, test.labels)
            row = {"loss": lost.points, "loss_low": lost.low, "loss_high": lost.high, "differ": lost.disagreement}
            print(table.add(method=way, macs=macs, **row), flush=True)


@contextmanager
def held(way: str) -> Iterator[None]:
    """Solutions near the base weights, as validation says, but where ``way`` says otherwise."""
    solve = NormalEquations.solve

    def loose(self: NormalEquations, prior: Tensor, damping: float | None = None) -> Tensor:
        pooled = sum(self.rows) < prior.shape[1]
        return solve(self, prior, damping if pooled and "but pooled" in way else NOT_HELD)

    NormalEquations.solve = loose if "not held" in way else solve  # type: ignore[method-assign]
    try:
        yield
    finally:
        NormalEquations.solve = solve  # type: ignore[method-assign]


def prune_within(
    base: BaseModel, scoring: LabelledImages, held_out: LabelledImages, config: PruneConfig, work: Path, budget: Budget
) -> BaseModel:
    return prune(
        base, scoring, replace(config, amount=Amount(macs=budget.macs)), work, validation=held_out, notice=print
    )


@dataclass(frozen=True)
class Layer:
    """A layer of a network: its kind, its MACs, and for one that can be of low rank the ``each`` MACs that a direction
    of either form takes, with the falling effects of directions and the variances of its outputs."""

    kind: str
    macs: float
    forms: tuple[tuple[float, Tensor], ...] = ()
    variances: Tensor | None = None

    def lost(self, kept: float) -> tuple[float, float, float]:
        """Directions that stay, energy and effect that are lost, at this share of the MACs."""
        assert self.variances is not None
        ranks = [min(int(kept * self.macs / each), len(values)) for each, values in self.forms]
        effects = [_beyond(values, rank) for rank, (_, values) in zip(ranks, self.forms, strict=True)]
        possible = min(len(self.variances), int((self.variances > 1e-9 * self.variances.max()).sum()))
        return ranks[0] / possible, _beyond(self.variances, ranks[0]), min(effects)


def _beyond(values: Tensor, rank: int) -> float:
    return float(values[rank:].sum() / values.sum())


def layers_of(base: BaseModel, images: LabelledImages) -> Iterator[Layer]:
    network = Network(trace(base.module, base.spec.preprocessing))
    rows = images.batches(base.spec.preprocessing)
    found = collect(network.graph, network.coupling, rows, classes=images.classes, needs=LowRank.needs)
    known, prices, macs = metrics(found), Prices(Budget(1.0), network.macs), network.macs.by_layer()
    positions = {target: elements for target, _, elements in network.macs.nodes}
    for target in prices.targets():
        module = prices.module(target)
        kind = kind_of(module, positions[target])
        if target not in known or not can_factor(module):
            yield Layer(kind, macs[target])
            continue
        metric: Metric = known[target]
        cost = prices.layer_cost(target, metric.kernel_row_positions)
        both = (cost.channels, metric.values), (cost.separable, metric.kernel_rows)
        forms = [(line.each, values) for line, values in both if line is not None and len(values)]
        variances = torch.linalg.eigvalsh(found[target][OutputMoments].covariance()).flip(0).clamp(min=0)
        yield Layer(kind, macs[target], tuple(forms), variances)


def kind_of(module: nn.Module, positions: int) -> str:
    """Of a layer that is computed at so many places, or elements of its kernel."""
    if not isinstance(module, nn.Conv2d) or positions == 1:
        return "of pooled values"  # squeeze-and-excite, head
    if module.groups > 1:
        return "depthwise"
    rows, columns = module.kernel_size
    if rows * columns > 1:
        return f"{rows}x{columns}"
    return "1x1, expand" if module.out_channels > module.in_channels else "1x1, project"


def spectra(name: str, base: BaseModel, images: LabelledImages, keep: bool) -> None:
    table = Table(
        "compact_spectra.csv", SPECTRA, ("network", "kind", "kept"), keep=keep, network=name, images=len(images)
    )
    if table.has(network=name):
        return
    kinds: dict[str, list[Layer]] = {}
    for layer in layers_of(base, images):
        kinds.setdefault(layer.kind, []).append(layer)
    whole = sum(layer.macs for layers in kinds.values() for layer in layers)
    for kind, layers in kinds.items():
        macs = sum(layer.macs for layer in layers)
        facts = {"kind": kind, "layers": len(layers), "macs": macs / whole}
        if not all(layer.forms for layer in layers):
            print(table.add(**facts), flush=True)
            continue
        for kept in BUDGETS:
            means = [sum(layer.macs * each for layer, each in zip(layers, column, strict=True)) / macs
                     for column in zip(*(layer.lost(kept) for layer in layers), strict=True)]  # fmt: skip
            row = dict(zip(("directions", "energy_lost", "effect_lost"), means, strict=True))
            print(table.add(**facts, kept=kept, **row), flush=True)


if __name__ == "__main__":
    typer.run(main)
