"""A gated network keeps little more for the backward pass than the base model, however many sites a layer reads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gated import DEEP, cut, gated
from sinf.dynamic.network import GatedNetwork
from tiny import CLASSES, COLOUR, Concat, Mixed, Residual, conv


class Dense(nn.Module):
    """Every layer reads what all before it made."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8 + 8 * i, 8, 3, padding=1), nn.ReLU()) for i in range(layers)
        )
        self.head = nn.Linear(8 + 8 * layers, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x.mean((2, 3)))


def kept(network: GatedNetwork, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, every storage once."""
    storages: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    network.model.requires_grad_(True)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        logits = network(x)
    total = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
    del logits
    return total


@pytest.mark.parametrize("layers", [4, 12])
def test_gates_keep_little_more_than_the_base_model(layers: int) -> None:
    network, x = cut(gated(Dense(layers))), torch.randn(16, *COLOUR.size)
    gates = kept(network, x)
    network.enabled = False
    assert gates < 1.3 * kept(network, x)


@pytest.mark.parametrize("module", [lambda: Dense(4), Concat, lambda: Mixed(DEEP)])
def test_gradients_are_those_of_masks_that_are_kept(module: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = cut(gated(module())), torch.randn(4, *COLOUR.size)
    network.model.requires_grad_(True)
    network.wants_features, network.detach_features = True, False

    def gradients() -> list[Tensor]:
        network.zero_grad()
        logits, seen = network.observe(x)
        loss = F.cross_entropy(logits, torch.arange(4)) + sum(f.square().mean() for f in seen.features)
        loss.backward()
        return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in network.parameters()]

    ours = gradients()
    monkeypatch.setattr("sinf.dynamic.network.made_again", lambda *_: saved_tensors_hooks(lambda t: t, lambda t: t))
    for mine, plain in zip(ours, gradients(), strict=True):
        assert torch.equal(mine, plain)
    assert any(bool(g.any()) for g in ours)


def test_a_layer_that_fails_leaves_nothing_behind() -> None:
    network = cut(gated(Residual()))
    network.model.requires_grad_(True)
    target = network.sites[0].consumers[0]
    layer = network.model.get_submodule(target)
    forward, layer.forward = layer.forward, lambda x: x.no_such_method()
    with pytest.raises(AttributeError):
        network(torch.randn(2, *COLOUR.size))
    layer.forward = forward
    assert network._remaking == {}
    weight = torch.randn(3, requires_grad=True)
    (weight * weight).sum().backward()  # what is kept now is kept as it is
    assert torch.equal(weight.grad, 2 * weight.detach())
