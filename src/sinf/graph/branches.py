"""Residual branches: what is added to a map of the same shape, and nothing else reads.

x --+-- conv -- ... -- conv (the end of the branch) -- norm -- + --
    +----------------------------------------------------------+
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

_SUMS = (operator.add, operator.iadd, torch.add)
_SUM_METHODS = ("add", "add_")
_BETWEEN = (nn.BatchNorm2d, nn.Identity)  # a channel stays alone, and a module can be hooked


def to_sum(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node] | None:
    """The modules from a layer to the sum that alone reads them, and adds a map of the same shape; None where there is
    no such way."""
    chain = [node]
    while len(node.users) == 1:
        (user,) = node.users
        if user.op == "call_module" and isinstance(graph.get_submodule(str(user.target)), _BETWEEN):
            chain.append(user)
            node = user
            continue
        return chain if is_sum(user) else None
    return None


def is_sum(node: fx.Node) -> bool:
    """Whether a call adds two maps of the same shape, and does nothing else."""
    sums = node.op == "call_function" and node.target in _SUMS
    sums = sums or (node.op == "call_method" and node.target in _SUM_METHODS)
    maps = [source for source in node.all_input_nodes if source.op != "get_attr"]
    same = len(maps) == 2 and maps[0].meta["shape"] == maps[1].meta["shape"]
    return sums and same and not node.kwargs


def may_go(total: fx.Node, other: fx.Node) -> bool:
    """Whether a sum may be replaced: nobody reads ``other``, which it may have written over, but through it."""
    writes_over = total.target in (operator.iadd, "add_") and total.all_input_nodes[0] is other
    return not writes_over or set(other.users) == {total}


def alone_for(node: fx.Node) -> set[fx.Node]:
    """What only this call needs, itself among it: without it they are dead."""
    dead, waiting = {node}, list(node.all_input_nodes)
    while waiting:
        source = waiting.pop()
        if source.op != "placeholder" and source not in dead and set(source.users) <= dead:
            dead.add(source)
            waiting += source.all_input_nodes
    return dead
