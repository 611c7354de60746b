"""What every torch network gets before it is run or timed, the base model as much as what is made of it: batch norms
folded into the convolutions before them, and weights in the order of channels_last, which CPUs read fastest at batch
1. Checks of shapes, which the trace has passed, and layers that do nothing are left out: between a convolution and its
norm they would keep it from folding.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from sinf.graph.slice import copy_graph
from sinf.graph.trace import attribute
from sinf.machine.precision import teaching

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_COMPARISONS = {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.getitem}


@torch.no_grad()
def prepare(graph: fx.GraphModule) -> fx.GraphModule:
    """The same function within rounding, in eval mode. ``graph`` is left as it is, and shares layers that stay."""
    modules = dict(graph.named_modules())
    new = copy_graph(graph.graph)
    _leave_out_what_does_nothing(new, modules)
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
                    layer = _folded(layer, norm, graph)
                    norm.replace_all_uses_with(node)
                    new.erase_node(norm)
                layer = _channels_last(layer)
            root[target] = layer
    for node in reversed(new.nodes):
        if node.op == "get_attr" and not node.users:  # of a norm that was folded
            new.erase_node(node)
    return fx.GraphModule(root, new, class_name=type(graph).__name__).eval()


def prepare_teacher(graph: fx.GraphModule) -> Callable[[Tensor], Tensor]:
    """The same function for what others learn from, see :mod:`sinf.machine.precision`; float32 comes out."""
    prepared = prepare(graph)

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        with teaching():
            return prepared(x).float()

    return run


def _leave_out_what_does_nothing(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """In eval mode, for images of the size that was traced."""
    for node in reversed(graph.nodes):
        check = node.target is torch._assert and _of_shapes(node.args[0])
        if not node.users and (check or (node.op != "placeholder" and _of_shapes(node))):
            graph.erase_node(node)
        elif node.op == "call_module" and len(node.all_input_nodes) == len(node.args) == 1:
            layer = modules[str(node.target)]
            if type(layer) is nn.Identity or isinstance(layer, nn.modules.dropout._DropoutNd):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)


def _of_shapes(value: Any) -> bool:
    """Whether a value depends on nothing but shapes."""
    if not isinstance(value, fx.Node):
        return not isinstance(value, (list, tuple, dict))
    if value.op == "call_method":
        return value.target in ("dim", "size")
    if value.target is getattr:
        return value.args[1] in ("shape", "ndim")
    return value.op == "call_function" and value.target in _COMPARISONS and all(map(_of_shapes, value.args))


def _norm_after(node: fx.Node, modules: dict[str, nn.Module], calls: Counter[str]) -> fx.Node | None:
    """The batch norm that alone reads what a convolution makes, if both are called once."""
    if len(node.users) != 1 or calls[str(node.target)] != 1:
        return None
    (user,) = node.users
    if user.op == "call_function" and user.target is nn.functional.batch_norm:
        return user if _is_constant(user) else None
    is_norm = user.op == "call_module" and isinstance(modules[str(user.target)], nn.modules.batchnorm._BatchNorm)
    norm = modules[str(user.target)] if is_norm else None
    if norm is None or norm.running_mean is None or calls[str(user.target)] != 1:
        return None
    return user


def _is_constant(norm: fx.Node) -> bool:
    """Whether a call of ``F.batch_norm``, as layers of other libraries are traced, uses running statistics that are
    tensors of the network."""
    given = _arguments(norm)
    mean, var, weight, bias = (given[name] for name in ("running_mean", "running_var", "weight", "bias"))
    stored = all(isinstance(each, fx.Node) and each.op == "get_attr" for each in (mean, var))
    scaled = all(each is None or (isinstance(each, fx.Node) and each.op == "get_attr") for each in (weight, bias))
    return given["training"] is False and stored and scaled


def _arguments(norm: fx.Node) -> dict[str, Any]:
    bound = inspect.signature(nn.functional.batch_norm).bind(*norm.args, **norm.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _folded(conv: nn.Module, norm: fx.Node, graph: fx.GraphModule) -> nn.Module:
    """The convolution with the norm in its weights."""
    if norm.op == "call_module":
        return fuse_conv_bn_eval(conv, graph.get_submodule(str(norm.target)))
    given = _arguments(norm)
    mean, var, weight, bias = (
        None if given[name] is None else attribute(graph, str(given[name].target))
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    fused = copy.deepcopy(conv)
    fused.weight, fused.bias = fuse_conv_bn_weights(fused.weight, fused.bias, mean, var, given["eps"], weight, bias)
    return fused


def _channels_last(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.Conv2d):
        return layer
    own = copy.copy(layer)
    own._parameters = dict(layer._parameters)
    own.weight = nn.Parameter(layer.weight.detach().to(memory_format=torch.channels_last), requires_grad=False)
    return own
