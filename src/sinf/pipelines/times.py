"""Times of a base model's layers where the result will run, measured once and kept with the steps that depend on them.

After a kill the same times must come again, whatever the machine's table has by then: what was made of them depends on
what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sinf.engine.engines import native
from sinf.engine.network_engine import open_network
from sinf.graph.prepare import prepare
from sinf.graph.price import LayerTimes
from sinf.graph.trace import trace
from sinf.measure.accuracy import machine
from sinf.measure.layer_table import LayerTable
from sinf.measure.layer_times import FORMAT, from_tensors, layer_times, to_tensors
from sinf.models import BaseModel
from sinf.pipelines.compression_options import TimedIn
from sinf.storage.files import hash_tensors
from sinf.storage.steps import StepStore
from sinf.version import __version__


def network_times(
    base: BaseModel,
    where: TimedIn,
    store: StepStore,
    progress: Callable[[str, int, int], None],
    *,
    run: Callable[[Tensor], Any] | None = None,
    ranges: Callable[[], Tensor] | None = None,
) -> LayerTimes:
    """Times of the layers of ``base``, and of the whole network, there. ``run`` runs it on normalised images, where it
    is open there already; otherwise ``ranges`` gives some (N, C, H, W) that set those of int8.

    Raises:
        DependencyError: the engine's package is missing.
    """
    fed, engine, threads, precision = base.spec.preprocessing, where.engine, where.threads, where.precision
    depends = {
        "sinf": __version__, "format": FORMAT, "machine": machine(), "engine": engine, "precision": precision,
        "batch": where.batch, "threads": threads, "weights": hash_tensors(base.module.state_dict()),
    }  # fmt: skip

    def opened() -> Callable[[Tensor], Any]:
        calibration = ranges() if ranges is not None and precision == "int8" else None
        network = open_network(
            prepare(trace(base.module, fed)), fed.size, engine, threads=threads, precision=precision,
            calibration=calibration,
        )  # fmt: skip
        return lambda x: network(native(engine, x))

    def measured() -> dict[str, Tensor]:
        table = LayerTable.of_machine()
        times = layer_times(
            trace(base.module, fed), run or opened(), fed.size, engine, precision=precision, batch=where.batch,
            threads=threads, table=table, progress=lambda done, total: progress(table.step, done, total),
        )  # fmt: skip
        return to_tensors(times)

    return from_tensors(store.get("layer-times", depends, measured))
