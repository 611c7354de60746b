"""A network with gates on it: the model's own code runs as it is, hooks apply gates and masks, the model is not edited.

with gates attached:  x -> conv -> norm, activation, ... -> (mask * .) -> next conv, or a residual sum
                      |                                        ^
                      +------------> gate --> saliency, mask --+
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks

from sinf.dynamic.branches import separate
from sinf.dynamic.cost import macs_of
from sinf.dynamic.gates import Gate
from sinf.dynamic.methods import make_gate
from sinf.dynamic.recipe import GateConfig as GateConfig
from sinf.dynamic.sites import Site, Sites, choose, find_sites
from sinf.graph.cost import MacCount
from sinf.graph.coupling import Coupling, couple
from sinf.graph.trace import trace
from sinf.models import BaseModel


@dataclass
class Observed:
    """What the gates did to one batch, each a list with an entry a site, in order: saliencies (B, U), masks (B, U),
    and, where asked for, pooled features before the mask (B, C)."""

    saliencies: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)


class GatedNetwork(nn.Module):
    """``(B, C, H, W) -> (B, classes)`` logits. Make it with :func:`attach`.

    ``model`` is the user's module with hooks on some of its layers, ``gates`` one gate a site. With ``enabled`` false
    it is the base model again; :meth:`detach` takes the hooks away for good.
    """

    def __init__(
        self, model: nn.Module, graph: fx.GraphModule, coupling: Coupling, sites: list[Site], config: GateConfig
    ) -> None:
        super().__init__()
        self.model = model
        self._graph = [graph]  # in a list, so that its tensors are not registered twice
        self.coupling, self.sites, self.config = coupling, sites, config
        self.enabled, self.wants_features, self.detach_features = True, False, True
        self.blocks = [_blocks(site.size, config.block) for site in sites]
        self.gates = nn.ModuleList(
            make_gate(
                config.kind,
                site.channels,
                self.importance(index),
                squeeze=config.squeeze,
                mask=config.mask,
            )
            for index, site in enumerate(sites)
        )
        self._count = MacCount(graph, coupling)
        self.base_macs = self._count.total()
        self._observed = Observed()
        self._masks: dict[int, Tensor] = {}  # of the batch that is running
        self._remaking: dict[str, saved_tensors_hooks] = {}  # by layer, while it runs
        self._handles = self._hook()

    # ---- running

    def forward(self, images: Tensor) -> Tensor:
        try:
            return self.model(images)
        finally:
            self._masks.clear()

    def observe(self, images: Tensor) -> tuple[Tensor, Observed]:
        """Logits, and what the gates did."""
        count = len(self.sites)
        self._observed = Observed([torch.empty(0)] * count, [torch.empty(0)] * count, [torch.empty(0)] * count)
        logits = self(images)
        observed, self._observed = self._observed, Observed()
        return logits, observed

    @property
    def graph(self) -> fx.GraphModule:
        """The base model, traced; it shares its layers with ``model``."""
        return self._graph[0]

    def gate(self, index: int) -> Gate:
        return self.gates[index]

    def importance(self, index: int) -> Tensor:
        """``(U,)`` of a site: mean L1 norm of the filters of every block (Li et al., ICLR 2017)."""
        site, blocks = self.sites[index], self.blocks[index]
        norms = self.model.get_submodule(site.name).weight.detach().abs().flatten(1).sum(1).float()
        place = blocks[_lookup(site.units)[self.coupling.writes[site.name].units]]
        sums = torch.zeros(int(blocks.max()) + 1).index_add(0, place, norms.cpu())
        return sums / torch.bincount(place, minlength=len(sums))

    def keep(self, observed: Observed) -> Tensor:
        """``(B, units)`` bool: what stays of the whole network for every input, in the coupling's units."""
        keep = self.coupling.keep_all().repeat(len(observed.masks[0]), 1)
        for index, site in enumerate(self.sites):
            kept = self.gate(index).keep(observed.saliencies[index].detach())
            keep[:, site.units] = kept[:, self.blocks[index]].cpu()
        return keep

    def macs_of(self, keep: Tensor) -> Tensor:
        """``(B,)`` float64 MACs of inputs that keep these units (B, units), gates included."""
        return macs_of(self._count, keep) + self.gate_macs()

    def gate_macs(self) -> int:
        """MACs of all gates for one input; means over positions are sums and count nothing."""
        return sum(self.gate(index).macs() for index in range(len(self.sites)))

    def gate_parameters(self) -> list[nn.Parameter]:
        return list(self.gates.parameters())

    def detach(self) -> nn.Module:
        """The base model without any hook."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return self.model

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """While inside, it is the base model in eval mode, and so is what shares its layers."""
        enabled, training = self.enabled, self.training
        self.enabled = False
        self.eval()
        try:
            yield
        finally:
            self.enabled = enabled
            self.train(training)

    # ---- hooks

    def _hook(self) -> list[Any]:
        own = {site.name: index for index, site in enumerate(self.sites)}
        readers: dict[str, list[int]] = {}
        last: dict[int, str] = {}
        for index, site in enumerate(self.sites):
            for target in site.consumers:
                readers.setdefault(target, []).append(index)
                last[index] = target
        handles = []
        for target in {*own, *readers}:
            read = readers.get(target, [])
            observed = [index for index in read if last[index] == target]
            hook = self._on_input(target, read, observed, own.get(target))
            handles.append(self.model.get_submodule(target).register_forward_pre_hook(hook))
            if read:
                after = self._after(target)
                handles.append(self.model.get_submodule(target).register_forward_hook(after, always_call=True))
        for index, site in enumerate(self.sites):
            if site.branch:
                end = self.model.get_submodule(site.branch[-1])
                handles.append(end.register_forward_hook(self._on_branch(index)))
        return handles

    def _on_branch(self, index: int) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
        """After the last layer of a residual branch: mask what it made."""
        entries = self.blocks[index]

        def hook(module: nn.Module, args: tuple, made: Tensor) -> Tensor | None:
            if not self.enabled:
                return None
            if self.wants_features and self._observed.features:
                self._observed.features[index] = _pooled(module, made, None, 1, self.detach_features)
            return made * self._masks[index][:, entries, None, None].to(made.dtype)

        return hook

    def _on_input(
        self, target: str, read: list[int], observed: list[int], own: int | None
    ) -> Callable[[nn.Module, tuple], tuple | None]:
        """Before a layer runs: mask what it reads, then let its own gate look at that."""
        slot = self.coupling.reads[target]
        positions = [positions_of(slot.units, self.sites[index], self.blocks[index]) for index in read]

        def hook(module: nn.Module, args: tuple) -> tuple | None:
            if not self.enabled:
                return None
            x, factor = args[0], None
            for index, (where, unit) in zip(read, positions, strict=True):
                if index in observed and self.wants_features and self._observed.features:
                    self._observed.features[index] = _pooled(module, x, where, slot.repeat, self.detach_features)
                mask = self._masks[index]
                own_factor = (
                    mask[:, unit]
                    if where is None
                    else mask.new_ones(len(x), len(slot.units)).index_copy(1, where, mask[:, unit])
                )
                factor = own_factor if factor is None else factor * own_factor
            if factor is not None:  # once, however many sites are read
                shaped = _shaped(module, factor, slot.repeat, x).to(x.dtype)
                before, x = x, x * shaped
                if x.requires_grad:
                    self._remaking[target] = made_again(before.detach(), shaped.detach(), x)
                    self._remaking[target].__enter__()
            if own is not None:
                gate = self.gate(own)
                with torch.autocast(x.device.type, enabled=False):  # thresholds want all digits of a saliency
                    saliency = gate(x)
                self._masks[own] = mask = gate.mask(saliency)
                if self._observed.saliencies:
                    self._observed.saliencies[own], self._observed.masks[own] = saliency, mask
            return (x, *args[1:])

        return hook

    def _after(self, target: str) -> Callable[[nn.Module, tuple, Any], None]:
        def hook(module: nn.Module, args: tuple, made: Any) -> None:
            if target in self._remaking:
                self._remaking.pop(target).__exit__()

        return hook


def attach(base: BaseModel, config: GateConfig | None = None) -> GatedNetwork:
    """Put gates on a model: one call, and the model's code is not touched.

    Raises:
        CutError: the model cannot be traced, or none of its convolutions can be gated; the message says why.
        ConfigError: a site is named that cannot be gated.
    """
    config = config or GateConfig()
    graph = trace(base.module, base.spec.preprocessing)
    coupling, possible = all_sites(graph)
    if not config.method.around_sums:
        possible = Sites([site for site in possible.free if not site.branch], possible.blocked)
    sites = choose(possible, None if config.sites is None else list(config.sites))
    return GatedNetwork(base.module, graph, coupling, sites, config)


def all_sites(graph: fx.GraphModule) -> tuple[Coupling, Sites]:
    """Where gates can stand in a traced model, in graph order, and the coupling that has units for each."""
    coupling = couple(graph, free_output=True)
    inner = find_sites(graph, coupling)
    coupling, outer = separate(graph, coupling, inner.free)
    order = [str(node.target) for node in graph.graph.nodes]
    free = sorted([*inner.free, *outer], key=lambda site: order.index(site.name))
    names = {site.name for site in outer}
    return coupling, Sites(free, {name: reason for name, reason in inner.blocked.items() if name not in names})


def made_again(x: Tensor, factor: Tensor, product: Tensor) -> saved_tensors_hooks:
    """While inside, ``product`` is not kept for the backward pass, but multiplied again from ``x``, which is kept
    anyway, and ``factor``: a map less for every layer that reads masked channels."""

    mark = product.data_ptr(), product.numel(), product.dtype  # not the product itself, which is to be forgotten

    def keep(tensor: Tensor) -> Tensor | torch.Size:
        return tensor.shape if (tensor.data_ptr(), tensor.numel(), tensor.dtype) == mark else tensor

    def give(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else (x * factor).reshape(kept)

    return saved_tensors_hooks(keep, give)


def _blocks(size: int, block: int) -> Tensor:
    """The block (a number) that each of ``size`` units is in; blocks are smaller where they would not fit."""
    return torch.arange(size) // math.gcd(size, block)


def _lookup(units: Tensor) -> Tensor:
    """From a unit's number to its place in ``units``."""
    table = torch.full((int(units.max()) + 1,), -1)
    table[units] = torch.arange(len(units))
    return table


