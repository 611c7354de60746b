"""The network with two layers in the place of one.

Tensors of what changes, by name: ``reduce.TARGET``, ``expand.TARGET`` and ``bias.TARGET`` of layers that become two, in
the shapes of their weights; ``whole.TARGET.weight`` and ``whole.TARGET.bias`` of those that stay one.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import cast

from torch import Tensor, fx, nn

from sinf.subgraph.coupling import unfolds
from sinf.subgraph.reconstruct import Solved
from sinf.subgraph.slice import copy_graph


def can_factor(module: nn.Module) -> bool:
    """Whether a layer can be written as two: a full convolution in two dimensions, or a linear layer."""
    if isinstance(module, nn.Linear):
        return True
    return unfolds(module) and module.groups == 1


def assemble(graph: fx.GraphModule, solved: Solved) -> fx.GraphModule:
    """What did not change is shared with ``graph``."""
    new = side_by_name(graph, solved)
    for node in list(new.graph.nodes):
        if node.op == "call_module" and f"reduce.{node.target}" in solved:
            with new.graph.inserting_before(node):
                reduced = new.graph.call_module(f"{node.target}.reduce", node.args, node.kwargs)
            node.target, node.args, node.kwargs = f"{node.target}.expand", (reduced,), {}
    new.recompile()
    return new


def side_by_name(graph: fx.GraphModule, solved: Solved) -> fx.GraphModule:
    """The same with the same nodes, two layers called as one."""
    new = fx.GraphModule(graph, copy_graph(graph.graph))
    for target in dict.fromkeys(_target(name) for name in solved):
        new.set_submodule(target, layer(graph.get_submodule(target), target, solved))
    return new


def _target(name: str) -> str:
    kind, _, rest = name.partition(".")
    return rest.rpartition(".")[0] if kind == "whole" else rest


def layer(own: nn.Module, target: str, solved: Solved) -> nn.Module:
    """What stands in the place of ``own``."""
    if f"reduce.{target}" not in solved:
        new = copy.copy(own)
        new._parameters = dict(own._parameters)
        for name in new._parameters.keys() & {"weight", "bias"}:
            if f"whole.{target}.{name}" in solved:
                setattr(new, name, nn.Parameter(solved[f"whole.{target}.{name}"], requires_grad=False))
        return new
    reduce, expand = solved[f"reduce.{target}"], solved[f"expand.{target}"]
    first, second = (
        _linear(reduce, expand) if isinstance(own, nn.Linear) else _convolutions(cast(nn.Conv2d, own), reduce, expand)
    )
    first.load_state_dict({"weight": reduce})
    second.load_state_dict({"weight": expand, "bias": solved[f"bias.{target}"]})
    return nn.Sequential(OrderedDict(reduce=first, expand=second)).requires_grad_(False).eval()


def _linear(reduce: Tensor, expand: Tensor) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(reduce.shape[1], len(reduce), bias=False), nn.Linear(len(reduce), len(expand))


def _convolutions(own: nn.Conv2d, reduce: Tensor, expand: Tensor) -> tuple[nn.Module, nn.Module]:
    """Each walks in the directions in which it has a kernel; the first, where neither has one."""
    second = [size > 1 for size in expand.shape[2:]]

    def convolution(weight: Tensor, mine: list[bool], bias: bool) -> nn.Conv2d:
        options = {
            name: tuple(value if here else none for value, here in zip(getattr(own, name), mine, strict=True))
            for name, none in (("stride", 1), ("padding", 0), ("dilation", 1))
        }
        out, into, *kernel = weight.shape
        return nn.Conv2d(into, out, tuple(kernel), **options, bias=bias)

    return convolution(reduce, [not here for here in second], False), convolution(expand, second, True)
