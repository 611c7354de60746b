"""Loss against time saved on CIFAR-100: semantic inference, and what each of its parts brings.

    python benchmarks/tradeoff.py vgg16 WEIGHTS CIFAR100 --work runs/tradeoff

Scored on the first 10,000 train images, routed by all of them, thresholds set on test[:50%], reported on
test[50%:]. A threshold is chosen on the calibration images for each limit of the loss; the row reports what it does to
the test images. Time is that of batches of one, one thread, base and ours in turns on the same images. Methods:

    semantic                 routing, pruned extractor and full tail, reconstruction
    semantic-wholeextractor  the same with the extractor as it is
    semantic-noreconstruct   routing without reconstruction
    static                   the whole network pruned for all classes by the same machinery, no routing
"""

from __future__ import annotations

import datetime
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from table import Table

from sinf import Budget, BuildConfig, Images, SemanticModel, build, load_images, load_model
from sinf.calibration import part_images, set_thresholds, tail_costs
from sinf.clusters import from_column
from sinf.compact import Compactor
from sinf.criteria import make_criterion
from sinf.engine.prepare import prepare
from sinf.errors import ConfigError
from sinf.measure import Costs, first_images, observe
from sinf.models.trace import trace
from sinf.network import Network
from sinf.pipeline import WEIGHT_COST
from sinf.risk import NEVER
from sinf.steps import StepStore
from sinf.subgraph.slice import parameters_of
from sinf.timing import latency

LIMITS = (0.0025, 0.005, 0.006, 0.007, 0.008, 0.009, 0.01, 0.011, 0.012, 0.013, 0.015, 0.02, 0.03)
METHODS = ("semantic", "static", "semantic-noreconstruct", "semantic-wholeextractor")
#: Cut point; budgets of the routed methods; budgets of the static rows. Without
#: reconstruction pruned extractors and tails lose too much for all classes: there they stay whole.
PLANS: dict[str, dict[str, Any]] = {
    "vgg16": {
        "cut": "features.23",
        "semantic": [{"common": 0.75, "subgraph": 0.12}],
        "semantic-wholeextractor": [{"fallback": 0.85, "subgraph": 0.1}],
        "semantic-noreconstruct": [{"subgraph": 0.3}],
        "static": [0.75, 0.8, 0.7, 0.6],
    },
    "vgg19": {
        "cut": "features.26",
        "semantic": [{"common": 0.75, "subgraph": 0.12}],
        "semantic-wholeextractor": [{"fallback": 0.85, "subgraph": 0.1}],
        "semantic-noreconstruct": [{"subgraph": 0.3}],
        "static": [0.75, 0.7, 0.6],
    },
    "resnet50": {
        "cut": "layer2",
        "semantic": [{"common": 0.85, "subgraph": 0.3}],
        "semantic-wholeextractor": [{"subgraph": 0.3}],
        "semantic-noreconstruct": [{"subgraph": 0.6}],
        "static": [0.9, 0.8, 0.7],
    },
    "resnet56": {
        "cut": "layer2",
        "semantic": [{"extractor": 0.95, "subgraph": 0.5}],
        "semantic-wholeextractor": [{"subgraph": 0.5}],
        "semantic-noreconstruct": [{"subgraph": 0.7}],
        "static": [0.95, 0.9, 0.85, 0.8, 0.7, 0.6],
    },
}
COLUMNS = (
    "model", "dataset", "method", "criterion", "reconstruct", "engine", "precision", "device", "batch", "threads",
    "base_top1", "top1", "loss", "macs_saved", "time_saved", "time_saved_low", "time_saved_high", "params_active",
    "fallback", "tried", "limit", "threshold", "early", "cut", "common", "extractor", "fallback_budget", "subgraph",
    "base_ms", "ms", "seed", "date", "versions",
)  # fmt: skip
#: Two rows that agree in these are one point; the newer replaces the older.
IDENTITY = ("method", "cut", "common", "extractor", "fallback_budget", "subgraph", "limit")


def say(step: str, done: int, total: int, seen: set[str] = set()) -> None:  # noqa: B006  (what was said already)
    if done == 0 or step not in seen:
        seen.add(step)
        print(f"{datetime.datetime.now():%H:%M:%S} {step}", file=sys.stderr, flush=True)


class Points:
    """The table of one network."""

    def __init__(self, model: str, pairs: int) -> None:
        self.pairs = pairs
        self.table = Table(
            f"tradeoff_{model}_cpu.csv", COLUMNS, IDENTITY,
            model=model, dataset="cifar100", engine="torch", precision="float32", batch=1, threads=1, seed=0,
        )  # fmt: skip

    def add(self, base: torch.nn.Module, ours: torch.nn.Module, x: torch.Tensor, **row: Any) -> None:
        times = latency(base, ours, x, pairs=self.pairs)
        self.table.add(
            **row, time_saved=times.time_saved, time_saved_low=times.low, time_saved_high=times.high,
            base_ms=times.base_mean, ms=times.mean,
        )  # fmt: skip
        print(
            f"{row['method']:24} limit {row.get('limit', '')!s:7} loss {row['loss']:+.2f} points, "
            f"MACs {row['macs_saved']:.3f}, time {times.time_saved:.3f} [{times.low:.3f}, {times.high:.3f}], "
            f"fallback {row['fallback']:.2f}",
            flush=True,
        )


