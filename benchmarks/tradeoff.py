"""Loss against time saved on CIFAR-100: semantic inference, and what each of its parts brings.

    python benchmarks/tradeoff.py vgg16 WEIGHTS CIFAR100 --work runs/headline

Every plan of benchmarks/candidates.py (which prepares them first where it was not run) at every limit of the loss:
``limit`` is what was asked for, in points; plan, deferral and thresholds come of test[:50%], the loss is that of
test[50%:]. All are timed in one run, batches of one, one thread, base in between. Which rows are shown beside each
other is decided by ``calibration_loss`` and ``cost``, the predicted one, both of test[:50%]. Methods:

    semantic                 routing, pruned extractor and full tail, reconstruction
    semantic-wholeextractor  the same with the extractor as it is
    semantic-noreconstruct   routing without reconstruction, by the criterion that is best then
    static                   the whole network pruned for all classes by the same machinery, no routing
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from candidates import CHANNELS, ROUTED, Choice, Routed, Setup, Static, at, in_engine, plans, routers
from headline import text, thresholds
from table import Table, when_idle

from sinf.errors import ConfigError
from sinf.measure.timing import interleaved

LIMITS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 3.75)  # 3.75: what VGG16 loses in the paper
METHODS = (ROUTED, CHANNELS, "semantic-noreconstruct", "semantic-wholeextractor")
COLUMNS = (
    "model", "dataset", "method", "criterion", "reconstruct", "engine", "precision", "device", "batch", "threads",
    "base_top1", "top1", "loss", "loss_low", "loss_high", "calibration_loss", "cost", "macs_saved", "time_saved",
    "time_saved_low", "time_saved_high", "params_active", "fallback", "subgraph_ran", "limit", "threshold", "early",
    "cut", "whole", "extractor", "full_tail", "subgraph", "base_ms", "ms", "load", "seed", "date", "versions",
)  # fmt: skip
#: Two rows that agree in these are one point; the newer replaces the older.
IDENTITY = ("method", "cut", "whole", "extractor", "full_tail", "subgraph", "limit")


def main(
    name: str,
    weights: Path,
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder of candidates.py.")],
    only: Annotated[str, typer.Option(help="Comma-separated methods.")] = ",".join(METHODS),
    pairs: int = 300,
    keep: Annotated[bool, typer.Option(help="Leave out methods that are in the file.")] = False,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    torch.set_num_threads(1)
    table = Table(
        f"tradeoff_{name}_cpu.csv", COLUMNS, IDENTITY, keep=keep, loaded=loaded, model=name, dataset="cifar100",
        engine="torch", precision="float32", batch=1, threads=1, seed=0,
    )  # fmt: skip
    methods = [method for method in only.split(",") if not table.has(method=method)]
    if not methods:
        return
    setup = Setup(name, weights, data, work)
    x = setup.base.spec.preprocessing.normalise(setup.report.pixels(setup.base.spec.preprocessing, 0, 2000))
    points: list[tuple[Choice, dict[str, Any]]] = []
    running: dict[str, Callable[[Any], Any]] = {}
    for plan in plans(name, methods):
        try:
            made = Routed(setup, plan) if plan.routed else Static(setup, plan)
        except ConfigError as error:  # a budget out of reach
            print(f"left out: {plan.method} {plan.label}: {error}", flush=True)
            continue
        if isinstance(made, Static):
            known = {"criterion": plan.prune_config().criterion_name, "reconstruct": True, "extractor": plan.budget}
            points.append((made.at(100.0), known))
            running[text(points[-1][0])] = in_engine(made.model, "torch")
            continue
        mine = [choice for choice in (at(made, limit) for limit in LIMITS) if choice is not None]
        running |= routers(made, {text(choice): choice for choice in mine}, "torch", x)
        points += [(choice, described(made, setup.cut) | {"limit": choice.asked}) for choice in mine]
    base = in_engine(setup.base, "torch")
    times = when_idle(lambda: interleaved(base, running, x, pairs=pairs), lambda found: next(iter(found.values())).load)
    for choice, known in points:
        taken, (low, high) = times[text(choice)], choice.interval()
        table.add(
            **known, **thresholds(choice), method=choice.plan.method, base_top1=choice.base_top1,
            top1=choice.base_top1 - choice.loss / 100, loss=choice.loss, loss_low=low, loss_high=high,
            calibration_loss=choice.calibration_loss, cost=choice.cost, macs_saved=choice.macs_saved,
            time_saved=taken.time_saved, time_saved_low=taken.low, time_saved_high=taken.high,
            params_active=choice.params_active, fallback=choice.fallback, subgraph_ran=choice.subgraph_ran,
            base_ms=taken.base_mean, ms=taken.mean, load=taken.load,
        )  # fmt: skip
        print(
            f"{choice.plan.method:24} {choice.plan.label:32} asked {known.get('limit', '')!s:5} "
            f"loss {choice.loss:+.2f} points, time {taken.time_saved:.3f} [{taken.low:.3f}, {taken.high:.3f}], "
            f"fallback {choice.fallback:.2f}", flush=True,
        )  # fmt: skip
    for method in methods:
        table.forget_older(method=method)


def described(made: Routed, cut: str) -> dict[str, Any]:
    config = made.plan.build_config(cut)
    return {
        "criterion": config.criterion_name, "reconstruct": config.reconstruct, "cut": cut, "whole": config.whole,
        "extractor": config.extractor, "full_tail": config.full_tail,
        "subgraph": dict(made.plan.changes)["subgraph"],
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
