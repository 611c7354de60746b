"""Where training starts: saliencies in the order of the channels' importance, and the base model's answers.

With excite's weights at 0 a saliency is its bias, the same for every input. Were all biases 1, as at the start of the
paper's training of 400 epochs, a threshold would fall among equals, and noise would decide which channels go. So biases
spread around 1 by rank of the filters' L1 norm, and whatever reads a channel is divided by its bias: the thresholds
first take what a static network would lose, and answers are those of the base model as long as none is set.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from sinf.dynamic.network import GatedNetwork, positions_of

_LEAST, _MOST = 0.5, 1.5


@torch.no_grad()
def start_by_importance(network: GatedNetwork) -> None:
    """Change the saliencies that gates begin with and the weights of the layers that read what they decide.

    Sites are left as they are where a layer's weights cannot take up the change: a reader that is neither a full
    convolution nor linear, a norm without parameters, or weights that two layers share.
    """
    owners = Counter(id(p) for _, p in network.model.named_parameters(remove_duplicate=False))
    importances = [network.importance(index) for index in range(len(network.sites))]  # all before any weight changes
    for index, (site, importance) in enumerate(zip(network.sites, importances, strict=True)):
        gate = network.gate(index)
        if (level := gate.level()) is None:
            continue
        levels = spread(importance)
        made = _branch_end(network, index) if site.branch else _readers(network, index)
        if not gate.binary:  # whose masks are 1, whatever the saliency
            if made is None or any(owners[id(tensor)] > 1 for tensor, _, _ in made):
                continue
            for tensor, dim, entries in made:
                masked = entries >= 0
                factor = torch.where(masked, 1 / levels[entries.clamp(min=0)], 1.0).to(tensor)
                tensor.mul_(factor.view(-1, *([1] * (tensor.ndim - dim - 1))))
        level.copy_(levels)


def spread(importance: Tensor) -> Tensor:
    """``(U,)`` -> ``(U,)``: from 0.5 to 1.5 by rank, 1 where there is but one."""
    if len(importance) < 2:
        return torch.ones_like(importance)
    ranks = importance.argsort(stable=True).argsort().to(importance.dtype)
    return _LEAST + (_MOST - _LEAST) * ranks / (len(importance) - 1)


#: A parameter, its dimension of channels, and the entry of the mask that each channel is in (-1: none).
Scaled = tuple[Tensor, int, Tensor]


def _readers(network: GatedNetwork, index: int) -> list[Scaled] | None:
    scaled: list[Scaled] = []
    for target in network.sites[index].consumers:
        reader, slot = network.model.get_submodule(target), network.coupling.reads[target]
        if not isinstance(reader, (nn.Conv2d, nn.Linear)) or getattr(reader, "groups", 1) > 1:
            return None
        where, entries = positions_of(slot.units, network.sites[index], network.blocks[index])
        whole = entries if where is None else torch.full((len(slot.units),), -1).index_copy(0, where, entries)
        scaled.append((reader.weight, 1, whole.repeat_interleave(slot.repeat)))
    return scaled


def _branch_end(network: GatedNetwork, index: int) -> list[Scaled] | None:
    """The norm after the last convolution of a residual branch, or that convolution."""
    site = network.sites[index]
    layers = [network.model.get_submodule(name) for name in site.branch]
    last = next(layer for layer in reversed(layers) if not isinstance(layer, nn.Identity))
    entries = positions_of(network.coupling.writes[site.name].units, site, network.blocks[index])[1]
    tensors = [last.weight, last.bias]
    if isinstance(last, nn.BatchNorm2d) and last.weight is None:
        return None
    return [(tensor, 0, entries) for tensor in tensors if tensor is not None]
