"""From the units that stay to a network that is physically smaller."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from sinf.graph.coupling import Coupling, Slot
from sinf.graph.trace import attribute


def slice_graph(graph: fx.GraphModule, coupling: Coupling, keep: Tensor) -> fx.GraphModule:
    """The network that is left when only the units in ``keep`` (units,) bool stay.

    Layers that lose nothing are shared with ``graph``; the others are new and own their tensors.
    """
    root: dict[str, nn.Module | Tensor] = {}
    for node in graph.graph.nodes:
        target = str(node.target)
        if node.op == "call_module" and target not in root:
            root[target] = _slice_layer(graph.get_submodule(target), target, coupling, keep)
        elif node.op == "get_attr" and target not in root:
            tensor = attribute(graph, target)
            slot = coupling.writes.get(target)
            root[target] = _as_attribute(tensor if slot is None else _take(tensor, slot.dim, slot.index(keep)))
    sliced = fx.GraphModule(root, copy_graph(graph.graph), class_name=type(graph).__name__)
    return sliced.train(graph.training)


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """The same nodes, to be changed."""
    new = fx.Graph()
    result = new.graph_copy(graph, {})
    new.output(result)
    return new


def _slice_layer(module: nn.Module, target: str, coupling: Coupling, keep: Tensor) -> nn.Module:
    written, read = coupling.writes.get(target), coupling.reads.get(target)
    if written is None:
        return module
    out = written.index(keep)
    into = None if read is None else read.index(keep)
    tensors = {**module._parameters, **module._buffers}
    new: dict[str, Tensor | None] = {}
    for name, tensor in tensors.items():
        new[name] = _slice_tensor(module, name, tensor, written, out, read, into)
    if all(new[name] is tensor for name, tensor in tensors.items()):
        return module
    smaller = copy.copy(module)  # keeps the class and options of any layer, of other libraries too
    smaller._parameters = {n: _parameter(new[n], p) for n, p in module._parameters.items()}
    smaller._buffers = {n: new[n] for n in module._buffers}
    _set_widths(smaller, module, len(out), None if into is None else len(into))
    return smaller


def _slice_tensor(
    module: nn.Module,
    name: str,
    tensor: Tensor | None,
    written: Slot,
    out: Tensor,
    read: Slot | None,
    into: Tensor | None,
) -> Tensor | None:
    if tensor is None or tensor.ndim == 0:
        return tensor
    result = _take(tensor, 0, out)
    mixes = read is not None and name == "weight" and getattr(module, "groups", 1) == 1
    return _take(result, 1, into) if mixes and into is not None else result


def _take(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    return tensor if len(index) == tensor.shape[dim] else tensor.detach().index_select(dim, index)


def _parameter(tensor: Tensor | None, old: nn.Parameter | None) -> nn.Parameter | None:
    if tensor is None or old is None or tensor is old:
        return old
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _as_attribute(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach()


def _set_widths(smaller: nn.Module, base: nn.Module, out: int, into: int | None) -> None:
    """The widths that layers keep as numbers beside their tensors."""
    if isinstance(smaller, nn.modules.conv._ConvNd) and into is not None:
        if smaller.groups > 1:
            smaller.groups = smaller.groups * into // base.in_channels
        smaller.in_channels, smaller.out_channels = into, out
    elif isinstance(smaller, nn.Linear) and into is not None:
        smaller.in_features, smaller.out_features = into, out
    elif isinstance(smaller, nn.modules.batchnorm._BatchNorm):
        smaller.num_features = out
    elif isinstance(smaller, nn.PReLU):
        smaller.num_parameters = out


def parameters_of(graph: fx.GraphModule) -> int:
    """Number of parameters that a network reads, shared ones once."""
    return sum(p.numel() for p in {id(p): p for p in graph.parameters()}.values())


class Masked(fx.Interpreter):
    """The base network with the removed channels set to zero wherever a layer would mix them into others.

    This is the definition of what a sliced network computes; it needs no slicing.
    """

    def __init__(self, graph: fx.GraphModule, coupling: Coupling, keep: Tensor) -> None:
        super().__init__(graph)
        self.coupling, self.keep = coupling, keep

    def call_module(self, target: str, args: tuple, kwargs: dict) -> Tensor:
        slot = self.coupling.reads.get(str(target))
        if slot is not None:
            x = args[0]
            shape = [1] * x.ndim
            dim = 1 if isinstance(self.submodules[target], nn.modules.conv._ConvNd) else x.ndim - 1
            mask = self.keep[slot.units].repeat_interleave(slot.repeat)
            shape[dim] = len(mask)
            args = (torch.where(mask.view(shape), x, torch.zeros((), dtype=x.dtype)), *args[1:])
        return super().call_module(target, args, kwargs)
