"""A traced network with fewer units and with what stands in the place of its layers (:mod:`sinf.graph.delta`)."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import Tensor, fx, nn

from sinf.graph.branches import alone_for, may_go, to_sum
from sinf.graph.coupling import Coupling
from sinf.graph.delta import ConstantMap, LayerDelta, walked
from sinf.graph.slice import copy_graph, slice_graph
from sinf.graph.trace import layer as layer_of


def apply(graph: fx.GraphModule, coupling: Coupling, keep: Tensor, layers: Mapping[str, LayerDelta]) -> fx.GraphModule:
    """``graph`` with the units that stay (units,) bool and with the given layers; what did not change is shared.

    Layers that become two are two calls, ``TARGET.reduce`` and ``TARGET.expand``; a residual branch that became a
    constant is not run. Layers of another part of the network are left out.
    """
    return without_constants(unrolled(replaced(graph, coupling, keep, layers)))


def replaced(
    graph: fx.GraphModule, coupling: Coupling, keep: Tensor, layers: Mapping[str, LayerDelta]
) -> fx.GraphModule:
    """The same with the same nodes as ``graph``: layers that become two are called as one."""
    smaller = slice_graph(graph, coupling, keep)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    for target, delta in layers.items():
        if target in called:
            sliced = smaller.get_submodule(target)
            out, read = coupling.writes[target].index(keep), coupling.reads[target]
            smaller.set_submodule(target, delta.apply(graph.get_submodule(target), sliced, out, read))
    return smaller


def unrolled(graph: fx.GraphModule) -> fx.GraphModule:
    """``graph`` with two calls where a layer became two."""
    pairs = {
        str(node.target)
        for node in graph.graph.nodes
        if node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.Sequential)
    }
    if not pairs:
        return graph
    new = fx.GraphModule(graph, copy_graph(graph.graph), class_name=type(graph).__name__)
    for node in list(new.graph.nodes):
        if node.op == "call_module" and node.target in pairs:
            with new.graph.inserting_before(node):
                reduced = new.graph.call_module(f"{node.target}.reduce", node.args, node.kwargs)
            reduced.meta = dict(node.meta)
            node.target, node.args, node.kwargs = f"{node.target}.expand", (reduced,), {}
            reduced.meta["shape"] = _shape_after(layer_of(new, reduced), _source(reduced).meta.get("shape"))
    new.recompile()
    return new.train(graph.training)


def without_constants(graph: fx.GraphModule) -> fx.GraphModule:
    """``graph`` where a residual branch whose last layer is a constant is one value a channel, which is added; what
    only the branch needed is gone. A constant elsewhere is left as a layer."""
    ends = [
        node for node in graph.graph.nodes
        if node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), ConstantMap)
    ]  # fmt: skip
    if not ends:
        return graph
    new = fx.GraphModule(graph, copy_graph(graph.graph), class_name=type(graph).__name__)
    names = {node.name for node in ends}
    for node in [node for node in new.graph.nodes if node.name in names]:
        chain = to_sum(new, node)
        if chain is None:
            continue
        (total,) = chain[-1].users
        (other,) = [source for source in total.all_input_nodes if source is not chain[-1]]
        if not may_go(total, other):
            continue
        module = new.get_submodule(str(node.target))
        value = module.value.detach()[None, :, None, None]
        for between in chain[1:]:
            value = new.get_submodule(str(between.target))(value)
        name = f"{str(node.target).replace('.', '_')}_constant"
        new.register_buffer(name, value)
        with new.graph.inserting_before(total):
            constant = new.graph.get_attr(name)
            constant.meta["shape"] = tuple(value.shape)
            added = new.graph.call_function(operator.add, (other, constant))
        added.meta = dict(total.meta)
        total.replace_all_uses_with(added)
        dead = alone_for(node) | {total, *chain}
        for gone in [each for each in reversed(new.graph.nodes) if each in dead]:
            new.graph.erase_node(gone)
    new.delete_all_unused_submodules()
    new.recompile()
    return new.train(graph.training)


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _shape_after(layer: nn.Module, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The shape that a convolution or linear layer makes of one."""
    if shape is None:
        return None
    if not isinstance(layer, nn.Conv2d):
        return (*shape[:-1], layer.weight.shape[0])
    sides = walked(shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return (shape[0], layer.weight.shape[0], *sides)
