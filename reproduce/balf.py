"""Low rank by the code of BALF's authors (arXiv 2509.25136), on a processor: reproduce/peers.py measures it.

The steps are those of their ``to_low_rank_activation_aware_auto`` with its budget of MACs; what computes is theirs.
Each layer is written as two by the singular values of its weight in the metric of what it reads; ranks are chosen
together, so that the shares of the layers' energies that stay add up to the most within the budget.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

CODE = "davidgonmar/BALF"
PART = "lib/factorization/factorize.py, by MACs"
FILES = ("lib/factorization/layers.py", "lib/factorization/factorize.py")
_USED = (
    "LowRankLinear", "LowRankConv2d", "maximize_energy", "generate_cost_flops_linear", "generate_cost_flops_conv2d",
    "reshape_linear", "reshape_conv2d", "crop_svd", "get_factors", "should_do_low_rank", "obtain_whitening_matrix",
    "factorize_linear_whitened", "factorize_conv2d_whitened", "_process_act",
)  # fmt: skip


def on_processor(definitions: Callable[..., dict[str, Any]], checkout: Path) -> SimpleNamespace:
    """Their functions and layers, taken from their files by ``definitions`` of peers.py."""
    space: dict[str, Any] = {"nn": nn, "Callable": Callable}
    for file in FILES:
        space = definitions(checkout / file, *_USED, **space, without=(".cuda()", _CHOICE))
    return SimpleNamespace(**{name: space[name] for name in _USED})


_CHOICE = 'torch.backends.cuda.preferred_linalg_library("magma")'  # of a GPU's library


@torch.no_grad()
def factored(
    theirs: SimpleNamespace, model: nn.Module, batches: Iterable[Tensor], budgets: Sequence[float]
) -> Iterator[nn.Module]:
    """The model within each budget, a share of its MACs, from normalised images (B, C, H, W)."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    sums, shapes = _observed(theirs, model, layers, batches)
    found, energies, costs = {}, [], []
    for name, layer in layers.items():
        linear, shape = isinstance(layer, nn.Linear), layer.weight.shape
        weight = theirs.reshape_linear(layer.weight) if linear else theirs.reshape_conv2d(layer.weight, layer.groups)
        white, inverse = theirs.obtain_whitening_matrix(sums.pop(name), layer)
        factors = torch.linalg.svd(inverse @ weight, full_matrices=False)
        found[name] = white, inverse, factors
        energy = factors[1].square().cumsum(1).sum(0)
        energies.append(energy / energy[-1])
        cost = theirs.generate_cost_flops_linear if linear else theirs.generate_cost_flops_conv2d
        costs.append(cost(shape, shapes[name], layer))
    whole = sum(int(cost[-1]) for cost in costs)
    for budget in budgets:
        smaller = copy.deepcopy(model)
        ranks = theirs.maximize_energy(energies, costs, whole * budget)
        for (name, layer), rank in zip(layers.items(), ranks, strict=True):
            white, inverse, factors = found[name]
            linear = isinstance(layer, nn.Linear)
            write = theirs.factorize_linear_whitened if linear else theirs.factorize_conv2d_whitened
            smaller.set_submodule(name, write(layer, lambda *_, rank=rank: rank, white, inverse, factors=factors))
        yield smaller.eval()


def _observed(
    theirs: SimpleNamespace, model: nn.Module, layers: dict[str, nn.Module], batches: Iterable[Tensor]
) -> tuple[dict[str, Tensor], dict[str, torch.Size]]:
    """Mean products (G, D, D) of what each layer reads at a position, and the shapes that they make of a batch."""
    sums: dict[str, Tensor] = {}
    counts, shapes = dict.fromkeys(layers, 0), {}

    def observe(name: str, layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        read = theirs._process_act(given[0], layer)  # (G, positions, D)
        if name not in sums:
            sums[name] = read.new_zeros(len(read), read.shape[2], read.shape[2])
        sums[name].baddbmm_(read.transpose(1, 2), read)
        counts[name] += read.shape[1]
        shapes.setdefault(name, made.shape)

    handles = [layer.register_forward_hook(partial(observe, name)) for name, layer in layers.items()]
    for x in batches:
        model(x)
    for handle in handles:
        handle.remove()
    return {name: products / counts[name] for name, products in sums.items()}, shapes
