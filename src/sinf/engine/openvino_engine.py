"""Parts in OpenVINO, on the processor. Nothing here needs torch."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from sinf.engine.sessions import Session, SessionEngine, Source
from sinf.errors import ConfigError, DependencyError
from sinf.machine.threads import Once

PRECISIONS = ("f32", "bf16")


class OpenVinoEngine(SessionEngine):
    """A part is compiled when it first runs, for one input and for larger batches apart, with ``threads`` threads.

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
        outputs, tensor = range(len(read.outputs)), self._tensor

        def compiled(alone: bool) -> tuple[Any, deque[Any]]:
            """For one input, or for as many as come: shapes known in advance take less time. And the requests that no
            thread uses: only one may use each."""
            shaped = read.clone()
            if alone:
                shaped.reshape({each.any_name: [1, *list(each.partial_shape)[1:]] for each in shaped.inputs})
            return self._core.compile_model(shaped, "CPU", self._options), deque()

        models = Once(compiled)

        def run(inputs: list[np.ndarray]) -> tuple[np.ndarray, ...]:
            # As request.infer(inputs) does, with half of what it takes in Python.
            made, idle = models[len(inputs[0]) == 1]
            try:
                ready = idle.pop()
            except IndexError:
                ready = made.create_infer_request()
            for place, array in enumerate(inputs):
                own = array if array.flags.carray else array.copy()  # others cannot be shared
                ready.set_input_tensor(place, tensor(own, shared_memory=True))
            ready.infer()
            answers = tuple(ready.get_output_tensor(place).data.copy() for place in outputs)
            idle.append(ready)
            return answers

        return run
