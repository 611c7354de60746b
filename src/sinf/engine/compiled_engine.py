"""Parts in torch, each compiled by :func:`torch.compile` when it first runs: seconds, and a C++ compiler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from sinf.engine.onnx_parts import bare
from sinf.engine.parts import Specialist
from sinf.engine.prepare import prepare
from sinf.engine.torch_engine import TorchEngine, as_tensors
from sinf.errors import DependencyError, ModelError
from sinf.routing import BASE, FALLBACK, FRONT


class CompiledTorchEngine:
    """Implements :class:`sinf.routing.Engine` over the parts of a bundle, and runs bare parts; torch tensors come out.

    A part is compiled for one input and for larger batches apart. A memory budget does not hold here: what is compiled
    stays.
    """

    def __init__(self, parts: TorchEngine) -> None:
        self.parts = parts
        self._compiled: dict[tuple[str, bool], Any] = {}

    @torch.no_grad()
    def run(self, part: str, *inputs: Any) -> tuple[Tensor, ...]:
        given = as_tensors(inputs)
        alone = len(given[0]) == 1
        compiled = self._compiled.get((part, alone))
        if compiled is None:
            # Traced as a whole: torch.compile counts what it makes of one function, and gives up after some.
            traced = fx.symbolic_trace(self._module(part).eval().requires_grad_(False))
            compiled = self._compiled[part, alone] = torch.compile(traced, dynamic=not alone)
        try:
            outputs = compiled(*given)
        except torch._inductor.exc.InductorError as error:
            reason = str(error).strip().splitlines()[0]
            if "InvalidCxxCompiler" in reason:
                raise DependencyError("torch.compile needs a C++ compiler", got=reason, remedy="install g++") from error
            raise ModelError(f"the part {part} cannot be compiled", got=reason, remedy="take another engine") from error
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _module(self, part: str) -> nn.Module:
        engine = self.parts
        if part == FRONT:
            return engine.front
        if part == BASE:
            return engine.base
        if part == bare(FRONT):
            return engine.extractor
        network, kept = engine.network, engine.bundle.parts
        for name, judge in engine.judges.items():
            if part in (name, bare(name)):
                tail = prepare(network.tail(kept[name]))
                return tail if part == bare(name) else Specialist(tail, judge)
        return prepare(network.tail(kept[FALLBACK]))

    def array(self, values: list[float] | list[bool]) -> Tensor:
        return self.parts.array(values)

    def close(self) -> None:
        self._compiled.clear()
