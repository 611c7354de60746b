"""Closed-form reconstruction: the weights that stay make up for the channels that went.

At every layer where channels meet, what the base network would have read (all C channels) is predicted by least squares
from what the smaller network reads (the k that stay, already changed by earlier cuts): ``x ~ M x_kept``. The layer's
new weight is then ``W M``: it answers the smaller network's input as the old one answered the base network's. ``M`` is
``(C, k)``, the same for all kernel positions and output channels, so it needs few images, is solved in a moment, and is
all that a bundle has to store.

A layer that reads several positions at once can do more: its whole kernel is fitted to the base layer's outputs,
starting from ``W M``. That needs more images, and the weight itself is stored; it pays for what serves all classes.

Sums are streamed over the images (:mod:`sinf.compress.side_by_side`), and the damping of every solution is found on
images held out of its fit. No gradient is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sinf.compress.least_squares import NormalEquations
from sinf.compress.side_by_side import Rows, SideBySide
from sinf.graph.coupling import Coupling, positions_of, unfolds
from sinf.graph.delta import LayerDelta, LayerDeltas, Mix, Weights
from sinf.machine.memory import equation_bytes
from sinf.statistics.patches import Window

HELD_OUT = 0.25  # share of a chunk's images that choose the damping
_ENOUGH_ROWS = 32  # for each unknown of a kernel
_ENOUGH_MIXED, _LEAST_POSITIONS = 128, 64  # for each channel of a mix, and of every image that has so many
_SHARE_OF_POSITIONS = 0.25  # of an image that a kernel is fitted to, where there are more images than needed
_LEAST_IMAGES = 1024
_PATCH_FLOATS = 1 << 24  # of a kernel's patches that are in memory at once
_ROW_FLOATS = 1 << 26  # of what a layer reads, in rows, that is in memory at once


@torch.no_grad()
def reconstruct(
    base: fx.GraphModule,
    coupling: Coupling,
    keep: Tensor,
    smaller: fx.GraphModule,
    inputs: Rows,
    smaller_inputs: Rows,
    *,
    kernels: bool = False,
    memory: int | None = None,
    equations: int | None = None,
    damping: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> LayerDeltas:
    """Solve for all layers of ``smaller`` that read fewer or changed channels, and put the weights in.

    Both networks run side by side, layer by layer, over ``inputs`` (N, C, H, W); the smaller one's may differ (features
    of a smaller extractor). ``kernels`` fits whole kernels where that can do more than a mix. ``memory`` is what the
    values of both networks may take in bytes (early layers then see fewer images), ``equations`` what the sums of one
    layer may: the kernel of a layer that would take more gets a mix alone. ``damping``, relative to the mean
    second moment, holds a solution near where it starts (the plain selection of channels, the mix); None finds it by
    validation. Solutions are rounded to float16, as they are stored.
    """
    targets = set(coupling.mixers.values())
    solved: LayerDeltas = {}
    visited: set[str] = set()
    changed = _differ(inputs, smaller_inputs)
    pair = SideBySide(base, smaller, inputs, smaller_inputs, memory)
    for node, twin in pair:
        target = str(node.target)
        if node.op != "call_module" or target not in targets or target in visited:
            continue
        kept = keep[coupling.reads[target].units]
        if not changed and bool(kept.all()):
            continue
        visited.add(target)
        changed = True
        layer, own = base.get_submodule(target), smaller.get_submodule(target)
        repeat = coupling.reads[target].repeat
        rows = coupling.writes[target].index(keep)
        delta: LayerDelta = Mix(_mix(layer, repeat, kept, list(pair.inputs_of(node, twin)), damping).half().float())
        mixed = delta.apply(layer, own, rows, coupling.reads[target])
        if kernels and _reads_patches(layer, repeat) and fits(mixed, len(rows), equations):
            delta = _kernel(mixed, rows, list(pair.answers_of(node, twin)), damping)
            mixed = delta.apply(layer, own, rows, coupling.reads[target])
        solved[target] = delta
        smaller.set_submodule(target, mixed)
        if progress is not None:
            progress(target)
    return solved


def fits(own: nn.Module, outputs: int, limit: int | None) -> bool:
    """Whether the equations of a layer's whole kernel take at most ``limit`` bytes."""
    return limit is None or equation_bytes(own.weight[0].numel() + 1, outputs) <= limit


def _differ(inputs: Rows, smaller_inputs: Rows) -> bool:
    if inputs is smaller_inputs:
        return False
    tensors = isinstance(inputs, Tensor) and isinstance(smaller_inputs, Tensor)
    return not (tensors and torch.equal(inputs, smaller_inputs))  # type: ignore[arg-type]


def _folds(count: int, size: int) -> Iterator[tuple[slice, bool]]:
    """A chunk's images, at most ``size`` at once, and whether they are held out."""
    fitting = count - int(HELD_OUT * count)
    for first, last in ((0, fitting), (fitting, count)):
        for start in range(first, last, size):
            yield slice(start, min(start + size, last)), first == fitting


