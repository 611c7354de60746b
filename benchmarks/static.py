"""One smaller network for all classes, on CIFAR-100: without training at two budgets of MACs; at a quarter of them
with a little fine-tuning, beside torch-pruning's own pruners.

    python benchmarks/static.py vgg16 WEIGHTS CIFAR100 --work runs/static

    residual       ours: the budget is spent where it costs least, then reconstruction; 10,000 images
    low-rank       ours: convolutions in two, through fewer channels or separable (sinf.compress.low_rank),
                   the same images
    low-rank-time  low-rank with loading a weight counted as 32 MACs, as at batch 1 it takes time: a budget of both
    l1, taylor  torch-pruning's MagnitudePruner with its importances of these names, the same ratio in every layer (its
                default) until the same MACs are reached; gradients of taylor by 1,000 images

All are fine-tuned the same way: the same epochs on the whole train split, the base model as the teacher, the same
draws. Reported on test[50%:]; ``minutes`` is all that it took, ``ratio`` how many times fewer MACs are left. Time is
that of batches of one, one thread, base and pruned in turns. Training goes on where it was stopped.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Annotated

import torch
import torch_pruning as tp
import typer
from table import Table, when_idle

from sinf import LabelledImages, load_images, load_model
from sinf.graph.cost import WEIGHT_COST
from sinf.graph.trace import trace
from sinf.measure.accuracy import machine
from sinf.measure.plain import Size
from sinf.models import BaseModel, ModelSpec, load_spec
from sinf.models.load import PLAIN
from sinf.models.to_plain import to_plain
from sinf.pipelines.comparison import compare
from sinf.pipelines.prune import Amount, PruneConfig, prune
from sinf.training.train import EpochReport, Teacher, TrainConfig, train

OURS, RANKS, RANKS_TIME = "residual", "low-rank", "low-rank-time"
SMALL = 0.25
#: Criterion, budget of MACs, whether it is fine-tuned as well.
PLAN = [
    *((way, budget, False) for way in (RANKS, OURS) for budget in (1 / 1.5, 1 / 2)),
    *((RANKS_TIME, budget, False) for budget in (0.5, 0.35)),
    *((way, SMALL, True) for way in (RANKS, OURS, "l1", "taylor")),
]
ROUND_TO = 8
SCORED, GRADIENTS = 10_000, 1000  # images
COLUMNS = (
    "model", "dataset", "method", "criterion", "budget", "reconstruct", "engine", "precision", "device", "batch",
    "threads", "base_top1", "top1", "loss", "macs_saved", "ratio", "time_saved", "time_saved_low", "time_saved_high",
    "base_ms", "ms", "load", "params_active", "epochs", "minutes", "seed", "date", "versions",
)  # fmt: skip
IDENTITY = ("criterion", "budget", "epochs")


def by_torch_pruning(base: BaseModel, criterion: str, budget: float, scoring: LabelledImages) -> BaseModel:
    """Its own pruner at the smallest ratio that is within the budget of MACs (and one per cent, because half of every
    layer keeps a little over a quarter)."""
    low, high, target = 0.0, 0.98, 1.01 * budget * Size.of(base).macs
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if Size.of(at_ratio(base, "l1", middle, scoring)).macs > target else (low, middle)
    return at_ratio(base, criterion, high, scoring)


def at_ratio(base: BaseModel, criterion: str, ratio: float, scoring: LabelledImages) -> BaseModel:
    model = copy.deepcopy(base.module).eval().requires_grad_(True)
    head = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    importances = {"l1": tp.importance.MagnitudeImportance(p=1), "taylor": tp.importance.TaylorImportance()}
    pruner = tp.pruner.MagnitudePruner(
        model,
        torch.zeros(1, *base.spec.preprocessing.size),
        importances[criterion],
        pruning_ratio=ratio,
        ignored_layers=[head],
        round_to=ROUND_TO,
    )
    if criterion == "taylor":
        for x, y in scoring.sample(GRADIENTS).batches(base.spec.preprocessing):
            (torch.nn.functional.cross_entropy(model(x), y, reduction="sum") / GRADIENTS).backward()
    pruner.step()
    return plain(model, base.spec)


def plain(model: torch.nn.Module, spec: ModelSpec) -> BaseModel:
    description, state = to_plain(trace(copy.deepcopy(model), spec.preprocessing))
    new = ModelSpec(PLAIN + spec.name, spec.classes, spec.preprocessing, description)
    module = load_spec(new).requires_grad_(False)
    module.load_state_dict(state)
    return BaseModel(module, new)


class Networks:
    """The table of one base model."""

    def __init__(
        self, name: str, base: BaseModel, test: LabelledImages, pairs: int, keep: bool, loaded: bool
    ) -> None:  # fmt: skip
        self.base, self.test, self.pairs = base, test, pairs
        self.table = Table(
            f"static_{name}_cpu.csv", COLUMNS, IDENTITY, keep=keep, loaded=loaded, model=name, dataset="cifar100",
            engine="torch", precision="float32", batch=1, threads=1, seed=0,
            versions=f"{machine()['versions']}, torch-pruning {tp.__version__}",
        )  # fmt: skip

    def add(self, criterion: str, budget: float, epochs: int, model: BaseModel, minutes: float) -> None:
        found = when_idle(
            lambda: compare(self.base, model, self.test, batches=(1,), pairs=self.pairs, threads=1),
            lambda found: found.times[0].load,
        )
        (times,) = found.times
        row = self.table.add(
            criterion=criterion, budget=budget, epochs=epochs, minutes=minutes,
            method="static-torch-pruning" if criterion in ("l1", "taylor") else "static",
            reconstruct=criterion not in ("l1", "taylor"),
            base_top1=found.base_top1, top1=found.top1, loss=found.loss,
            macs_saved=1 - found.pruned.macs / found.base.macs, ratio=found.base.macs / found.pruned.macs,
            time_saved=times.time_saved, time_saved_low=times.low, time_saved_high=times.high,
            base_ms=times.base_mean, ms=times.mean, load=times.load, params_active=found.pruned.parameters,
        )  # fmt: skip
        print({key: row[key] for key in (*IDENTITY, "loss", "ratio", "time_saved", "minutes")}, flush=True)


def main(
    name: str,
    weights: Path,
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder for steps and checkpoints; may be used again.")],
    epochs: Annotated[int, typer.Option(help="Of fine-tuning.")] = 3,
    pairs: int = 300,
    threads: int = 2,
    keep: Annotated[bool, typer.Option(help="Leave out rows that are in the file.")] = False,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    torch.set_num_threads(threads)
    base = load_model(name, weights=weights)
    test = load_images(data, "test[50%:]")
    images, networks = load_images(data, "train"), Networks(name, base, test, pairs, keep, loaded)
    recipe = TrainConfig(epochs=epochs, learning_rate=0.05, label_smoothing=0.0, bf16=True)
    for criterion, budget, finetuned in PLAN:
        last = epochs if finetuned else 0
        if networks.table.has(criterion=criterion, budget=budget, epochs=last):
            continue
        begin = time.monotonic()
        if criterion in (OURS, RANKS, RANKS_TIME):
            cost = WEIGHT_COST if criterion == RANKS_TIME else 0.0
            method = "channels" if criterion == OURS else "ranks"
            config = PruneConfig(Amount(macs=budget, weight_cost=cost), method, None, images=SCORED, round_to=ROUND_TO)
            pruned = prune(base, images, config, work / "steps")
        else:
            pruned = by_torch_pruning(base, criterion, budget, images)
        minutes = (time.monotonic() - begin) / 60
        if not networks.table.has(criterion=criterion, budget=budget, epochs=0):
            networks.add(criterion, budget, 0, pruned, minutes)
        if not finetuned:
            continue
        begin = time.monotonic()
        trained = train(
            pruned.spec, images, work / f"{criterion}-{budget:.3f}-{epochs}", recipe,
            start=pruned.module.state_dict(), teacher=Teacher(base.module), report=report,
        )  # fmt: skip
        networks.add(criterion, budget, epochs, trained, minutes + (time.monotonic() - begin) / 60)


def report(epoch: EpochReport) -> None:
    print(f"{epoch.epoch}/{epoch.epochs}: loss {epoch.loss:.3f}, {epoch.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    typer.run(main)
