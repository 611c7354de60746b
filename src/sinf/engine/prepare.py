"""What every torch network gets before it is run or timed, the base model as much as ours: batch norms folded into the
convolutions before them, and weights in the order of channels_last, which CPUs read fastest at batch 1."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sinf.models.trace import attribute
from sinf.precision import teaching
from sinf.subgraph.slice import copy_graph

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def prepare(graph: fx.GraphModule) -> fx.GraphModule:
    """The same function within rounding, in eval mode. ``graph`` is left as it is, and shares layers that stay."""
    modules = dict(graph.named_modules())
    new = copy_graph(graph.graph)
    calls = Counter(str(node.target) for node in new.nodes if node.op == "call_module")
    root: dict[str, nn.Module | Tensor] = {}
    for node in new.nodes:
        target = str(node.target)
        if node.op == "get_attr":
            root[target] = attribute(graph, target)
        elif node.op == "call_module" and target not in root:
            layer = modules[target]
            if isinstance(layer, _CONVS):
                norm = _norm_after(node, modules, calls)
                if norm is not None:
                    layer = fuse_conv_bn_eval(layer, modules[str(norm.target)])
                    norm.replace_all_uses_with(node)
                    new.erase_node(norm)
                layer = _channels_last(layer)
            root[target] = layer
    return fx.GraphModule(root, new, class_name=type(graph).__name__).eval()


def prepare_teacher(graph: fx.GraphModule) -> Callable[[Tensor], Tensor]:
    """The same function for what others learn from, see :mod:`sinf.precision`; float32 comes out."""
    prepared = prepare(graph)

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        with teaching():
            return prepared(x).float()

    return run


def _norm_after(node: fx.Node, modules: dict[str, nn.Module], calls: Counter[str]) -> fx.Node | None:
    """The batch norm that alone reads what a convolution makes, if both are called once."""
    if len(node.users) != 1 or calls[str(node.target)] != 1:
        return None
    (user,) = node.users
    is_norm = user.op == "call_module" and isinstance(modules[str(user.target)], nn.modules.batchnorm._BatchNorm)
    norm = modules[str(user.target)] if is_norm else None
    if norm is None or norm.running_mean is None or calls[str(user.target)] != 1:
        return None
    return user


def _channels_last(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.Conv2d):
        return layer
    own = copy.copy(layer)
    own._parameters = dict(layer._parameters)
    own.weight = nn.Parameter(layer.weight.detach().to(memory_format=torch.channels_last), requires_grad=False)
    return own
