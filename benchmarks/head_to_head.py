"""Which kind of inference wins at which loss on CIFAR-100: static, cascade, or routed by given or by found clusters.

    python benchmarks/head_to_head.py vgg16 WEIGHTS CIFAR100 --work runs/curve/vgg16 --until plans  # beside other work
    python benchmarks/head_to_head.py vgg16 WEIGHTS CIFAR100 --work runs/curve/vgg16                # on an idle machine

All are made smaller by ranks, from one checkpoint, by the same code, and are timed in one run: batches of one, one
thread, the base model in between. For each limit a kind has the plan and threshold that test[:50%] picks; reported
once, on test[50%:] (benchmarks/candidates.py says how plans are made and chosen, benchmarks/headline.py how they are
timed). Given clusters are CIFAR-100's superclasses; found ones are of what the base model confuses on train images.
One plan of each of these two: its subgraphs take a quarter of an hour of a core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from candidates import CASCADE, FOUND, GIVEN, RANKS_TIME, Plan, Setup
from headline import COLUMNS, IDENTITY, choose, make, measure
from table import Table

LIMITS = (0.1, 0.25, 0.5, 1.0, 2.0)  # points
_ROUTED: tuple[dict[str, Any], ...] = ({"whole": 0.65, "subgraph": 0.12},)
#: By network and kind, budgets of networks without routes, else what differs from a build's defaults. ``whole`` is of
#: extractor and full tail.
PLANS: dict[str, dict[str, tuple[Any, ...]]] = {
    "vgg16": {
        RANKS_TIME: (0.8, 0.65, 0.5, 0.42, 0.35, 0.31, 0.28),
        CASCADE: tuple(
            {"cut": "features.13", "whole": whole, "subgraph": subgraph}
            for whole, subgraph in ((0.75, 0.15), (0.5, 0.15), (0.42, 0.12), (0.35, 0.12))
        ),
        GIVEN: _ROUTED,
        FOUND: _ROUTED,
    },
    "resnet56": {
        RANKS_TIME: (0.9, 0.8, 0.72, 0.65),
        CASCADE: tuple(
            {"cut": cut, "whole": whole, "subgraph": 0.3} for cut in ("layer1", "layer2") for whole in (0.9, 0.8)
        ),
        GIVEN: ({"whole": 0.85, "subgraph": 0.3},),
        FOUND: ({"whole": 0.85, "subgraph": 0.3},),
    },
}  # fmt: skip


def plans(name: str, only: str = "") -> list[Plan]:
    return [
        Plan(method, changes=tuple(size.items())) if isinstance(size, dict) else Plan(method, size)
        for method, sizes in PLANS[name].items() if not only or method in only.split(",")
        for size in sizes
    ]  # fmt: skip


def main(
    name: str,
    weights: Path,
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder for results of steps; may be used again.")],
    engine: str = "onnxruntime",
    pairs: int = 500,
    until: Annotated[str, typer.Option(help="plans (are made), or all.")] = "all",
    only: Annotated[str, typer.Option(help="Kinds, with commas between [default: all].")] = "",
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    torch.set_num_threads(1)
    table = Table(
        f"head_to_head_{name}_cpu.csv", COLUMNS, IDENTITY, loaded=loaded, model=name, dataset="cifar100",
        precision="float32", batch=1, threads=1, pairs=pairs, seed=0,
    )  # fmt: skip
    setup = Setup(name, weights, data, work)
    made = make(setup, plans(name, only))
    choices = choose(made, LIMITS)
    for (method, asked, _), choice in choices.items():
        said = "no plan" if choice is None else f"{choice.plan.label}, predicted {choice.cost:.3f} of the cost"
        print(f"{method} asked {asked:g}: {said}", flush=True)
    if until != "plans":
        measure(setup, made, choices, engine, table)
        table.forget_older(engine=engine)


if __name__ == "__main__":
    typer.run(main)
