"""Parts in torch, each compiled by :func:`torch.compile` when it first runs: seconds, and a C++ compiler."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from sinf.engine.parts import First, Specialist, bare
from sinf.engine.runtime import Network, Runtime, Setting
from sinf.engine.torch_engine import TorchEngine, as_tensors
from sinf.errors import ConfigError, DependencyError, ModelError
from sinf.graph.prepare import prepare
from sinf.graph.trace import RUNNING, TRACING, Tracer
from sinf.machine.threads import Once
from sinf.routing.router import BASE, FIRST, FRONT, FULL_TAIL


class CompiledTorch(Runtime):
    """The engine torch-compile. Threads are those of the whole process."""

    name = "torch-compile"
    quick = False

    def open_parts(self, parts: TorchEngine, setting: Setting) -> CompiledTorchEngine:
        torch.set_num_threads(setting.threads)
        return CompiledTorchEngine(parts)

    def open_network(self, module: nn.Module, size: tuple[int, int, int], setting: Setting) -> Network:
        torch.set_num_threads(setting.threads)
        return _CompiledNetwork(module)

    def native(self, images: Tensor) -> Tensor:
        return images


@contextmanager
def compiling(what: str) -> Iterator[None]:
    """Where compiled code is called: torch may compile in any call, and what it cannot becomes one line."""
    try:
        with TRACING, RUNNING.none():
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        if "InvalidCxxCompiler" in reason:
            raise DependencyError("torch.compile needs a C++ compiler", got=reason, remedy="install g++") from error
        raise ModelError(f"{what} cannot be compiled", got=reason, remedy="take another engine") from error


class CompiledTorchEngine:
    """An :class:`sinf.routing.router.Engine` over the parts of a bundle, and of bare parts; torch tensors come out.

    A part is compiled for one input and for larger batches apart. A memory budget does not hold here: what is compiled
    stays. Calls of many threads wait for each other, because torch compiles, and compiles again for other shapes, in
    whatever call needs it, and nothing else may run then.

    Raises:
        ConfigError: it is run after a fork, or copied, or pickled: compiled code has threads, those of one process.
    """

    def __init__(self, parts: TorchEngine) -> None:
        self.parts = parts
        self._compiled: Once[tuple[str, bool], Any] = Once(self._compile)
        self._process = os.getpid()

    @torch.no_grad()
    def run(self, part: str, *inputs: Any) -> tuple[Tensor, ...]:
        if os.getpid() != self._process:
            self._refuse("one that was opened before a fork")
        given = as_tensors(inputs)
        with compiling(f"the part {part}"):
            outputs = self._compiled[part, len(given[0]) == 1](*given)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _compile(self, key: tuple[str, bool]) -> Any:
        part, alone = key
        # Traced as a whole: torch.compile counts what it makes of one function, and gives up after some.
        tracer = Tracer()
        graph = tracer.trace(self._module(part).eval().requires_grad_(False))
        return torch.compile(fx.GraphModule(tracer.root, graph), dynamic=not alone)

    def _module(self, part: str) -> nn.Module:
        engine = self.parts
        if part == FRONT:
            return engine.front
        if part == BASE:
            return engine.base
        if part == bare(FRONT):
            return engine.extractor
        network, kept = engine.network, engine.bundle.parts
        if part == FIRST:
            first = engine.module(FIRST)
            return First(engine.extractor, prepare(first.tail), first.head)
        for name, head in engine.deferral_heads.items():
            if part in (name, bare(name)):
                tail = prepare(network.tail(kept[name]))
                return tail if part == bare(name) else Specialist(tail, head)
        return prepare(network.tail(kept[FULL_TAIL]))

    def array(self, values: list[float] | list[bool] | list[int]) -> Tensor:
        return self.parts.array(values)

    def close(self) -> None:
        self._compiled.clear()

    def __reduce__(self) -> NoReturn:
        self._refuse("a copy of one")

    def _refuse(self, got: str) -> NoReturn:
        raise ConfigError(
            "an engine of torch-compile runs in the process that opened it",
            got=got,
            remedy="open the engine in the worker itself, or use torch there",
        )


class _CompiledNetwork:
    """Compiled for one image and for larger batches apart, when they first come."""

    def __init__(self, module: nn.Module) -> None:
        tracer = Tracer()
        graph = tracer.trace(module)
        self._graph = fx.GraphModule(tracer.root, graph)
        self._compiled: Once[bool, Any] = Once(lambda alone: torch.compile(self._graph, dynamic=not alone))

    @torch.no_grad()
    def __call__(self, images: Any) -> Tensor:
        given = as_tensors((images,))
        with compiling("the network"):
            return self._compiled[len(given[0]) == 1](*given)
