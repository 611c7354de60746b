"""Which channels must go together.

:mod:`sinf.graph.channels` follows the channels through a traced model and tells which of them are one. What is
united at the end is a *unit*, the smallest thing that can be removed, and units that meet in one tensor form a
*coupled group*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from sinf.errors import CutError
from sinf.graph.channels import IS_INPUT, IS_OUTPUT, Channels, Propagation


@dataclass(frozen=True)
class Slot:
    """A dimension of a layer or parameter and the unit of each of its channels; ``repeat`` as in :class:`Channels`."""

    dim: int
    units: Tensor
    repeat: int = 1

    def index(self, keep: Tensor) -> Tensor:
        """Positions along the dimension that stay when ``keep`` (units,) bool does."""
        return torch.nonzero(keep[self.units].repeat_interleave(self.repeat)).flatten()


@dataclass(frozen=True)
class CoupledGroup:
    """Channels of several layers that must be removed together. ``units`` (size,) are numbers of units."""

    name: str
    units: Tensor
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    blocked: str | None

    @property
    def size(self) -> int:
        return len(self.units)


@dataclass
class Coupling:
    """The result. ``reads`` and ``writes`` hold, by target, what layers read and write; ``mixers`` are the nodes of
    full convolutions and linear layers in graph order, where all channels meet, ``grouped`` those of convolutions in
    groups of several outputs, of which whole groups go or none."""

    units: int
    groups: dict[str, CoupledGroup]
    reads: dict[str, Slot]
    writes: dict[str, Slot]
    values: dict[str, Slot]
    mixers: dict[str, str] = field(default_factory=dict)
    grouped: dict[str, str] = field(default_factory=dict)
    input: Slot | None = None
    output: Slot | None = None

    def with_grouped(self) -> Coupling:
        """The same, where convolutions in groups are sites as well."""
        return replace(self, mixers=self.mixers | self.grouped) if self.grouped else self

    def keep_all(self) -> Tensor:
        return torch.ones(self.units, dtype=torch.bool)

    def free_groups(self) -> list[CoupledGroup]:
        """Groups that may lose channels, in graph order; an error names what blocks them when there is none."""
        free = [group for group in self.groups.values() if group.blocked is None and group.size > 1]
        if not free:
            reasons = list(dict.fromkeys(g.blocked for g in self.groups.values() if g.blocked))
            inner = [reason for reason in reasons if reason not in (IS_INPUT, IS_OUTPUT)]
            single = [group.name for group in self.groups.values() if group.blocked is None]
            if single:  # these would be free, had they more than one unit
                more = f" and {len(single) - 3} more" if single[3:] else ""
                inner.append(f"the last unit of a layer, which must stay ({', '.join(single[:3])}{more})")
            reasons = inner or reasons
            raise CutError(
                "no channels of this network can be removed",
                got="blocked by " + "; ".join(reasons[:4]) + (f"; and {len(reasons) - 4} more" if reasons[4:] else ""),
                remedy="cut elsewhere, or replace the operation that stands in the way",
            )
        return free


def couple(graph: fx.GraphModule, *, free_input: bool = False, free_output: bool = False) -> Coupling:
    """Find the coupled groups of a traced model or a part of one.

    ``free_input`` and ``free_output`` say that the channels of the graph's input or output may be removed too (the
    features between extractor and tail; the classes of a head).
    """
    return _coupling(Propagation(graph).run(free_input, free_output))


def _coupling(propagation: Propagation) -> Coupling:
    """Number the sets of united atoms, and join those that meet in a produced tensor."""
    roots = [propagation.root(atom) for atom in range(len(propagation.parent))]
    numbers = {root: number for number, root in enumerate(dict.fromkeys(roots))}
    unit_of = torch.tensor([numbers[root] for root in roots], dtype=torch.int64)

    def slot(value: Channels) -> Slot:
        return Slot(value.dim, unit_of[value.atoms], value.repeat)

    reasons: dict[int, str] = {}
    for atom, reason in propagation.blocked.items():
        reasons.setdefault(int(unit_of[atom]), reason)
    reads = {target: slot(value) for target, value in propagation.reads.items()}
    writes = {target: slot(value) for target, value in propagation.writes.items()}
    coupling = Coupling(
        units=len(numbers),
        groups={},
        reads=reads,
        writes=writes,
        values={node.name: slot(value) for node, value in propagation.values.items() if value is not None},
        mixers=propagation.mixers,
        grouped=propagation.grouped,
        input=None if propagation.source is None else slot(propagation.source),
        output=None if propagation.sink is None else slot(propagation.sink),
    )
    producers = {t: s for t, s in writes.items() if t in reads}
    for name, units in _join(len(numbers), _named(coupling.input, producers)):
        members = set(units.tolist())
        coupling.groups[name] = CoupledGroup(
            name=name,
            units=units,
            producers=tuple(t for t, s in producers.items() if not members.isdisjoint(s.units.tolist())),
            consumers=tuple(t for t in propagation.mixers.values() if not members.isdisjoint(reads[t].units.tolist())),
            blocked=next((reasons[u] for u in units.tolist() if u in reasons), None),
        )
    return coupling


def _named(source: Slot | None, producers: dict[str, Slot]) -> Iterable[tuple[str, Tensor]]:
    if source is not None:
        yield "input", source.units
    for target, slot in producers.items():
        yield target, slot.units


def _join(count: int, tensors: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Units that meet in one produced tensor form a group, named after the first tensor."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    order: list[tuple[str, list[int]]] = []
    for name, units in tensors:
        order.append((name, units.tolist()))
        for unit in order[-1][1][1:]:
            parent[root(unit)] = root(order[-1][1][0])
    groups: dict[int, tuple[str, dict[int, None]]] = {}
    for name, members in order:
        groups.setdefault(root(members[0]), (name, {}))[1].update(dict.fromkeys(members))
    return [(name, torch.tensor(list(members), dtype=torch.int64)) for name, members in groups.values()]


__all__ = ["Channels", "CoupledGroup", "Coupling", "Slot", "couple"]


def positions_of(module: nn.Module, x: Tensor, repeat: int) -> Tensor:
    """What a layer reads as ``(images * positions, C)``: a flattened map is taken apart again."""
    if isinstance(module, nn.Linear):
        return x.unflatten(-1, (-1, repeat)).transpose(-1, -2).flatten(0, -2) if repeat > 1 else x.flatten(0, -2)
    return x.movedim(1, -1).flatten(0, -2)


def unfolds(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether ``F.unfold`` gives what the layer reads: a convolution in two dimensions, padded by zeros."""
    return isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str)
