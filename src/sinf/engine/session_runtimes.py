"""The engines that run ONNX graphs, in sessions: parts are exported when they first run, and quantised for int8."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sinf.engine.onnx_parts import network_to_onnx, part_to_onnx
from sinf.engine.onnxruntime_engine import OnnxRuntimeEngine
from sinf.engine.openvino_engine import OpenVinoEngine
from sinf.engine.quantise import Feeds, Quantiser, quantise_graph, require_images
from sinf.engine.runtime import Network, Runtime, Setting
from sinf.engine.sessions import SessionEngine, Source
from sinf.engine.torch_engine import TorchEngine
from sinf.routing.router import BASE

if TYPE_CHECKING:
    import onnx


class _Alone:
    """One network in a session."""

    def __init__(self, sessions: SessionEngine) -> None:
        self._sessions, self.give_back, self.close = sessions, sessions.give_back, sessions.close

    def __call__(self, images: Any) -> Any:
        return self._sessions.run(BASE, images)[0]


class SessionRuntime(Runtime):
    """What runs ONNX graphs; int8 is in the graph, for all of them."""

    @abstractmethod
    def sessions(self, source: Source, threads: int, arithmetic: str) -> SessionEngine:
        """What runs the graphs of ``source``; ``arithmetic`` is f32 or another precision that is not in the graph."""

    def open_parts(self, parts: TorchEngine, setting: Setting) -> SessionEngine:
        graph = part_graphs(parts, setting)
        return self._open(lambda part: graph(part).SerializeToString(), setting)

    def open_network(self, module: nn.Module, size: tuple[int, int, int], setting: Setting) -> Network:
        def source(part: str) -> bytes:
            return network_graph(module, size, setting).SerializeToString()

        return self._network(source, setting)

    def _network(self, source: Callable[[str], bytes], setting: Setting) -> Network:
        return _Alone(self._open(source, setting))

    def _open(self, made: Callable[[str], bytes], setting: Setting) -> SessionEngine:
        keep = setting.keep
        source: Source = made if keep is None else lambda part: keep(part, lambda: made(part))
        return self.sessions(source, setting.threads, "f32" if setting.precision == "int8" else setting.precision)


class OnnxRuntime(SessionRuntime):
    name = package = "onnxruntime"
    precisions = ("f32", "int8")

    def together(self, precision: str) -> int:
        """Convolutions in f32 read and write blocks of channels, a vector of the processor each (MLAS, NCHWc)."""
        if precision != "f32":
            return 1
        return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8

    def sessions(self, source: Source, threads: int, arithmetic: str) -> SessionEngine:
        return OnnxRuntimeEngine(source, threads)

    def open_graph(self, graph: Callable[[], onnx.ModelProto], setting: Setting) -> Network:
        content = graph().SerializeToString()
        return self._network(lambda part: content, setting)


class OpenVino(SessionRuntime):
    name = package = "openvino"
    precisions = ("f32", "bf16", "int8")

    def sessions(self, source: Source, threads: int, arithmetic: str) -> SessionEngine:
        return OpenVinoEngine(source, threads, arithmetic)


def network_graph(module: nn.Module, size: tuple[int, int, int], setting: Setting) -> onnx.ModelProto:
    """A network as the graph that sessions run: in integers where these are asked for."""
    graph = network_to_onnx(module, size)
    if setting.precision != "int8" or setting.calibration is None:
        return graph
    return quantise_graph(graph, Feeds(require_images(setting.calibration, size)), "network")


def part_graphs(parts: TorchEngine, setting: Setting) -> Callable[[str], onnx.ModelProto]:
    """The same of the parts of a bundle, by name, each made when it is asked for."""
    if setting.precision != "int8" or setting.calibration is None:
        return lambda part: part_to_onnx(parts, part)
    quantiser = Quantiser(parts, setting.calibration)
    return lambda part: quantiser.quantise(part_to_onnx(parts, part), part)
