"""Budgets of time: what times of layers predict beside what whole networks take.

    python benchmarks/budgets.py vgg16 WEIGHTS CIFAR100

For each engine and precision the kinds of layers are timed (sinf.measure.layer_times; all, whatever the machine has
kept), networks are made within budgets of that time, and all are timed in one run, the base model in the same engine
and precision in between. ``asked`` is the share of the base model's time that the budget allows, ``measured`` what the
network takes of it. Weights say nothing of time, so none are fitted, and no loss is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from table import Table, when_idle
from torch import Tensor, nn

from sinf import load_images, load_model
from sinf.compress.select import Budget
from sinf.engine.engines import native
from sinf.engine.network_engine import open_network
from sinf.errors import ConfigError
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.measure.layer_times import layer_times, probes_of
from sinf.measure.timing import interleaved
from sinf.pipelines.prune import Amount, PruneConfig, pruner

WHERE = (("onnxruntime", "f32"), ("onnxruntime", "int8"))
METHODS, ASKED = ("ranks", "channels"), (0.8, 0.65, 0.5)
COLUMNS = (
    "model", "dataset", "engine", "precision", "device", "batch", "threads", "pairs", "method", "asked", "measured",
    "measured_low", "measured_high", "base_ms", "ms", "probes", "load", "seed", "date", "versions",
)  # fmt: skip
IDENTITY = ("engine", "precision", "method", "asked")


def main(
    name: str,
    weights: Path,
    data: Path,
    images: Annotated[int, typer.Option(help="That say what goes.")] = 1000,
    pairs: int = 200,
    keep: Annotated[bool, typer.Option(help="Leave out engines and precisions that are in the file.")] = False,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    torch.set_num_threads(1)
    table = Table(
        f"budgets_{name}_cpu.csv", COLUMNS, IDENTITY, keep=keep, loaded=loaded, model=name, dataset="cifar100",
        batch=1, threads=1, pairs=pairs, seed=0,
    )  # fmt: skip
    base, train = load_model(name, weights=weights), load_images(data, "train")
    fed = base.spec.preprocessing
    x, graph = train.sample(200).inputs(fed)[:], trace(base.module, fed)
    for engine, precision in WHERE:
        if table.has(engine=engine, precision=precision):
            continue

        def opened(module: nn.Module, engine: str = engine, precision: str = precision) -> Callable[[Tensor], Any]:
            run = open_network(prepare(trace(module, fed)), fed.size, engine, precision=precision, calibration=x)
            return lambda images: run(native(engine, images))

        whole, smaller = opened(base.module), {}
        times = layer_times(graph, whole, fed.size, engine, precision=precision)
        print(f"{times.where}: {probes_of(graph)} small networks, {times.total:.3f} ms in all", flush=True)
        for method in METHODS:
            first = PruneConfig(Amount(macs=ASKED[0]), method, None, images=images, reconstruct=False)
            with tempfile.TemporaryDirectory(prefix="sinf-budgets-") as work:
                make = pruner(base, train, first, work)
                for asked in ASKED:
                    try:
                        smaller[method, asked] = opened(make(Budget(asked, times=times)).module)
                    except ConfigError as reason:
                        print(f"left out: {method}, {asked}: {reason}", flush=True)
        runs = {str(key): run for key, run in smaller.items()}
        found = when_idle(
            lambda whole=whole, runs=runs: interleaved(whole, runs, x, pairs=pairs),
            lambda found: next(iter(found.values())).load,
        )
        for method, asked in smaller:
            time = found[str((method, asked))]
            row = {
                "measured": 1 - time.time_saved, "measured_low": 1 - time.high, "measured_high": 1 - time.low,
                "base_ms": time.base_mean, "ms": time.mean, "probes": probes_of(graph), "load": time.load,
            }  # fmt: skip
            table.add(engine=engine, precision=precision, method=method, asked=asked, **row)
            print(engine, precision, method, asked, f"measured {row['measured']:.3f}, load {time.load}", flush=True)
    table.forget_older()


if __name__ == "__main__":
    typer.run(main)
