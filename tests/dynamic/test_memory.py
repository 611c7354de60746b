"""A gated network keeps little more for the backward pass than the base model, however many sites a layer reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gated import DEEP, cut, gated
from sinf.dynamic.gating import Gating
from sinf.dynamic.memory import plan_training
from sinf.dynamic.network import GatedNetwork, attach
from sinf.dynamic.targets import Target
from sinf.dynamic.trainer import TrainConfig, train
from sinf.errors import ConfigError
from sinf.machine.memory import OVERHEAD, Memory, activations, weight_bytes
from sinf.models import BaseModel, ModelSpec, load_model
from sinf.training.distributed import Group
from sinf.training.loop import Loop
from tiny import CLASSES, COLOUR, Concat, Mixed, Residual, conv, randomise, tiny_data


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


class Plain(nn.Module):
    """Without batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3)))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.convs:
            x = layer(x).relu()
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


def loop_of(network: GatedNetwork, config: TrainConfig, part: int) -> Loop:
    return Loop(Gating(network, config, Group(), 4), config, 4, part=part)


@pytest.mark.parametrize("part", [2, 5, 16])
def test_a_batch_in_parts_takes_the_same_step(part: int) -> None:
    """Without batch norms and the similarity loss, which compare images of a part, gradients are those of the whole."""
    states = []
    for size in (16, part):
        torch.manual_seed(0)
        network = cut(gated(Plain()))
        loop = loop_of(network, TrainConfig(batch=16, similarity=0.0, momentum=0.0), size)
        network.train()
        loss = loop.step(torch.randn(16, *COLOUR.size), torch.arange(16) % CLASSES)
        assert float(loop.objective._sums.rest[3]) == 16
        states.append([loss, *(p.detach().clone() for p in network.parameters())])
    for mine, whole in zip(*states, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-6)


def test_norms_follow_a_batch_in_parts_as_fast_as_the_whole() -> None:
    network = gated(Dense(2))
    loop = loop_of(network, TrainConfig(batch=16), 4)
    norms = [m for m in network.model.modules() if isinstance(m, nn.BatchNorm2d)]
    with loop.slower_norms():
        assert all((1 - norm.momentum) ** 4 == pytest.approx(0.9) for norm in norms)
    assert all(norm.momentum == 0.1 for norm in norms)
    with loop_of(network, TrainConfig(batch=16), 16).slower_norms():
        assert all(norm.momentum == 0.1 for norm in norms)


def test_a_training_says_what_it_needs_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    images, lines = tiny_data(tmp_path / "data"), []
    config = TrainConfig(Target(channels=0.5), epochs=1, batch=8)
    values = activations(gated(Plain()).graph)
    each = values.backward + 3 * values.largest
    for least, says in ((8, "batches of 8"), (3, "batches of 3 in training")):
        network = attach(BaseModel(randomise(Plain()), ModelSpec("tiny", CLASSES, COLOUR)))
        fixed = 5 * weight_bytes(network) + 24 * 3 * 8 * 8
        memory = Memory((OVERHEAD + fixed + least * each + each // 2) * 10 // 9)
        part, _ = plan_training(network, images, None, COLOUR, memory, config)
        assert part == (8 if least == 8 else 3)  # of a batch of 8: 3, 3 and 2
        assert says in memory.summary() or least == 8
        with pytest.raises(ConfigError, match="training must fit"):
            plan_training(network, images, None, COLOUR, Memory(OVERHEAD + fixed + each), config)
    base = load_model("resnet20", classes=CLASSES, size=COLOUR.size, options={"width": 0.5})
    with pytest.raises(ConfigError, match="training must fit"):
        train(base, images, tmp_path / "run", replace(config, memory=OVERHEAD), notice=lines.append)
    assert lines == []
    train(base, images, tmp_path / "run", config, notice=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("memory: about")
