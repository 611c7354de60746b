"""Closed-form reconstruction: the weights that stay make up for the channels that went.

At every layer where channels meet, what the base network would have read (all C channels) is predicted by least squares
from what the smaller network reads (the k that stay, already changed by earlier cuts): ``x ~ M x_kept``. The layer's
new weight is then ``W M``: it answers the smaller network's input as the old one answered the base network's. ``M`` is
``(C, k)``, the same for all kernel positions and output channels, so it needs few images, is solved in a moment, and is
all that a bundle has to store.

A layer that reads several positions at once can do more: its whole kernel is fitted to the base layer's outputs,
starting from ``W M``. That needs more images, and the weight itself is stored; it pays for what serves all classes.

Sums are streamed over the images (:mod:`sinf.subgraph.side_by_side`), and the damping of every solution is found on
images held out of its fit. No gradient is taken.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sinf.subgraph.coupling import Coupling, Slot, positions_of, unfolds
from sinf.subgraph.least_squares import NormalEquations
from sinf.subgraph.side_by_side import SideBySide
from sinf.subgraph.slice import Override

#: What was solved for. By target: how the channels that stay stand for all, (C, k). By a parameter's full name: what
#: stands in its place, its channels already selected.
Solved = dict[str, Tensor]

HELD_OUT = 0.25  # share of a chunk's images that choose the damping
_ENOUGH_ROWS = 32  # for each unknown of a kernel
_SHARE_OF_PLACES = 0.25  # of an image that a kernel is fitted to, where there are more images than needed
_LEAST_IMAGES = 1024
_PATCH_FLOATS = 1 << 24  # of a kernel's patches that are in memory at once


def weight_override(coupling: Coupling, keep: Tensor, solved: Solved) -> Override:
    """What :func:`sinf.subgraph.slice.slice_graph` needs to build the reconstructed network."""

    def override(target: str, name: str, tensor: Tensor) -> Tensor | None:
        whole = solved.get(f"{target}.{name}")
        if whole is not None:
            return whole.to(tensor.dtype)
        mix = solved.get(target)
        if mix is None or name != "weight":
            return None
        out = coupling.writes[target].index(keep)
        rows = tensor.detach().index_select(0, out) if len(out) < len(tensor) else tensor.detach()
        return mixed(rows, mix, coupling.reads[target])

    return override


def mixed(weight: Tensor, mix: Tensor, read: Slot) -> Tensor:
    """``W M`` for a weight ``(O, C, ...)``, or ``(O, C * repeat)`` after a flattening."""
    mix = mix.to(weight.dtype)
    if weight.ndim == 2:
        return (weight.unflatten(1, (-1, read.repeat)).transpose(1, 2) @ mix).transpose(1, 2).flatten(1)
    return (weight.movedim(1, -1) @ mix).movedim(-1, 1).contiguous()


@torch.no_grad()
def reconstruct(
    base: fx.GraphModule,
    coupling: Coupling,
    keep: Tensor,
    smaller: fx.GraphModule,
    inputs: Tensor,
    smaller_inputs: Tensor,
    *,
    kernels: bool = False,
    memory: int | None = None,
    damping: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Solved:
    """Solve for all layers of ``smaller`` that read fewer or changed channels, and put the weights in.

    Both networks run side by side, layer by layer, over ``inputs`` (N, C, H, W); the smaller one's may differ (features
    of a smaller extractor). ``kernels`` fits whole kernels where that can do more than a mix. ``memory`` is what the
    values of both networks may take in bytes (early layers then see fewer images). ``damping``, relative to the mean
    second moment, holds a solution near where it starts (the plain selection of channels, the mix); None finds it by
    validation. Solutions are rounded to float16, as they are stored.
    """
    targets = set(coupling.mixers.values())
    _own_layers(base, smaller, targets)
    solved: Solved = {}
    seen: set[str] = set()
    changed = not torch.equal(smaller_inputs, inputs)
    pair = SideBySide(base, smaller, inputs, smaller_inputs, memory)
    for node, twin in pair:
        target = str(node.target)
        if node.op != "call_module" or target not in targets or target in seen:
            continue
        kept = keep[coupling.reads[target].units]
        if not changed and bool(kept.all()):
            continue
        seen.add(target)
        changed = True
        layer, own = base.get_submodule(target), smaller.get_submodule(target)
        repeat = coupling.reads[target].repeat
        mix = _mix(layer, repeat, kept, pair.inputs_of(node, twin), damping).half()
        rows = coupling.writes[target].index(keep)
        own.weight = _frozen(mixed(layer.weight.detach()[rows], mix.float(), coupling.reads[target]))
        if kernels and _reads_patches(layer, repeat):
            for name, tensor in _kernel(own, rows, list(pair.answers_of(node, twin)), damping).items():
                solved[f"{target}.{name}"] = tensor.half().float()
                setattr(own, name, _frozen(solved[f"{target}.{name}"]))
        else:
            solved[target] = mix.float()
        if progress is not None:
            progress(target)
    return solved


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _folds(count: int, size: int) -> Iterator[tuple[slice, bool]]:
    """A chunk's images, at most ``size`` at once, and whether they are held out."""
    fitting = count - int(HELD_OUT * count)
    for first, last in ((0, fitting), (fitting, count)):
        for start in range(first, last, size):
            yield slice(start, min(start + size, last)), first == fitting


