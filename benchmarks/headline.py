"""What a user gets who types a limit of the loss on CIFAR-100: every way to make a network faster, in one run.

    python benchmarks/headline.py vgg16 WEIGHTS CIFAR100 --work runs/headline

For each limit every method has the plan and threshold that test[:50%] picks (benchmarks/candidates.py, which prepares
them first where it was not run); they are reported once, on test[50%:]: the loss with its interval over images, the
time with its interval over pairs. All are timed together, base in between (base, A, base, B, ...), batches of one, one
thread, images of test[50%:] in turn. A run under load is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from candidates import (
    LIMITS,
    PLANS,
    Choice,
    Plan,
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

NOT_SHOWN = ("cut", "semantic-noreconstruct")  # made only to compare (benchmarks/tradeoff.py)
CONFIDENT = {"vgg16": ((1.0, 0.95), (0.5, 0.95))}  # asked and confidence of more rows
COLUMNS = (
    "model", "dataset", "engine", "precision", "device", "batch", "threads", "pairs", "method", "plan", "asked",
    "confidence", "calibration_loss", "base_top1", "loss", "loss_low", "loss_high", "images", "cost", "macs_saved",
    "time_saved", "time_saved_low", "time_saved_high", "params_active", "fallback", "subgraph_ran", "threshold",
    "early", "base_ms", "ms", "load", "seed", "date", "versions",
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
    methods = only.split(",") if only else [method for method in PLANS[name] if method not in NOT_SHOWN]
    made = make(setup, plans(name, methods))
    choices = choose(made, LIMITS[name], CONFIDENT.get(name, ()))
    for engine in wanted:
        measure(setup, made, choices, engine, table)
        table.forget_older(engine=engine)


def make(setup: Setup, wanted: Iterable[Plan]) -> list[Static | Routed]:
    """All plans that there are: a budget may be out of reach."""
    made: list[Static | Routed] = []
    for plan in wanted:
        try:
            made.append(Routed(setup, plan) if plan.routed else Static(setup, plan))
        except ConfigError as error:
            print(f"left out: {plan.method} {plan.label}: {error}", flush=True)
    return made


def choose(
    made: list[Static | Routed], limits: Iterable[float], confident: Iterable[tuple[float, float]] = ()
) -> dict[tuple[str, float, float | None], Choice | None]:
    """By method, limit and confidence, for the methods that there are; None where no plan keeps the limit."""
    choices: dict[tuple[str, float, float | None], Choice | None] = {}
    families: dict[str, list[Static | Routed]] = {}
    for one in made:
        families.setdefault(one.plan.family, []).append(one)
    for method, mine in families.items():
        routes = [one for one in mine if isinstance(one, Routed)]
        networks = [one for one in mine if isinstance(one, Static)]
        if networks:
            choices |= {(method, asked, None): choose_static(networks, asked) for asked in limits}
        else:
            asked_for = [*((asked, None) for asked in limits), *confident]
            choices |= {(method, *asked): choose_routed(routes, *asked) for asked in asked_for}
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
            params_active=choice.params_active, fallback=choice.fallback, subgraph_ran=choice.subgraph_ran,
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
