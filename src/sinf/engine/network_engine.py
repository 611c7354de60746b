"""One network in the engine of one's choice: a plain model, or the base model that it is compared with."""

from __future__ import annotations

from torch import Tensor, nn

from sinf.engine.engines import require_precision, runtime_of
from sinf.engine.runtime import Keep, Network, Setting


def open_network(
    module: nn.Module,
    size: tuple[int, int, int],
    engine: str = "torch",
    *,
    threads: int = 1,
    precision: str = "f32",
    calibration: Tensor | None = None,
    keep: Keep | None = None,
) -> Network:
    """The network as a function in an engine; the options are those of :func:`sinf.engine.engines.open_engine`.

    Raises:
        ConfigError: there is no such engine, it has no such precision, or calibration images are missing.
        DependencyError: its package is missing.
        ModelError: the network has an operation that the engine has not.
    """
    require_precision(engine, precision)
    return runtime_of(engine).open_network(module, size, Setting(threads, precision, calibration, keep))
