"""One smaller network for all classes by every compressor, and by one after another: loss and time, all in one run.

    python benchmarks/curve.py resnet56 WEIGHTS CIFAR100 --work runs/curve --until layers    # on an idle machine
    python benchmarks/curve.py resnet56 WEIGHTS CIFAR100 --work runs/curve --until networks  # beside other work
    python benchmarks/curve.py resnet56 WEIGHTS CIFAR100 --work runs/curve                   # on an idle machine

The last does what the others did not. A chain makes its second network of the first, as ``sinf prune FOLDER`` does.
Budgets count a weight as 32 MACs; those ``of time`` are spent by measured times of layers in ONNX Runtime
(sinf.measure.layer_times), where all is timed: batches of one, one thread, the base model in between. ``calls`` are of
layers. What a limit picks is decided by ``calibration_loss``, of test[:50%], and time; ``loss`` is that of test[50%:].
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from candidates import IMAGES, Answers, Setup, in_engine, say
from table import Table, when_idle
from torch import Tensor

from sinf import LabelledImages
from sinf.compress.select import Budget
from sinf.errors import ConfigError
from sinf.graph.cost import WEIGHT_COST, MacCount
from sinf.graph.coupling import couple
from sinf.graph.price import LayerTimes
from sinf.graph.trace import trace
from sinf.measure.bootstrap import interval
from sinf.measure.timing import interleaved
from sinf.models import BaseModel
from sinf.pipelines.compression_options import TimedIn
from sinf.pipelines.prune import Amount, PruneConfig, pruner
from sinf.pipelines.times import network_times

ENGINE = "onnxruntime"
DRAWS = 9999  # of the bootstrap over images
COLUMNS = (
    "model", "dataset", "engine", "precision", "device", "batch", "threads", "pairs", "made", "calls",
    "calibration_loss", "base_top1", "loss", "loss_low", "loss_high", "images", "macs_saved", "time_saved",
    "time_saved_low", "time_saved_high", "base_ms", "ms", "load", "seed", "date", "versions",
)  # fmt: skip


class Step(NamedTuple):
    """One compressor and its budget; widths are multiples of ``round_to``."""

    method: str
    budget: float
    of_time: bool = False
    round_to: int = 8

    def __str__(self) -> str:
        steps = "" if self.round_to == 8 else f" by {self.round_to}"
        return f"{self.method} {self.budget:g}{' of time' if self.of_time else ''}{steps}"


Chain = tuple[Step, ...]


def each(method: str, *budgets: float, of_time: bool = False, round_to: int = 8) -> list[Chain]:
    return [(Step(method, budget, of_time, round_to),) for budget in budgets]


CHAINS: dict[str, list[Chain]] = {
    "vgg16": [
        *each("ranks", 0.5, 0.42, 0.35, 0.31),
        *each("ranks", 0.41, 0.38, 0.45, 0.5, 0.35, 0.55, of_time=True),
        *each("channels", 0.8),
        (Step("channels", 0.9), Step("ranks", 0.4, round_to=16)),
    ],
    "resnet56": [
        *each("channels", 0.95, 0.9, 0.8),
        *each("depth", 0.96, 0.93, 0.9),
        *each("ranks", 0.8, 0.75, 0.7, 0.675, 0.65, 0.9, of_time=True),
        *each("ranks", 0.8, 0.76, 0.745, 0.73, 0.65, round_to=16),
        (Step("ranks", 0.8, of_time=True), Step("depth", 0.97)),
        (Step("depth", 0.97), Step("ranks", 0.8, round_to=16)),
        (Step("channels", 0.95), Step("ranks", 0.8, round_to=16)),
    ],
}


def name_of(chain: Chain) -> str:
    return ", then ".join(map(str, chain))


def made(
    base: BaseModel, train: LabelledImages, chain: Chain, work: Path, times: LayerTimes | None, images: int = IMAGES
) -> BaseModel:
    """Steps are kept in ``work``; ``times`` are of the base model, so that only a first step spends them.

    Raises:
        ConfigError: a budget is out of reach, or the budget of a later step is one of time.
    """
    model = base
    for number, step in enumerate(chain):
        if step.of_time and number:
            raise ConfigError("times are those of the base model", got=name_of(chain), remedy="put that step first")
        budget = Budget(step.budget, WEIGHT_COST, times if step.of_time else None)
        config = PruneConfig(Amount(macs=step.budget), step.method, None, images=images, round_to=step.round_to)
        model = pruner(model, train, config, work, progress=say)(budget)
    return model


def counted(model: BaseModel) -> tuple[int, int]:
    """MACs of an image, and calls of layers."""
    graph = trace(model.module, model.spec.preprocessing)
    count = MacCount(graph, couple(graph, free_output=True))
    return int(count.total()), len(count.nodes)


def lost(answers: Answers) -> Tensor:
    """By image, 1 where the base model alone is right, -1 where the smaller one alone is."""
    return answers.base_right.double() - answers.right.double()


def main(
    name: str,
    weights: Path,
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder for results of steps; may be used again.")],
    until: Annotated[str, typer.Option(help="layers (are timed), networks (are made), or all.")] = "all",
    pairs: int = 300,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    torch.set_num_threads(1)
    table = Table(
        f"curve_{name}_cpu.csv", COLUMNS, ("made",), loaded=loaded, model=name, dataset="cifar100", engine=ENGINE,
        precision="float32", batch=1, threads=1, pairs=pairs, seed=0,
    )  # fmt: skip
    setup = Setup(name, weights, data, work)
    times = network_times(setup.base, TimedIn(ENGINE), setup.store, say)
    print(f"{times.where}: {times.total:.3f} ms, of it in layers {times.in_layers:.3f}", flush=True)
    if until == "layers":
        return
    rows: dict[str, dict[str, float]] = {}
    running: dict[str, BaseModel] = {}
    losses: dict[str, Tensor] = {}
    whole, _ = counted(setup.base)
    for chain in CHAINS[name]:
        try:
            model = made(setup.base, setup.train, chain, work / "steps", times)
        except ConfigError as error:  # a budget out of reach
            print(f"left out: {name_of(chain)}: {error}", flush=True)
            continue
        key, (macs, calls) = name_of(chain), counted(model)
        running[key] = model
        chosen_by, losses[key] = map(lost, setup.answers(model))
        rows[key] = {
            "calls": calls, "calibration_loss": 100 * float(chosen_by.mean()), "macs_saved": 1 - macs / whole
        }  # fmt: skip
        print(f"{key}: test[:50%] loses {rows[key]['calibration_loss']:.2f}, {calls} calls", flush=True)
    if until == "networks":
        return
    fed = setup.base.spec.preprocessing
    x = fed.normalise(setup.report.pixels(fed, 0, 2000)).numpy()
    base, opened = in_engine(setup.base, ENGINE), {key: in_engine(model, ENGINE) for key, model in running.items()}
    found = when_idle(lambda: interleaved(base, opened, x, pairs=pairs), lambda found: next(iter(found.values())).load)
    right = setup.answers(next(iter(running.values())))[1].base_right
    for key, row in rows.items():
        taken, loss = found[key], 100 * float(losses[key].mean())
        low, high = (100 * end for end in interval(np.mean, losses[key], draws=DRAWS))
        table.add(
            **row, made=key, base_top1=float(right.double().mean()), loss=loss, loss_low=low, loss_high=high,
            images=len(losses[key]), time_saved=taken.time_saved, time_saved_low=taken.low, time_saved_high=taken.high,
            base_ms=taken.base_mean, ms=taken.mean, load=taken.load,
        )  # fmt: skip
        print(
            f"{key}: loss {loss:.2f} [{low:.2f}, {high:.2f}], time {taken.time_saved:.3f}, load {taken.load}",
            flush=True,
        )
    table.forget_older()


if __name__ == "__main__":
    typer.run(main)
