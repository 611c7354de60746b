"""Parts in ONNX Runtime, on the processor. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sinf.engine.sessions import Session, SessionEngine, Source
from sinf.errors import DependencyError


class OnnxRuntimeEngine(SessionEngine):
    """One session a part, each with ``threads`` threads."""

    name = "onnxruntime"

    def __init__(self, source: Source, threads: int = 1) -> None:
        super().__init__(source, threads)
        try:
            import onnxruntime
        except ImportError as error:
            raise DependencyError(
                "the engine onnxruntime needs its package", remedy="pip install onnxruntime"
            ) from error
        self._runtime = onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._shrink: list[Callable[[], None]] = []

    def _open(self, model: Path | bytes) -> Session:
        content = model if isinstance(model, bytes) else str(model)
        session = self._runtime.InferenceSession(content, self._options, providers=["CPUExecutionProvider"])
        names, outputs = ([value.name for value in each] for each in (session.get_inputs(), session.get_outputs()))
        shapes: list[tuple[int, ...]] = []

        def run(inputs: list[np.ndarray]) -> tuple[np.ndarray, ...]:
            shapes[:] = [x.shape[1:] for x in inputs]
            return tuple(session.run(outputs, dict(zip(names, inputs, strict=True))))

        def shrink() -> None:
            if shapes:
                one = (np.zeros((1, *shape), np.float32) for shape in shapes)
                session.run(outputs, dict(zip(names, one, strict=True)), shrinking)
            shapes.clear()

        shrinking = self._runtime.RunOptions()
        shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._shrink.append(shrink)
        return run

    def give_back(self) -> None:
        """A session keeps what its largest batch took; a run of one input may give the rest back."""
        for shrink in self._shrink:
            shrink()

    def close(self) -> None:
        super().close()
        self._shrink.clear()
