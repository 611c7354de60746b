"""Tiny networks with gates that remove something."""

from __future__ import annotations

import torch
from torch import nn

from sinf.data.images import LabelledImages
from sinf.dynamic.gates import SaliencyGate
from sinf.dynamic.network import GateConfig, GatedNetwork, attach
from sinf.models import BaseModel, ModelSpec
from tiny import CLASSES, COLOUR, randomise


def gated(module: nn.Module, **options: object) -> GatedNetwork:
    return gated_as_it_is(randomise(module), **options)


def gated_as_it_is(module: nn.Module, **options: object) -> GatedNetwork:
    return attach(BaseModel(module, ModelSpec("tiny", CLASSES, COLOUR)), GateConfig(**options)).eval()


@torch.no_grad()
def mean_macs(network: GatedNetwork, images: LabelledImages) -> float:
    """As a share of the base model's."""
    parts = [network.macs_of(network.keep(network.observe(x)[1])) for x, _ in images.batches(COLOUR)]
    return float(torch.cat(parts).mean()) / network.base_macs


def stir(network: GatedNetwork, spread: float = 0.02, seed: int = 0) -> GatedNetwork:
    """Saliencies that differ a little, as after a short training."""
    draw = torch.Generator().manual_seed(seed)
    for index in range(len(network.sites)):
        gate = network.gate(index)
        if isinstance(gate, SaliencyGate):
            gate.excite.weight.data += spread * torch.randn(gate.excite.weight.shape, generator=draw)
    return network


def cut(network: GatedNetwork, rate: float = 0.5, seed: int = 0) -> GatedNetwork:
    """Saliencies that differ, and thresholds that remove some channels of every site."""
    draw = torch.Generator().manual_seed(seed)
    for index in range(len(network.sites)):
        gate = network.gate(index)
        for parameter in gate.parameters():
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=draw)
    for _ in range(2):
        _, seen = network.observe(torch.randn(16, *COLOUR.size, generator=draw))
        for index, saliency in enumerate(seen.saliencies):
            network.gate(index).set_remaining(rate, saliency.mean(0).detach())
    return network


#: A network with all that can stand between a gate and what reads its channels.
DEEP = ["plain", "residual", "depthwise", "gate", "concat", "pool", "plain"]