def positions_of(read: Tensor, site: Site, blocks: Tensor) -> tuple[Tensor | None, Tensor]:
    """Where a layer reads units of a site (None: everywhere), and the entry of the site's mask for each."""
    where = torch.nonzero(torch.isin(read, site.units)).flatten()
    entries = blocks[_lookup(site.units)[read[where]]]
    return (None if len(where) == len(read) else where), entries


def _shaped(module: nn.Module, factor: Tensor, repeat: int, x: Tensor) -> Tensor:
    """(B, C) so that it multiplies the input of a layer along its channels."""
    if repeat > 1:
        factor = factor.repeat_interleave(repeat, 1)
    if isinstance(module, nn.Linear):
        return factor.view(len(x), *([1] * (x.ndim - 2)), -1)
    return factor.view(len(x), -1, *([1] * (x.ndim - 2)))


def _pooled(module: nn.Module, x: Tensor, where: Tensor | None, repeat: int, detached: bool) -> Tensor:
    """Features (B, C) of the channels in ``where``, averaged over positions."""
    if isinstance(module, nn.Linear):
        pooled = x.unflatten(-1, (-1, repeat)).mean(-1) if repeat > 1 else x
        pooled = pooled.flatten(1, -2).mean(1) if pooled.ndim > 2 else pooled
    else:
        pooled = x.flatten(2).mean(2)
    pooled = pooled if where is None else pooled[:, where]
    pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
    return pooled.detach() if detached else pooled
