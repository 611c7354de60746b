"""What a user gets who types a limit of the loss on CIFAR-100: every way to make a network faster, in one run.

    python benchmarks/headline.py vgg16 WEIGHTS CIFAR100 --work runs/headline

For each limit every method has the plan and threshold that test[:50%] picks (benchmarks/candidates.py, which prepares
them first where it was not run); they are reported once, on test[50%:]: the loss with its interval over images, the
time with its interval over pairs. All are timed together, base in between (base, A, base, B, ...), batches of one, one
thread, images of test[50%:] in turn. A run under load is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from candidates import (
    CASCADE,
    CHANNELS,
    LIMITS,
    PLANS,
    RANKS,
    RANKS_TIME,
    ROUTED,
    Choice,
    Routed,
    Setup,
    Static,
    choose_routed,
    choose_static,
    in_engine,
    plans,
    routers,
)  # fmt: skip
from table import Table, when_idle

from sinf.errors import ConfigError
from sinf.measure.timing import interleaved
from sinf.routing.threshold import NEVER

CONFIDENT = {"vgg16": ((1.0, 0.95), (0.5, 0.95))}  # asked and confidence of more rows
COLUMNS = (
    "model", "dataset", "engine", "precision", "device", "batch", "threads", "pairs", "method", "plan", "asked",
    "confidence", "calibration_loss", "base_top1", "loss", "loss_low", "loss_high", "images", "cost", "macs_saved",
    "time_saved", "time_saved_low", "time_saved_high", "params_active", "fallback", "tried", "threshold", "early",
    "base_ms", "ms", "load", "seed", "date", "versions",
)  # fmt: skip
IDENTITY = ("engine", "method", "asked", "confidence")


def main(
    name: str,
    weights: Path,
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder of candidates.py.")],
    engines: str = "torch,onnxruntime",
    pairs: int = 500,
    only: Annotated[str, typer.Option(help="Methods, with commas between [default: all].")] = "",
    file: Annotated[str, typer.Option(help="Name of the results, instead of headline_NAME_cpu.csv.")] = "",
    keep: Annotated[bool, typer.Option(help="Leave out engines that are in the file.")] = False,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    torch.set_num_threads(1)
    table = Table(
        file or f"headline_{name}_cpu.csv", COLUMNS, IDENTITY, keep=keep, loaded=loaded, model=name, dataset="cifar100",
        precision="float32", batch=1, threads=1, pairs=pairs, seed=0,
    )  # fmt: skip
    wanted = [engine for engine in engines.split(",") if not table.has(engine=engine)]
    if not wanted:
        return
    setup = Setup(name, weights, data, work)
    made = make(setup, only.split(",") if only else None)
    choices = choose(name, made)
    for engine in wanted:
        measure(setup, made, choices, engine, table)
        table.forget_older(engine=engine)


def make(setup: Setup, only: list[str] | None = None) -> list[Static | Routed]:
    """All plans that there are, but for those that are only shown to compare; or those of some methods."""
    made: list[Static | Routed] = []
    methods = only or [method for method in PLANS[setup.name] if method not in ("cut", "semantic-noreconstruct")]
    for plan in plans(setup.name, methods):
        try:
            made.append(Routed(setup, plan) if plan.routed else Static(setup, plan))
        except ConfigError as error:  # a budget out of reach
            print(f"left out: {plan.method} {plan.label}: {error}", flush=True)
    return made


def choose(name: str, made: list[Static | Routed]) -> dict[tuple[str, float, float | None], Choice | None]:
    """By method, limit and confidence, for the methods that there are; None where no plan keeps the limit."""
    choices: dict[tuple[str, float, float | None], Choice | None] = {}
    for method in (CHANNELS, RANKS, RANKS_TIME):
        mine = [one for one in made if isinstance(one, Static) and one.plan.method == method]
        choices |= {(method, asked, None): choose_static(mine, asked) for asked in LIMITS[name] if mine}
    for method in (ROUTED, CASCADE):
        routes = [
            one for one in made if isinstance(one, Routed) and (one.plan.method == CASCADE) == (method == CASCADE)
        ]
        asked_for = [(asked, None) for asked in LIMITS[name]] + [*CONFIDENT.get(name, ())]
        choices |= {(method, *asked): choose_routed(routes, *asked) for asked in asked_for if routes}
    return choices


def measure(
    setup: Setup, made: list[Static | Routed], choices: dict[Any, Choice | None], engine: str, table: Table
) -> None:
    """All choices in one engine."""
    preprocessing = setup.base.spec.preprocessing
    x = preprocessing.normalise(setup.report.pixels(preprocessing, 0, 2000))
    images = x if engine == "torch" else x.numpy()
    running: dict[str, Callable[[Any], Any]] = {}
    for one in made:
        mine = {key: choice for key, choice in choices.items() if choice is not None and choice.plan == one.plan}
        if isinstance(one, Static):
            if mine:
                running[text(next(iter(mine.values())))] = in_engine(one.model, engine)
        else:
            running |= routers(one, {text(choice): choice for choice in mine.values()}, engine, images)
    base = in_engine(setup.base, engine)
    pairs = table.common["pairs"]
    times = when_idle(
        lambda: interleaved(base, running, images, pairs=pairs), lambda found: next(iter(found.values())).load
    )
    for (method, asked, confidence), choice in choices.items():
        key = {"engine": engine, "method": method, "asked": asked, "confidence": confidence}
        if choice is None:
            table.add(**key, plan="none")
            continue
        low, high = choice.interval()
        taken = times[text(choice)]
        table.add(
            **key, plan=f"{choice.plan.method} {choice.plan.label}" if choice.plan.routed else choice.plan.label,
            calibration_loss=choice.calibration_loss, base_top1=choice.base_top1, loss=choice.loss, loss_low=low,
            loss_high=high, images=len(choice.losses), cost=choice.cost, macs_saved=choice.macs_saved,
            time_saved=taken.time_saved, time_saved_low=taken.low, time_saved_high=taken.high,
            params_active=choice.params_active, fallback=choice.fallback, tried=choice.subgraph_ran,
            base_ms=taken.base_mean, ms=taken.mean, load=taken.load, **thresholds(choice),
        )  # fmt: skip
        print(
            f"{engine:11} {method:20} asked {asked:g}: loss {choice.loss:.2f} [{low:.2f}, {high:.2f}], "
            f"time {taken.time_saved:.3f} [{taken.low:.3f}, {taken.high:.3f}], load {taken.load}", flush=True,
        )  # fmt: skip


def thresholds(choice: Choice) -> dict[str, Any]:
    if choice.threshold is None:
        return {}
    value = choice.threshold.value
    return {"threshold": value if value < NEVER else "never", "early": choice.threshold.early}


def text(choice: Choice) -> str:
    """What tells a running model from the others: limits may pick the same."""
    plan = f"{choice.plan.method} {choice.plan.label}"
    return plan if choice.threshold is None else f"{plan} {choice.threshold.value:.9g} {choice.threshold.early:.9g}"


if __name__ == "__main__":
    typer.run(main)
