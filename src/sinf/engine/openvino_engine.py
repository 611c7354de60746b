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
        self._core, self._tensor = openvino.Core(), openvino.Tensor
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
        tensor = self._tensor

        def run(inputs: list[np.ndarray]) -> tuple[np.ndarray, ...]:
            # As request.infer(inputs) does, with half of what it takes in Python.
            for place, array in enumerate(inputs):
                own = array if array.flags.carray else array.copy()  # others cannot be shared
                request.set_input_tensor(place, tensor(own, shared_memory=True))
            request.infer()
            return tuple(request.get_output_tensor(place).data.copy() for place in outputs)

        return run
