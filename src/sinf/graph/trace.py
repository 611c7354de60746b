"""A model as a torch.fx graph with the shape of every value: what partition and subgraphs work on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from sinf.data.images import Preprocessing
from sinf.errors import CutError
from sinf.graph.operations import counted
from sinf.machine.threads import Lock, Runs

#: Held by whatever lets torch trace: it changes nn.Module itself meanwhile, for all threads.
TRACING = Lock()
#: What runs a bundle's modules is in it, and waits for what lets torch export or compile, which cannot tell other
#: threads' modules from its own: without that they answer wrongly. (:class:`Tracer` can.)
RUNNING = Runs()

EXAMPLES = 3  # images with which shapes are found

# Layers of other libraries are kept whole when they are, by inheritance, one of these.
LEAVES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.Linear,
    nn.LayerNorm,
    nn.GroupNorm,
)


class Tracer(fx.Tracer):
    """Records, for every node, the module in which it was made (``node.meta["module_path"]``)."""

    def __init__(self) -> None:
        super().__init__()
        self._path = ""
        self._thread = threading.get_ident()  # a module that another thread runs meanwhile is none of the graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A batch norm with an activation inside (timm) is opened, so that both are seen, when it does more than its
        # base.
        if isinstance(m, LEAVES) and not any(True for _ in m.children()):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        outer, self._path = self._path, self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._path = outer

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["module_path"] = self._path
        return node


class _Shaped(fx.Proxy):
    """A traced value that knows its shape, all but the size of the batch: models may decide by it."""

    value: Any = None

    @property
    def shape(self) -> Any:
        if not isinstance(self.value, Tensor):
            return super().__getattr__("shape")
        sizes = tuple(self.value.shape)
        return (self._size(0), *sizes[1:]) if sizes and sizes[0] == EXAMPLES else sizes

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.value.dim()

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        return self.value.device

    def _size(self, dim: int) -> Any:
        return self.tracer.create_proxy("call_method", "size", (self, dim), {})


class ShapeTracer(Tracer):
    """Computes every value while it traces, on an example of ``EXAMPLES`` images."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.example: Tensor | None = example
        self._running = False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Shaped(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **options)
        if kind == "placeholder":
            proxy.value, self.example = self.example, None
        elif kind != "output":
            values = [fx.node.map_aggregate(a, _value_of) for a in (args, kwargs)]
            self._running = True
            try:
                proxy.value = self._run(kind, target, *values)
            finally:
                self._running = False
        return proxy

    @torch.no_grad()
    def _run(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "get_attr":
            return attribute(self.root, target)
        if kind == "call_module":
            return self.root.get_submodule(target).forward(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


def _value_of(argument: Any) -> Any:
    return argument.value if isinstance(argument, _Shaped) else argument


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of every tensor, and the MACs that it took."""

    def run_node(self, n: fx.Node) -> Any:
        with counted() as operations:
            value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        n.meta["macs"] = operations.macs
        return value


def trace(module: nn.Module, preprocessing: Preprocessing, device: str = "cpu") -> fx.GraphModule:
    """Trace a model in eval mode; every node carries ``meta["shape"]`` for a batch of one (None for non-tensors), and
    ``meta["macs"]``, what torch multiplies for it. Where a network moves windows or heads of an image into the first
    dimension, its size is how many an image has.

    ``device="meta"`` needs a module whose tensors are on that device and computes shapes only.

    Raises:
        CutError: Python control flow depends on the data, or the model does not take one image tensor.
    """
    with TRACING:
        return _trace(module, preprocessing, device)


def _trace(module: nn.Module, preprocessing: Preprocessing, device: str) -> fx.GraphModule:
    module.eval()
    tracer: Tracer = Tracer()
    try:
        try:
            graph = tracer.trace(module)
        except Exception:  # tracing runs the model's own Python, which may raise anything, and may ask for shapes
            tracer = ShapeTracer(torch.zeros(EXAMPLES, *preprocessing.size, device=device))
            graph = without_unused_reads(tracer.trace(module))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CutError(
            f"{type(module).__name__} cannot be traced",
            got=reason,
            remedy="remove Python control flow that depends on the input, or give another model",
        ) from error
    traced = fx.GraphModule(tracer.root, graph, class_name=type(module).__name__)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for extra in inputs[1:]:  # arguments with defaults, such as a mask: they keep their default
        if not extra.args:
            raise CutError("a classifier must take one image tensor", got=f"an argument {extra.name!r} besides")
    example = torch.zeros(1, *preprocessing.size, device=device)
    try:
        with torch.no_grad():
            _Shapes(traced).run(example, *(extra.args[0] for extra in inputs[1:]))
    except Exception as error:
        raise CutError(
            f"{type(module).__name__} does not run on a batch of shape {tuple(example.shape)}",
            got=str(error).strip().splitlines()[0],
            remedy="give the input size and channels that the model was made for",
        ) from error
    return traced


def without_unused_reads(graph: fx.Graph) -> fx.Graph:
    """Without what was looked at only to decide while it was traced."""
    for node in reversed(graph.nodes):
        if not node.users and (node.op == "get_attr" or node.target == "size"):
            graph.erase_node(node)
    return graph


@torch.no_grad()
def note_shapes(graph: fx.GraphModule) -> fx.GraphModule:
    """``graph`` itself, with the shapes and MACs of its values as they are now: what was sliced has others than it was
    traced with. Its input is what it was."""
    first = next(node for node in graph.graph.nodes if node.op == "placeholder")
    _Shapes(graph).run(torch.zeros(1, *first.meta["shape"][1:]))
    return graph


def layer(graph: fx.GraphModule, node: fx.Node) -> nn.Module:
    """The module that a ``call_module`` node calls."""
    return graph.get_submodule(str(node.target))


def attribute(graph: nn.Module, target: str) -> Tensor:
    """The tensor that a ``get_attr`` node reads."""
    path, _, name = target.rpartition(".")
    return getattr(graph.get_submodule(path), name)