def _mix(
    layer: nn.Module, repeat: int, kept: Tensor, inputs: list[tuple[Tensor, Tensor]], damping: float | None
) -> Tensor:
    """``(C, k)``: the channels of the base network from those that stay, from as many positions of every image as these
    unknowns need."""
    sums = NormalEquations(int(kept.sum()), len(kept))
    enough = max(_LEAST_POSITIONS, math.ceil(_ENOUGH_MIXED * len(kept) / sum(len(whole) for whole, _ in inputs)))
    generator = torch.Generator().manual_seed(0)
    for whole, small in inputs:
        positions = 1 if isinstance(layer, nn.Linear) else whole[0, 0].numel()
        chosen = torch.randperm(positions, generator=generator)[:enough] if enough < positions else None
        most = max(1, _ROW_FLOATS // max(1, whole[0].numel() * min(enough, positions) // positions))
        for part, held_out in _folds(len(whole), most):
            x, y = (_rows_of(layer, values[part], repeat, chosen) for values in (small, whole))
            sums.add(x, y, held_out=held_out)
    return sums.solve(torch.eye(len(kept))[:, kept], damping)


def _rows_of(layer: nn.Module, x: Tensor, repeat: int, chosen: Tensor | None) -> Tensor:
    """``(N * positions, C)`` of what a layer reads, or of the ``chosen`` positions of its maps."""
    if chosen is None:
        return positions_of(layer, x, repeat)
    return x.flatten(2).transpose(1, 2)[:, chosen].flatten(0, 1)


def _reads_patches(layer: nn.Module, repeat: int) -> bool:
    """Whether a fit of the whole kernel can do more than a mix: an output is made of several positions."""
    if isinstance(layer, nn.Linear):
        return repeat > 1
    return unfolds(layer) and layer.weight[0, 0].numel() > 1


def _kernel(own: nn.Module, rows: Tensor, answers: list[tuple[Tensor, Tensor]], damping: float | None) -> Weights:
    """Weight, and bias if there is one, with which ``own`` comes nearest to the outputs ``rows`` of the base network's
    layer, from what it reads; near its present ones, rounded to float16."""
    prior = own.weight.detach().flatten(1)
    if own.bias is not None:
        prior = torch.cat([prior, own.bias.detach()[:, None]], 1)
    new = kernel_equations(own, rows, answers, own.bias is not None).solve(prior, damping)
    weight = new[:, : own.weight[0].numel()].reshape(own.weight.shape)
    return Weights(weight.half().float(), None if own.bias is None else new[:, -1].half().float())


def kernel_equations(
    own: nn.Module, rows: Tensor, answers: list[tuple[Tensor, Tensor]], constant: bool
) -> NormalEquations:
    """Sums for the whole kernel of ``own`` (a convolution, or a linear layer), with a last unknown for its bias if
    there is to be a ``constant``: outputs ``rows`` of ``answers``' firsts from what the layer reads, their seconds. As
    many images are taken as the unknowns need, and of these as many positions."""
    unknowns = own.weight[0].numel() + constant
    positions = _positions(own, answers[0][0][:1]).shape[1]
    needed = max(_LEAST_IMAGES, math.ceil(_ENOUGH_ROWS * unknowns / (_SHARE_OF_POSITIONS * positions)))
    answers = answers[: math.ceil(needed / len(answers[0][0]))]
    enough = math.ceil(_ENOUGH_ROWS * unknowns / sum(len(whole) for whole, _ in answers))  # positions of an image
    sums = NormalEquations(unknowns, len(rows))
    generator = torch.Generator().manual_seed(0)
    for whole, small in answers:
        chosen = torch.randperm(positions, generator=generator)[:enough] if enough < positions else None
        for part, held_out in _folds(len(whole), max(1, _PATCH_FLOATS // (unknowns * min(enough, positions)))):
            y = _positions(own, whole[part])
            pieces = (
                _patch_bands(own, small[part], unknowns)
                if chosen is None
                else [(chosen, _patches_at(own, small[part], chosen))]
            )
            for at, x in pieces:
                if constant:
                    x = F.pad(x, (0, 1), value=1.0)
                sums.add(x.flatten(0, 1), y[:, at][..., rows].flatten(0, 1), held_out=held_out)
    return sums


def _patch_bands(layer: nn.Module, x: Tensor, unknowns: int) -> Iterator[tuple[slice, Tensor]]:
    """Positions of outputs and their patches (:func:`_patches`), all at once where these are few, otherwise in bands of
    rows of outputs."""
    if not isinstance(layer, nn.Conv2d):
        patches = _patches(layer, x)
        yield slice(0, patches.shape[1]), patches
        return
    window = Window.of(layer)
    rows, columns = window.outputs(*x.shape[2:])
    step = max(1, _PATCH_FLOATS // (len(x) * unknowns * columns))
    if step >= rows:
        yield slice(0, rows * columns), _patches(layer, x)
        return
    top, bottom, left, right = window.zeros
    padded = F.pad(x, (left, right, top, bottom))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        band = padded[:, :, first * layer.stride[0] : (last - 1) * layer.stride[0] + window.reach[0]]
        patches = F.unfold(band, layer.kernel_size, layer.dilation, 0, layer.stride).transpose(1, 2)
        yield slice(first * columns, last * columns), patches


def _positions(layer: nn.Module, y: Tensor) -> Tensor:
    """``(N, positions, O)`` of what a layer made."""
    return y.reshape(len(y), -1, y.shape[-1]) if isinstance(layer, nn.Linear) else y.flatten(2).transpose(1, 2)


def _patches(layer: nn.Module, x: Tensor) -> Tensor:
    """``(N, positions, inputs of one output)``, in the order of the layer's weight."""
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(len(x), -1, x.shape[-1])
    options = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return F.unfold(x, *options).transpose(1, 2)


def _patches_at(layer: nn.Module, x: Tensor, chosen: Tensor) -> Tensor:
    """:func:`_patches` of the ``chosen`` outputs alone, ``(N, chosen, inputs of one output)``."""
    return Window.of(layer).patches_at(x, chosen) if isinstance(layer, nn.Conv2d) else _patches(layer, x)[:, chosen]