def _mix(
    layer: nn.Module, repeat: int, kept: Tensor, inputs: Iterator[tuple[Tensor, Tensor]], damping: float | None
) -> Tensor:
    """``(C, k)``: the channels of the base network from those that stay."""
    sums = NormalEquations(int(kept.sum()), len(kept))
    for whole, small in inputs:
        for part, held_out in _folds(len(whole), len(whole)):
            x, y = (positions_of(layer, values[part], repeat) for values in (small, whole))
            sums.add(x, y, held_out=held_out)
    return sums.solve(torch.eye(len(kept))[:, kept], damping)


def _reads_patches(layer: nn.Module, repeat: int) -> bool:
    """Whether a fit of the whole kernel can do more than a mix: an output is made of several positions."""
    if isinstance(layer, nn.Linear):
        return repeat > 1
    return unfolds(layer) and layer.weight[0, 0].numel() > 1


def _kernel(
    own: nn.Module, rows: Tensor, answers: list[tuple[Tensor, Tensor]], damping: float | None
) -> dict[str, Tensor]:
    """Weight, and bias if there is one, with which ``own`` comes nearest to the outputs ``rows`` of the base network's
    layer, from what it reads; near its present ones."""
    prior = own.weight.detach().flatten(1)
    if own.bias is not None:
        prior = torch.cat([prior, own.bias.detach()[:, None]], 1)
    new = kernel_equations(own, rows, answers, own.bias is not None).solve(prior, damping)
    weight = new[:, : own.weight[0].numel()].reshape(own.weight.shape)
    return {"weight": weight} if own.bias is None else {"weight": weight, "bias": new[:, -1]}


def kernel_equations(
    own: nn.Module, rows: Tensor, answers: list[tuple[Tensor, Tensor]], constant: bool
) -> NormalEquations:
    """Sums for the whole kernel of ``own`` (a convolution, or a linear layer), with a last unknown for its bias if
    there is to be a ``constant``: outputs ``rows`` of ``answers``' firsts from what the layer reads, their seconds. As
    many images are taken as the unknowns need, and of these as many positions."""
    unknowns = own.weight[0].numel() + constant
    places = _positions(own, answers[0][0][:1]).shape[1]
    needed = max(_LEAST_IMAGES, math.ceil(_ENOUGH_ROWS * unknowns / (_SHARE_OF_PLACES * places)))
    answers = answers[: math.ceil(needed / len(answers[0][0]))]
    enough = math.ceil(_ENOUGH_ROWS * unknowns / sum(len(whole) for whole, _ in answers))  # positions of an image
    sums = NormalEquations(unknowns, len(rows))
    generator = torch.Generator().manual_seed(0)
    for whole, small in answers:
        for part, held_out in _folds(len(whole), max(1, _PATCH_FLOATS // (unknowns * places))):
            y = _positions(own, whole[part])
            x = _patches(own, small[part])
            if enough < places:
                chosen = torch.randperm(places, generator=generator)[:enough]
                x, y = x[:, chosen], y[:, chosen]
            if constant:
                x = F.pad(x, (0, 1), value=1.0)
            sums.add(x.flatten(0, 1), y[..., rows].flatten(0, 1), held_out=held_out)
    return sums


def _positions(layer: nn.Module, y: Tensor) -> Tensor:
    """``(N, positions, O)`` of what a layer made."""
    return y.reshape(len(y), -1, y.shape[-1]) if isinstance(layer, nn.Linear) else y.flatten(2).transpose(1, 2)


def _patches(layer: nn.Module, x: Tensor) -> Tensor:
    """``(N, positions, inputs of one output)``, in the order of the layer's weight."""
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(len(x), -1, x.shape[-1])
    options = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return F.unfold(x, *options).transpose(1, 2)


def _own_layers(base: fx.GraphModule, smaller: fx.GraphModule, targets: set[str]) -> None:
    """Give the smaller network layers of its own where it shares the base network's, so that weights can be
    replaced."""
    for target in targets:
        try:
            shared = base.get_submodule(target)
        except AttributeError:
            continue  # a layer of the other side of the cut
        if smaller.get_submodule(target) is shared:
            own = copy.copy(shared)
            own._parameters = dict(shared._parameters)
            smaller.set_submodule(target, own)
