"""Weights to start a training from: those of the same network, of a shallower one of its family, or of one for other
classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sinf.errors import ModelError
from sinf.models.load import BaseModel, load_spec
from sinf.models.state import require_finite

_COUNTER = "num_batches_tracked"
_REMEDY = "take weights of a network of the same family and width that is no deeper"

#: Layers by name: tensors by the last part of their names.
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
    """Every layer of ``weights`` where the network has it: under its own name if all names fit, otherwise in order,
    each in the first layer of its shapes after the one before. What is left over in the network is as in a training
    from scratch with this seed (of a factory: as it made it).

    Raises:
        ModelError: a layer of ``weights`` has no place, or none has one.
    """
    require_finite(weights)
    network = base.module if base.spec.is_factory else _made(base, seed)
    state = {key: value.detach().clone() for key, value in network.state_dict().items()}
    own, given = _layers(state), _layers(weights)
    heads = [name for name in given if _is_head(own.get(name), given[name], base.spec.classes)]
    for name in heads:
        del given[name]
    if not given:
        raise ModelError("weights to start from must have layers of the network", got="none", remedy=_REMEDY)
    places = dict(_pairs(own, given))
    homeless = [name for name in given if name not in places]
    if homeless:
        first = homeless[0]
        got = f"no place for {len(homeless)} of {len(given)} layers, the first {first} ({_shapes(given[first])})"
        raise ModelError(f"weights to start from must fit into {base.spec.name}", got=got, remedy=_REMEDY)
    for name, place in places.items():
        for part, tensor in given[name].items():
            own[place][part].copy_(tensor)
    filled = set(places.values())
    return Start(state, tuple(name for name in own if name not in filled), tuple(heads))


def _made(base: BaseModel, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_spec(base.spec)


def _layers(state: Mapping[str, Tensor]) -> Layers:
    """In the order of their names, numbers by value: a file has lost the order of the network."""
    found: Layers = {}
    for key in sorted(state, key=lambda key: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", key)]):
        layer, _, part = key.rpartition(".")
        if part != _COUNTER:
            found.setdefault(layer, {})[part] = state[key]
    return found


def _pairs(own: Layers, given: Layers) -> Iterator[tuple[str, str]]:
    """Layers of ``given``, and where they go; those after one without a place are left out."""
    if all(name in own and _same(own[name], layer) for name, layer in given.items()):
        yield from zip(given, given, strict=True)
        return
    rest = iter(own)
    for name, layer in given.items():
        place = next((each for each in rest if _same(own[each], layer)), None)
        if place is None:
            return
        yield name, place


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
