"""Weights to start a training from: those of the same network, of a shallower one of its family, or of one for other
classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sinf.errors import ModelError
from sinf.models import vgg
from sinf.models.load import BaseModel, load_spec
from sinf.models.state import require_finite

_COUNTER = "num_batches_tracked"
_REMEDY = "take weights of a network of the same family and width that is no deeper"

#: By name of a layer and last part of the name of a tensor, in the order of the network, or of a file.
Layers = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Start:
    """A whole state dict, and which layers of it are random: ``heads`` are among them, which the file has for another
    number of classes."""

    state: dict[str, Tensor]
    random: tuple[str, ...]
    heads: tuple[str, ...]

    def __str__(self) -> str:
        if not self.random:
            return "every layer starts from the weights given"
        of_others = f" (there for other classes: {', '.join(self.heads)})" if self.heads else ""
        return f"at random, since the weights given lack them: {', '.join(self.random)}{of_others}"


def start_from(base: BaseModel, weights: Mapping[str, Tensor], seed: int) -> Start:
    """Every layer of ``weights`` in the layer of that name, of VGGs in the same place of the same block, which has
    another name in a deeper one. What is left over in the network is as in a training from scratch with this seed (of a
    factory: as it made it).

    Raises:
        ModelError: a layer of ``weights`` has no place or other shapes, or there is none.
    """
    require_finite(weights)
    network = base.module if base.spec.is_factory else _made(base, seed)
    state = {key: value.detach().clone() for key, value in network.state_dict().items()}
    own, given = _layers(state), _layers(weights)
    names = _names_in_network(base, state, given, weights)
    heads = [name for name in given if _is_head(own.get(names[name]), given[name], base.spec.classes)]
    for name in heads:
        del given[name]
    wrong = [name for name in given if not _same(own.get(names[name], {}), given[name])]
    if wrong or not given:
        got = "none" if not given else f"{len(wrong)} of {len(given)} do not, the first {wrong[0]}"
        shapes = "" if not wrong else f" ({_shapes(given[wrong[0]])})"
        what = f"layers of weights to start from must have a place in {base.spec.name}, and its shapes"
        raise ModelError(what, got=got + shapes, remedy=_REMEDY)
    for name in given:
        for part, tensor in given[name].items():
            own[names[name]][part].copy_(tensor)
    filled = {names[name] for name in given}
    return Start(state, tuple(name for name in own if name not in filled), tuple(heads))


def _made(base: BaseModel, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_spec(base.spec)


def _layers(state: Mapping[str, Tensor]) -> Layers:
    layers: Layers = {}
    for key, tensor in state.items():
        layer, _, part = key.rpartition(".")
        if part != _COUNTER:
            layers.setdefault(layer, {})[part] = tensor
    return layers


def _names_in_network(
    base: BaseModel, state: Mapping[str, Tensor], given: Layers, weights: Mapping[str, Tensor]
) -> dict[str, str]:
    """By layer of the weights, the name of the network's layer that it would be."""
    if base.spec.name not in vgg.NAMES:
        return {name: name for name in given}
    positions, name_at = vgg.positions(weights), {place: name for name, place in vgg.positions(state).items()}
    return {name: name_at.get(positions.get(name, ""), name if name not in positions else "") for name in given}


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}


def _is_head(own: Mapping[str, Tensor] | None, given: Mapping[str, Tensor], classes: int) -> bool:
    """Whether all that differs is that the network's layer has as many outputs as classes, and the given one others."""
    if own is None or own.keys() != given.keys():
        return False
    pairs = [(own[part].shape, given[part].shape) for part in own]
    return all(a[:1] == (classes,) != b[:1] and a[1:] == b[1:] for a, b in pairs)


def _shapes(layer: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{part} {'x'.join(map(str, tensor.shape))}" for part, tensor in layer.items())
