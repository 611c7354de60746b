"""The two layers in the place of one, in closed form: each on its own, or in sequence.

In sequence, every layer is fitted by least squares to what the base network's layer answers, from what the network so
far makes: a layer that becomes two through channels is fitted whole, and reduced in rank in the metric that chose it;
the second of two separable layers is fitted to what the first makes, a third of a kernel's unknowns at most, so that
the equations are a tenth of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, fx, nn

from sinf.compress.least_squares import NormalEquations
from sinf.compress.low_rank.choose import Rank
from sinf.compress.low_rank.metric import Metric
from sinf.compress.reconstruct import fits, kernel_equations
from sinf.compress.side_by_side import Rows, SideBySide
from sinf.graph.apply import replaced
from sinf.graph.coupling import Coupling
from sinf.graph.delta import Factors, LayerDelta, LayerDeltas, Weights, can_factor, groups_of, with_weights
from sinf.statistics import KernelRows, OutputMoments, Statistics


@torch.no_grad()
def factor(
    graph: fx.GraphModule, ranks: dict[str, Rank], statistics: Statistics, metrics: dict[str, Metric]
) -> LayerDeltas:
    """Every layer on its own, from what the network reads and writes as it is."""
    solved: LayerDeltas = {}
    for target, rank in ranks.items():
        own, site, metric = graph.get_submodule(target), statistics[target], metrics[target]
        weight = own.weight.double()
        bias = weight.new_zeros(len(weight)) if own.bias is None else own.bias.double()
        if rank.separable:
            rows_read = site[KernelRows]
            expand, reduce = metric.separable(weight, rows_read.covariance(), rank.channels)
            mean = rows_read.total / rows_read.count
            lost = weight.sum(2).flatten(1) @ mean - expand.sum(2) @ (reduce @ mean)
            solved[target] = _separable(own, expand, reduce, bias + lost)
        else:
            solved[target] = _together(
                [
                    _of_group(own, group, weight, bias, site[OutputMoments], rank, metric)
                    for group in range(metric.groups)
                ]
            )
    return solved


def _of_group(
    own: nn.Module, group: int, weight: Tensor, bias: Tensor, written: OutputMoments, rank: Rank, metric: Metric
) -> Factors:
    """Of one group, through its share of the channels; all of a layer that has no groups."""
    rows = metric.rows_of(group)
    weight, bias, mean = weight[rows], bias[rows], written.mean[rows]
    expand, reduce = metric.channels(written.covariance()[rows, rows], rank.channels // metric.groups, group)
    bias = mean - expand @ (reduce @ (mean - bias))
    return _channels(own, expand, reduce @ weight.flatten(1), bias)


@torch.no_grad()
def reconstruct_ranks(
    graph: fx.GraphModule,
    coupling: Coupling,
    start: LayerDeltas,
    ranks: dict[str, Rank],
    metrics: dict[str, Metric],
    inputs: Rows,
    smaller_inputs: Rows | None = None,
    *,
    memory: int | None = None,
    equations: int | None = None,
    skip: Collection[str] = (),
    progress: Callable[[str], None] | None = None,
) -> LayerDeltas:
    """Solve again for all layers from the first that became two, each from what the others make by then.

    ``start`` is what :func:`factor` found. ``smaller_inputs`` are read in the place of ``inputs`` by what is solved;
    then all layers are. ``memory`` and ``equations`` are those of :func:`sinf.compress.reconstruct.reconstruct`: a
    layer whose equations would take more stays as it was found. Those of ``skip`` are not solved for.
    """
    keep, solved = coupling.keep_all(), LayerDeltas()
    smaller = replaced(graph, coupling, keep, start)
    targets, visited = set(coupling.mixers.values()), set[str]()
    changed = smaller_inputs is not None
    pair = SideBySide(graph, smaller, inputs, inputs if smaller_inputs is None else smaller_inputs, memory)
    for node, twin in pair:
        target = str(node.target)
        changed = changed or target in start
        if node.op != "call_module" or target not in targets or target in visited or not changed:
            continue
        visited.add(target)
        if target in skip:
            solved |= {target: start[target]} if target in start else {}
            continue
        own, rank = graph.get_submodule(target), ranks.get(target)
        answers = pair.answers_of(node, twin)
        if rank is not None and rank.separable:
            delta: LayerDelta | None = _fit_second(smaller.get_submodule(target), answers)
        elif can_factor(own) and not fits(own, len(own.weight), equations):
            delta = start.get(target)
        elif can_factor(own):
            constant = own.bias is not None or rank is not None
            delta = _fit(own, list(answers), constant, rank, metrics.get(target))
        else:
            delta = None
        if delta is not None:
            rows, read = coupling.writes[target].index(keep), coupling.reads[target]
            smaller.set_submodule(target, delta.apply(own, own, rows, read))
            solved[target] = delta
        if progress is not None:
            progress(target)
    return solved


def _fit(
    own: nn.Module, answers: list[tuple[Tensor, Tensor]], constant: bool, rank: Rank | None, metric: Metric | None
) -> LayerDelta:
    """What stands in the place of ``own``, at full rank or less, from what it should answer and what it reads; group by
    group where it has some."""
    groups, parts = groups_of(own), []
    between = None if rank is None else rank.channels // groups
    for group in range(groups):
        one, mine = (own, answers) if groups == 1 else _one_group(own, answers, group)
        sums = kernel_equations(one, torch.arange(len(one.weight)), mine, constant)
        parts.append(_fit_group(one, sums, constant, between, metric, group))
    return _together(parts)


def _one_group(
    own: nn.Module, answers: list[tuple[Tensor, Tensor]], group: int
) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """One group of a convolution as a layer, and what of the answers and of what is read is the group's."""
    out, into = len(own.weight) // groups_of(own), own.weight.shape[1]
    rows, reads = slice(group * out, (group + 1) * out), slice(group * into, (group + 1) * into)
    bias = {} if own.bias is None else {"bias": own.bias[rows]}
    one = with_weights(own, weight=own.weight[rows], **bias)
    vars(one).update(groups=1, in_channels=into, out_channels=out)
    return one, [(whole[:, rows], small[:, reads]) for whole, small in answers]


