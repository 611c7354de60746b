"""Low rank: a convolution becomes two, through fewer channels than it has outputs.

    W (O, C, kh, kw)   ->   reduce (r, C, kh, kw), then expand (O, r, 1, 1)        cheaper where r < O C K / (C K + O)

Layers write far fewer directions than channels, even where no channel can go, because any channel may be a mix of a
few. Which directions matter is said by both sides of the layer: with the covariance C of what it writes and the Fisher
information F of the softened answer there, dropping all but the r largest eigenvectors of F^1/2 C F^1/2 costs half of
the sum of the other eigenvalues, in nats, to second order. So costs compare between layers, and a budget is spent by
one price for all: every layer takes the rank with the least cost + price * MACs.

The layers are then solved one after the other, each from what the network so far makes: least squares for its whole
kernel, reduced in rank in the same metric. No gradient training.

Response reconstruction by principal components is Zhang et al., Accelerating Very Deep Convolutional Networks for
Classification and Detection (arXiv 1505.06798), which takes F = 1 and a rank by layer from energies; reduced-rank
regression is Izenman's (1975).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from sinf.errors import ConfigError
from sinf.statistics import SiteStatistics, Statistics
from sinf.subgraph.coupling import Coupling
from sinf.subgraph.least_squares import NormalEquations
from sinf.subgraph.reconstruct import Solved, kernel_equations
from sinf.subgraph.select import Budget, MacCount
from sinf.subgraph.side_by_side import SideBySide
from sinf.subgraph.slice import copy_graph

# Tensors of what changes, by name: reduce.TARGET (r, C, kh, kw), expand.TARGET (O, r) and bias.TARGET (O,) of layers
# that become two; whole.TARGET.weight and whole.TARGET.bias of those that stay one.

#: What :func:`metrics` wants to know of every site.
NEEDS = ("made_sum", "made_gram", "made_count", "fisher")

_FLOOR = 1e-2  # of the mean of F's diagonal: what the answer hardly feels still counts a little
_HALVINGS = 60


@dataclass(frozen=True)
class Metric:
    """``root`` F^1/2 and ``inverse`` F^-1/2 (O, O) of a layer's outputs, and the ``values`` (O,), falling, of F^1/2 C
    F^1/2 in nats of the answer of an image."""

    root: Tensor
    inverse: Tensor
    values: Tensor

    def directions(self, covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """``(O, r), (r, O)``: their product keeps the ``rank`` directions of most effect on the answer."""
        vectors = torch.linalg.eigh(self.root @ covariance.double() @ self.root).eigenvectors.flip(1)[:, :rank]
        return self.inverse @ vectors, vectors.T @ self.root


def metrics(found: Statistics) -> dict[str, Metric]:
    """By target, from sums over images."""
    return {target: _metric(site.fisher, _covariance(site), site.images) for target, site in found.items()}


def _covariance(site: SiteStatistics) -> Tensor:
    """``(O, O)`` of what a site writes."""
    count = float(site.made_count)
    mean = site.made_sum / count
    return site.made_gram / count - torch.outer(mean, mean)


def _metric(fisher: Tensor, covariance: Tensor, images: int) -> Metric:
    fisher = fisher.double() / max(1, images)  # of an image, all positions together
    level = torch.diagonal(fisher).mean().clamp(min=1e-30)
    values, vectors = torch.linalg.eigh(fisher + _FLOOR * level * torch.eye(len(fisher), dtype=torch.float64))
    values = values.clamp(min=1e-3 * _FLOOR * level)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    inverse = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    effect = torch.linalg.eigvalsh(root @ covariance.double() @ root).flip(0).clamp(min=0)
    return Metric(root, inverse, effect)


def choose_ranks(budget: Budget, count: MacCount, known: dict[str, Metric], round_to: int = 8) -> dict[str, int]:
    """Ranks by target, of the layers that become two, within a budget of MACs.

    Raises:
        ConfigError: no ranks are within the budget.
    """
    if round_to < 1:
        raise ConfigError("round_to must be at least 1", got=round_to, remedy="take 8")
    options = {target: _options(target, count, known, round_to, budget.weight_cost) for target in _targets(count)}
    whole = sum(choices[0].cost for choices in options.values())
    least = sum(min(choice.cost for choice in choices) for choices in options.values())
    if least > budget.macs * whole:
        got = f"{budget.macs:g}; at least {least / whole:.3f} must stay"
        raise ConfigError("the MAC budget must be within reach of ranks", got=got, remedy="raise the budget")

    def at(price: float) -> dict[str, _Choice]:
        return {
            target: min(choices, key=lambda choice: choice.loss + price * choice.cost / whole)
            for target, choices in options.items()
        }

    low, high = 0.0, 1e-6
    while sum(choice.cost for choice in at(high).values()) > budget.macs * whole:
        high *= 4
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        spent = sum(choice.cost for choice in at(price).values())
        low, high = (price, high) if spent > budget.macs * whole else (low, price)
    return {target: choice.rank for target, choice in at(high).items() if choice.rank}


@dataclass(frozen=True)
class _Choice:
    """A rank (0: the layer as it is), the nats that it loses, and what it costs."""

    rank: int
    loss: float
    cost: float


def _targets(count: MacCount) -> list[str]:
    return list(dict.fromkeys(target for target, _, _ in count.nodes))


def _options(
    target: str, count: MacCount, known: dict[str, Metric], round_to: int, weight_cost: float
) -> list[_Choice]:
    calls = [(module, positions) for name, module, positions in count.nodes if name == target]
    module = calls[0][0]
    out, into = module.weight.shape[0], module.weight.shape[1]
    kernel = module.weight[0, 0].numel()
    places = sum(positions // kernel for _, positions in calls)  # positions of outputs
    each = places + weight_cost * len(calls)
    choices = [_Choice(0, 0.0, each * out * into * kernel)]
    if target not in known or not can_factor(module):
        return choices
    dropped = known[target].values.sum() - known[target].values.cumsum(0)
    for rank in range(round_to, out + 1, round_to):
        cost = each * rank * (into * kernel + out)
        if cost < choices[0].cost:
            choices.append(_Choice(rank, 0.5 * float(dropped[rank - 1]), cost))
    return choices


def can_factor(module: nn.Module) -> bool:
    """Whether a layer can be written as two: a full convolution in two dimensions, or a linear layer."""
    if isinstance(module, nn.Linear):
        return True
    plain = isinstance(module, nn.Conv2d) and module.groups == 1
    return plain and module.padding_mode == "zeros" and not isinstance(module.padding, str)


@torch.no_grad()
def factor(graph: fx.GraphModule, ranks: dict[str, int], found: Statistics, known: dict[str, Metric]) -> Solved:
    """Every layer on its own, from what the network writes as it is."""
    solved: Solved = {}
    for target, rank in ranks.items():
        own, site = graph.get_submodule(target), found[target]
        mean = site.made_sum / float(site.made_count)
        before = mean if own.bias is None else mean - own.bias.double()
        weight = own.weight.double().flatten(1)
        solved |= _reduced(target, own, weight, before, mean, known[target].directions(_covariance(site), rank))
    return solved


@torch.no_grad()
def reconstruct_ranks(
    graph: fx.GraphModule,
    coupling: Coupling,
    start: Solved,
    ranks: dict[str, int],
    known: dict[str, Metric],
    inputs: Tensor,
    *,
    memory: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Solved:
    """Solve again for all layers from the first that became two, each from what the others make by then; ``start`` is
    what :func:`factor` found, and ``memory`` as in :func:`sinf.subgraph.reconstruct.reconstruct`."""
    smaller, solved = _side(graph, start), Solved()
    targets, seen = set(coupling.mixers.values()), set[str]()
    pair = SideBySide(graph, smaller, inputs, inputs, memory)
    for node, twin in pair:
        target = str(node.target)
        if node.op != "call_module" or target not in targets or target in seen or not (seen or target in ranks):
            continue
        seen.add(target)
        own = graph.get_submodule(target)
        if can_factor(own):
            constant = own.bias is not None or target in ranks
            sums = kernel_equations(own, torch.arange(len(own.weight)), list(pair.answers_of(node, twin)), constant)
            found = _fit(target, own, sums, constant, ranks.get(target), known)
            smaller.set_submodule(target, _layer(own, target, found))
            solved |= found
        if progress is not None:
            progress(target)
    return solved


def _fit(
    target: str, own: nn.Module, sums: NormalEquations, constant: bool, rank: int | None, known: dict[str, Metric]
) -> Solved:
    """What stands in the place of ``own``, at full rank or less, from the sums of its kernel."""
    prior = own.weight.detach().flatten(1)
    if constant:
        bias = prior.new_zeros(len(prior)) if own.bias is None else own.bias.detach()
        prior = torch.cat([prior, bias[:, None]], 1)
    fit = sums.solve(prior).double()
    weight = fit[:, : own.weight[0].numel()]
    if rank is None:
        whole = {f"whole.{target}.weight": weight.reshape(own.weight.shape).float()}
        return whole | ({f"whole.{target}.bias": fit[:, -1].float()} if constant else {})
    moments = sums.moments()
    mean = moments[-1, :-1]
    covariance = weight @ (moments[:-1, :-1] - torch.outer(mean, mean)) @ weight.T
    before = weight @ mean
    return _reduced(target, own, weight, before, before + fit[:, -1], known[target].directions(covariance, rank))


def _reduced(
    target: str, own: nn.Module, weight: Tensor, before: Tensor, mean: Tensor, directions: tuple[Tensor, Tensor]
) -> Solved:
    """The tensors of two layers: ``weight`` x has the mean ``before`` and, with the bias, ``mean``, which stays."""
    expand, reduce = directions
    return {
        f"reduce.{target}": (reduce @ weight).reshape(len(reduce), *own.weight.shape[1:]).float(),
        f"expand.{target}": expand.float(),
        f"bias.{target}": (mean - expand @ (reduce @ before)).float(),
    }


def assemble(graph: fx.GraphModule, solved: Solved) -> fx.GraphModule:
    """The network with two layers in the place of one, or other weights; what did not change is shared."""
    new = _side(graph, solved)
    for node in list(new.graph.nodes):
        if node.op == "call_module" and f"reduce.{node.target}" in solved:
            with new.graph.inserting_before(node):
                reduced = new.graph.call_module(f"{node.target}.reduce", node.args, node.kwargs)
            node.target, node.args, node.kwargs = f"{node.target}.expand", (reduced,), {}
    new.recompile()
    return new


def _side(graph: fx.GraphModule, solved: Solved) -> fx.GraphModule:
    """The same with the same nodes, two layers called as one."""
    new = fx.GraphModule(graph, copy_graph(graph.graph))
    for target in dict.fromkeys(_target(name) for name in solved):
        new.set_submodule(target, _layer(graph.get_submodule(target), target, solved))
    return new


def _target(name: str) -> str:
    kind, _, rest = name.partition(".")
    return rest.rpartition(".")[0] if kind == "whole" else rest


def _layer(own: nn.Module, target: str, solved: Solved) -> nn.Module:
    if f"reduce.{target}" not in solved:
        new = copy.copy(own)
        new._parameters = dict(own._parameters)
        for name in new._parameters.keys() & {"weight", "bias"}:
            if f"whole.{target}.{name}" in solved:
                setattr(new, name, nn.Parameter(solved[f"whole.{target}.{name}"], requires_grad=False))
        return new
    reduce, expand = solved[f"reduce.{target}"], solved[f"expand.{target}"]
    rank, out = len(reduce), len(expand)
    if isinstance(own, nn.Linear):
        first: nn.Module = nn.Linear(own.in_features, rank, bias=False)
        second: nn.Module = nn.Linear(rank, out)
    else:
        options = (own.kernel_size, own.stride, own.padding, own.dilation)
        first, second = nn.Conv2d(own.in_channels, rank, *options, bias=False), nn.Conv2d(rank, out, 1)
    first.load_state_dict({"weight": reduce})
    second.load_state_dict({"weight": expand.view(second.weight.shape), "bias": solved[f"bias.{target}"]})
    return nn.Sequential(OrderedDict(reduce=first, expand=second)).requires_grad_(False).eval()
