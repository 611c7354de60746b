"""Parts in OpenVINO, on the processor. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sinf.engine.sessions import Session, SessionEngine, Source
from sinf.errors import ConfigError, DependencyError

PRECISIONS = ("f32", "bf16")


class OpenVinoEngine(SessionEngine):
    """One compiled model a part, each with ``threads`` threads.

    ``precision`` is that of the arithmetic; left to itself OpenVINO takes bf16 where the processor has it, and answers
    differ.
    """

    name = "openvino"

    def __init__(self, source: Source, threads: int = 1, precision: str = "f32") -> None:
        super().__init__(source, threads)
        if precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}", got=precision)
        try:
            import openvino
        except ImportError as error:
            raise DependencyError("the engine openvino needs its package", remedy="pip install openvino") from error
        self._core = openvino.Core()
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ConfigError("bf16 needs a processor that has it", got="one that has not", remedy="take f32 or int8")
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
        }

    def _open(self, model: Path | bytes) -> Session:
        read = self._core.read_model(model)
        request = self._core.compile_model(read, "CPU", self._options).create_infer_request()
        outputs = range(len(read.outputs))

        def run(inputs: list[np.ndarray]) -> tuple[np.ndarray, ...]:
            results = request.infer(inputs, share_inputs=True)  # its outputs are copies
            return tuple(results[i] for i in outputs)

        return run
