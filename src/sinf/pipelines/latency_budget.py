"""From a share of the base model's time to a budget that keeps it, in the engine where the network will run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from sinf.compress.budget import Budget
from sinf.engine.engines import native, runtime_of
from sinf.engine.network_engine import open_network
from sinf.engine.runtime import Network
from sinf.graph.prepare import prepare
from sinf.graph.weight_cost import WEIGHT_COST
from sinf.measure.accuracy import machine
from sinf.measure.layer_table import LayerTable
from sinf.measure.layer_times import FORMAT, from_tensors, layer_times, to_tensors
from sinf.measure.limits import Limits
from sinf.measure.timing import latency
from sinf.pipelines.prune_config import Amount
from sinf.pipelines.prune_search import largest_in_time
from sinf.storage.steps import StepStore, Tensors

Progress = Callable[[str], Callable[[int, int], None]]


def budget_within(
    time: float,
    amount: Amount,
    limits: Limits,
    graph: fx.GraphModule,
    made: Callable[[Budget], fx.GraphModule],
    images: Tensor,
    progress: Progress,
    store: StepStore,
    depends: dict[str, Any],
) -> Budget:
    """The largest share of the layers' times with which a network takes at most ``time``, a fraction of the base
    model's; of MACs, where layers cannot be timed one by one.

    ``amount`` says where that is measured, ``limits`` with how many threads and how often. ``graph`` is the base model,
    ``made`` what a budget makes of it; its weights do not count. ``images`` are some normalised ones (N, C, H, W), with
    which all are timed. The budget is kept in the ``store``, by the machine, what is asked for and what else it
    ``depends`` on: later steps depend on it, and after a kill the same must come again.

    Raises:
        ConfigError: no network is so fast, or there is no such engine or precision.
    """
    engine, batch, pairs = amount.engine, amount.latency_batch, limits.pairs
    _, channels, height, width = images.shape
    size, given = (channels, height, width), native(engine, images)
    where: dict[str, Any] = {"threads": limits.threads, "precision": amount.precision}

    def opened(network: nn.Module) -> Network:
        return open_network(network, size, engine, calibration=images, **where)

    def measured() -> Tensors:
        base = opened(prepare(graph))
        times = None
        if runtime_of(engine).quick:
            table = LayerTable.of_machine()
            times = layer_times(
                graph, base, size, engine, batch=batch, table=table, progress=progress(table.step), **where
            )

        def ratio(share: float) -> float:
            smaller = opened(prepare(made(Budget(share, WEIGHT_COST, times))))
            tensors = latency(base, smaller, given, batch=batch, pairs=pairs, threads=limits.threads)
            return tensors.median / tensors.base_median

        share = largest_in_time(ratio, time, progress("latency budget"))
        tensors = {"share": torch.tensor(share, dtype=torch.float64)}
        return tensors if times is None else tensors | to_tensors(times)

    depends = depends | where | {"time": time, "engine": engine, "batch": batch, "pairs": pairs}
    depends |= machine() | {"engine version": runtime_of(engine).version, "times": FORMAT}
    tensors = store.get("latency-budget", depends, measured)
    times = from_tensors(tensors) if "where" in tensors else None
    return Budget(tensors["share"].item(), WEIGHT_COST, times)
