"""Where a gate can stand: convolutions whose output channels may go, for one input, without touching any other's.

A site is a coupled group (:mod:`sinf.graph.coupling`) that one convolution makes: a gate looks at what that
convolution reads and decides which units stay, and the mask multiplies what the layers at the other end read. What lies
between (norm, activation, pooling, a depthwise convolution, squeeze and excite) needs no mask of its own: a removed
channel stays alone until a layer would mix it into others.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from sinf.errors import ConfigError, CutError
from sinf.graph.coupling import CoupledGroup, Coupling

_SUMS = {"add", "add_", "iadd", "sub", "isub"}


@dataclass(frozen=True)
class Site:
    """One place for a gate.

    ``name`` is the convolution whose input the gate reads (``channels`` wide); ``units`` (U,) are numbers of units in
    the coupling, in the order of that convolution's output; ``consumers`` are the layers whose input is masked. At the
    end of a residual branch (:mod:`sinf.dynamic.branches`) it is the output of the last module of ``branch`` instead.
    """

    name: str
    channels: int
    units: Tensor
    consumers: tuple[str, ...]
    branch: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.units)


@dataclass(frozen=True)
class Sites:
    """All sites in graph order, and for every other convolution the reason why it has no gate."""

    free: list[Site]
    blocked: dict[str, str]


def find_sites(graph: fx.GraphModule, coupling: Coupling) -> Sites:
    """Sort the convolutions of a traced model (not the depthwise ones, which follow others) into sites and the rest."""
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    shapes = {str(node.target): node.meta["shape"] for node in graph.graph.nodes if node.op == "call_module"}
    sums = _sums(graph, coupling)
    free: list[Site] = []
    blocked: dict[str, str] = {}
    for group in coupling.groups.values():
        convs = [t for t in group.producers if _is_full_conv(graph.get_submodule(t))]
        if not convs:
            continue
        reason = _reason(graph, coupling, group, convs, calls, sums, shapes)
        if reason is None:
            conv = graph.get_submodule(convs[0])
            free.append(Site(convs[0], conv.in_channels, group.units, group.consumers))
        else:
            blocked |= dict.fromkeys(convs, reason)
    return Sites(free, blocked)


def choose(sites: Sites, names: list[str] | None = None) -> list[Site]:
    """All sites, or those that are named.

    Raises:
        ConfigError: a name is not that of a site; the message says what blocks it.
        CutError: the model has no site at all.
    """
    if not sites.free:
        reasons = list(dict.fromkeys(sites.blocked.values()))
        got = "; ".join(reasons[:4]) or "no convolution"
        raise CutError("no convolution of this network can be gated", got=got, remedy="take another network")
    if names is None:
        return sites.free
    free = {site.name for site in sites.free}
    more = f" and {len(free) - 6} more" if len(free) > 6 else ""
    for name in names:
        if name not in free:
            raise ConfigError(
                f"{name} cannot be gated",
                got=sites.blocked.get(name, "no convolution of that name"),
                remedy=f"take some of {', '.join(site.name for site in sites.free[:6])}{more}",
            )
    return [site for site in sites.free if site.name in set(names)]


def _reason(
    graph: fx.GraphModule,
    coupling: Coupling,
    group: CoupledGroup,
    convs: list[str],
    calls: Counter[str],
    sums: dict[str, set[int]],
    shapes: dict[str, tuple[int, ...]],
) -> str | None:
    """What keeps a group from being gated."""
    members = set(group.units.tolist())
    if group.blocked is not None:
        return group.blocked
    for place, units in sums.items():
        if not members.isdisjoint(units):
            return f"it is summed with others at {place}"
    first = graph.get_submodule(group.producers[0])
    if group.producers[0] != convs[0]:
        return f"{group.producers[0]} makes the same channels before it"
    if group.size == 1:
        return "it has one channel"
    if not group.consumers:
        return "no layer mixes its channels"
    for target in (*group.producers, *group.consumers):
        if calls[target] > 1:
            return f"{target} is called {calls[target]} times"
    if coupling.input is not None and not _disjoint(coupling.reads[convs[0]].units, coupling.input.units):
        return "it reads the images themselves, whose mean colour decides little"
    if shapes[convs[0]][0] != 1:
        return "it runs on windows of an image, each of which would get its own channels"
    if shapes[convs[0]][2:] == (1, 1):
        return "it makes one position, as in squeeze and excite"
    if not isinstance(first, nn.Conv2d):
        return "only convolutions in two dimensions are gated"
    return None


def _is_full_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1


def _disjoint(a: Tensor, b: Tensor) -> bool:
    return not bool(torch.isin(a, b).any())


def _sums(graph: fx.GraphModule, coupling: Coupling) -> dict[str, set[int]]:
    """Units of every sum of two tensors (residual connections), by the name of its place."""
    units: dict[str, set[int]] = {}
    for node in graph.graph.nodes:
        if node.op not in ("call_function", "call_method") or node.name not in coupling.values:
            continue
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if name not in _SUMS and node.target is not operator.add:
            continue
        tensors = [source for source in node.all_input_nodes if source.op != "get_attr" and source.meta.get("shape")]
        if len(tensors) > 1:
            path = node.meta.get("module_path")
            place = f"{name} ({node.name})" + (f" in {path}" if path else "")
            units[place] = set(coupling.values[node.name].units.tolist())
    return units