def _together(parts: list[LayerDelta]) -> LayerDelta:
    """One layer of all groups from what stands for each."""
    first, tensors = parts[0], [part.tensors() for part in parts]
    if len(parts) == 1:
        return first
    return type(first)(**{name: torch.cat([each[name] for each in tensors]) for name in tensors[0]})


def _fit_group(
    own: nn.Module, sums: NormalEquations, constant: bool, between: int | None, metric: Metric | None, group: int
) -> LayerDelta:
    """The same of a layer without groups, from the sums of its kernel, with so many channels ``between`` two."""
    prior = own.weight.detach().flatten(1)
    if constant:
        bias = prior.new_zeros(len(prior)) if own.bias is None else own.bias.detach()
        prior = torch.cat([prior, bias[:, None]], 1)
    fit = sums.solve(prior).double()
    weight = fit[:, : own.weight[0].numel()]
    if between is None or metric is None:
        return Weights(weight.reshape(own.weight.shape).float(), fit[:, -1].float() if constant else None)
    moments = sums.moments_of(torch.block_diag(weight, weight.new_ones(1, 1)))  # of what it writes, and the constant
    before = moments[-1, :-1]
    expand, reduce = metric.channels(moments[:-1, :-1] - torch.outer(before, before), between, group)
    return _channels(own, expand, reduce @ weight, before + fit[:, -1] - expand @ (reduce @ before))


def _fit_second(pair: nn.Module, answers: Iterator[tuple[Tensor, Tensor]]) -> Factors:
    """The second of two separable layers, from what the first makes."""
    first, second = pair.get_submodule("reduce"), pair.get_submodule("expand")
    reduced = [(whole, first(small)) for whole, small in answers]
    prior = torch.cat([second.weight.flatten(1), second.bias[:, None]], 1)
    fit = kernel_equations(second, torch.arange(len(second.weight)), reduced, True).solve(prior)
    return _factors(first.weight, fit[:, :-1].view_as(second.weight), fit[:, -1])


def _channels(own: nn.Module, expand: Tensor, reduce: Tensor, bias: Tensor) -> Factors:
    """``(O, r)``, ``(r, C kh kw)`` and ``(O,)``."""
    ones = own.weight.ndim - 2
    expand, reduce = _mixed(expand, reduce)
    return _factors(reduce.reshape(-1, *own.weight.shape[1:]), expand[(..., *[None] * ones)], bias)


def _separable(own: nn.Module, expand: Tensor, reduce: Tensor, bias: Tensor) -> Factors:
    """``(O, r, kh)``, ``(r, C kw)`` and ``(O,)``."""
    _, channels, _, columns = own.weight.shape
    expand, reduce = _mixed(expand, reduce)
    return _factors(reduce.view(-1, channels, 1, columns), expand[..., None], bias)


def _mixed(expand: Tensor, reduce: Tensor) -> tuple[Tensor, Tensor]:
    """``(O, r, ...), (r, N)`` in another basis of what passes between: that of the discrete Hartley transform, whose
    matrix is orthogonal and symmetric.

    Any basis of what passes between the two layers gives the same answers. Of the directions that were chosen the first
    vary most by far, and in 8-bit integers, with one range for all, little would be left of the others: mixed, all
    channels vary equally.
    """
    size = len(reduce)
    angles = 2 * torch.pi / size * torch.outer(*[torch.arange(size, dtype=torch.float64)] * 2)
    transform = (angles.cos() + angles.sin()) / size**0.5
    return torch.einsum("or...,rs->os...", expand, transform), transform @ reduce


def _factors(reduce: Tensor, expand: Tensor, bias: Tensor) -> Factors:
    return Factors(*(tensor.detach().float().contiguous() for tensor in (reduce, expand, bias)))