def main(
    name: str,
    weights: Path,
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder for results of steps; may be used again.")],
    only: Annotated[str, typer.Option(help="Comma-separated methods.")] = ",".join(METHODS),
    pairs: int = 500,
    threads: int = 2,
    cut: str | None = None,
) -> None:
    torch.set_num_threads(threads)
    plan = PLANS[name]
    base = load_model(name, weights=weights)
    train = load_images(data, "train")
    images = Images(load_images(data, "train[:10000]"), train, load_images(data, "test[:50%]"))
    test = load_images(data, "test[50%:]")
    config = BuildConfig(cut=cut or plan["cut"], max_loss=0.5)  # each limit is set below
    table = Points(name, pairs)
    for method in only.split(","):
        if method == "static":
            static(base, images, test, config, plan[method], work, table)
            continue
        for budgets in plan[method]:
            one = replace(
                config,
                **(budgets | {"subgraph": Budget(budgets["subgraph"], WEIGHT_COST)}),
                reconstruct=method != "semantic-noreconstruct",
            )
            semantic(base, images, test, one, method, work, table)


def static(
    base: Any, images: Images, test: Any, config: BuildConfig, budgets: list[float], work: Path, table: Points
) -> None:
    network = Network(trace(base.module, base.spec.preprocessing), config.cut)
    compactor = Compactor(
        base, network, images.scoring, make_criterion(config.criterion_name), config, say, StepStore(work)
    )
    x = test.pixels(base.spec.preprocessing, 0, 2000)
    x = base.spec.preprocessing.normalise(x)
    for budget in budgets:
        part = compactor.compact([(Budget(budget, config.weight_cost), network.groups_free(), network.macs)])
        ours = network.whole(part)
        base_right = ours_right = 0
        with torch.no_grad():
            for images_, labels in test.batches(base.spec.preprocessing, 50):
                base_right += int((network.graph(images_).argmax(1) == labels).sum())
                ours_right += int((ours(images_).argmax(1) == labels).sum())
        table.add(
            prepare(network.graph), prepare(ours), x, method="static", criterion=config.criterion_name,
            reconstruct=True,
            base_top1=base_right / len(test), top1=ours_right / len(test),
            loss=100 * (base_right - ours_right) / len(test),
            macs_saved=1 - network.macs.total(part.keep) / network.macs.total(),
            params_active=parameters_of(ours), fallback=0.0, extractor=budget,
        )  # fmt: skip


def semantic(base: Any, images: Images, test: Any, config: BuildConfig, method: str, work: Path, table: Points) -> None:
    """One build, calibrated for every limit in turn."""
    budget = config.subgraph.macs  # type: ignore[union-attr]
    folder = work / f"{method}-{config.common:g}-{config.extractor:g}-{config.fallback:g}-{budget:g}-{config.cut}"
    bundle = build(base, images, from_column(images.scoring), config, folder, work=work, progress=say)
    model = SemanticModel(bundle)
    costs, tails = Costs.of(model), tail_costs(model, config.weight_cost)
    on_calibration, on_test = observe(model, images.calibration), observe(model, test)
    fitting, rest = (on_calibration.select(rows) for rows in part_images(images.calibration, config.seed))
    x = first_images(test, model, 2000)
    model(x[:500])
    for limit in LIMITS:
        try:
            deferral, threshold = set_thresholds(fitting, rest, limit, None, tails)
        except ConfigError:
            continue
        model = SemanticModel(replace(bundle, deferral=deferral, threshold=threshold))
        model(x[:500])
        outcome = on_test.calibration(deferral, threshold.early)
        losses = outcome.losses(threshold.value)
        base_top1 = float(on_test.base_right.double().mean())
        table.add(
            model.engine.base, model, x, method=method, criterion=config.criterion_name, reconstruct=config.reconstruct,
            base_top1=base_top1, top1=base_top1 - float(losses.double().mean()),
            loss=100 * float(losses.double().mean()),
            macs_saved=1 - on_test.mean_cost(costs.macs, outcome, threshold.value) / costs.base_macs,
            params_active=on_test.mean_cost(costs.parameters, outcome, threshold.value),
            fallback=1 - float(outcome.routed(threshold.value).double().mean()),
            tried=float(outcome.tried(threshold.value).double().mean()),
            limit=round(100 * limit, 3), threshold=threshold.value if threshold.value < NEVER else "never",
            early=threshold.early, cut=config.cut,
            common=config.common, extractor=config.extractor, fallback_budget=config.fallback, subgraph=budget,
        )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
