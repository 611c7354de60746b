"""One network in the engine of one's choice: a plain model, or the base model that it is compared with.

The network is given as torch runs it. Other engines get it with weights in the usual order, because torch would export
the strides of its own pools otherwise; they lay out weights themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from sinf.engine.compiled_engine import compiling
from sinf.engine.engines import require_precision
from sinf.engine.onnx_parts import network_to_onnx
from sinf.engine.onnxruntime_engine import OnnxRuntimeEngine
from sinf.engine.openvino_engine import OpenVinoEngine
from sinf.engine.quantise import AT_ONCE, quantise_graph, require_images
from sinf.engine.sessions import SessionEngine
from sinf.engine.torch_engine import as_tensors
from sinf.errors import ConfigError
from sinf.graph.trace import Tracer
from sinf.machine.threads import Once
from sinf.routing.router import BASE

if TYPE_CHECKING:
    import onnx

#: Normalised images (B, C, H, W) -> logits (B, classes), arrays of the engine's own kind.
Network = Callable[[Any], Any]


def open_network(
    module: nn.Module,
    size: tuple[int, int, int],
    engine: str = "torch",
    *,
    threads: int = 1,
    precision: str = "f32",
    calibration: Tensor | None = None,
) -> Network:
    """The network as a function in an engine; the options are those of :func:`sinf.engine.engines.open_engine`.

    Raises:
        ConfigError: there is no such engine, it has no such precision, or calibration images are missing.
        DependencyError: its package is missing.
        ModelError: the network has an operation that the engine has not.
    """
    require_precision(engine, precision)
    if precision == "int8" and calibration is None:
        raise ConfigError("int8 needs calibration images", got="none", remedy="give some hundred, normalised")
    if engine in ("torch", "torch-compile"):
        torch.set_num_threads(threads)
        return _Torch(module) if engine == "torch" else _Compiled(module)

    def source(part: str) -> bytes:
        return network_graph(module, size, calibration if precision == "int8" else None).SerializeToString()

    arithmetic = "f32" if precision == "int8" else precision  # integers are in the graph
    session: SessionEngine
    if engine == "onnxruntime":
        session = OnnxRuntimeEngine(source, threads)
    else:
        session = OpenVinoEngine(source, threads, arithmetic)
    return lambda images: session.run(BASE, images)[0]


def network_graph(module: nn.Module, size: tuple[int, int, int], ranges: Tensor | None = None) -> onnx.ModelProto:
    """The network as an ONNX graph, in integers where images (N, C, H, W) are given that set their ``ranges``."""
    graph = network_to_onnx(usual_order(module), size)
    if ranges is None:
        return graph
    return quantise_graph(graph, _feeds(require_images(ranges, size)), "network")


def usual_order(module: nn.Module) -> nn.Module:
    """A copy with weights in the usual order."""
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format)


class _Torch:
    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @torch.no_grad()
    def __call__(self, images: Any) -> Tensor:
        return self._module(*as_tensors((images,)))


class _Compiled:
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


def _feeds(images: Tensor) -> Iterator[dict[str, Any]]:
    for some in images.split(AT_ONCE):
        yield {"images": some.numpy()}
