"""Training starts from the base model's answers, with saliencies in the order of importance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gated import DEEP, gated
from sinf.dynamic.network import attach
from sinf.dynamic.start import spread, start_by_importance
from sinf.errors import CutError
from sinf.models import load_model
from tiny import CLASSES, COLOUR, PIECES, Mixed, conv


def biases(network) -> list[Tensor]:
    return [network.gate(index).excite.bias.detach() for index in range(len(network.sites))]


@settings(max_examples=25)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5),
    flat=st.booleans(),
    block=st.sampled_from([1, 2]),
    binary=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_answers_stay(pieces: list[str], flat: bool, block: int, binary: bool, seed: int) -> None:
    torch.manual_seed(seed)
    try:
        network = gated(Mixed(pieces, 4, flat), block=block, mask="binary" if binary else "scaled")
    except CutError:
        return
    x = torch.randn(3, *COLOUR.size)
    with torch.no_grad():
        before = network(x)
        start_by_importance(network)
        assert torch.allclose(network(x), before, atol=1e-4 * max(1.0, float(before.abs().max())))


@pytest.mark.parametrize("name", ["resnet20", "vgg11", "torchvision:mobilenet_v2"])
def test_every_site_of_known_networks_starts_in_order(name: str) -> None:
    if name.startswith("torchvision:"):
        pytest.importorskip("torchvision")
        options = {"pretrained": False, "options": {"width_mult": 0.25}}
    else:
        options = {"options": {"width": 0.25}}
    base = load_model(name, classes=CLASSES, size=(3, 32, 32), **options)
    network = attach(base).eval()
    x = torch.randn(2, 3, 32, 32)
    orders = [network.importance(index).argsort() for index in range(len(network.sites))]
    with torch.no_grad():
        before = network(x)
        start_by_importance(network)
        assert torch.allclose(network(x), before, atol=1e-4 * max(1.0, float(before.abs().max())))
    for order, levels in zip(orders, biases(network), strict=True):
        assert (levels[order].diff() >= 0).all()
        assert (levels.min(), levels.max()) == (0.5, 1.5)


def test_thresholds_take_the_least_important_first() -> None:
    network = gated(Mixed(DEEP, 4, False))
    importances = [network.importance(index) for index in range(len(network.sites))]
    start_by_importance(network)
    for index, importance in enumerate(importances):
        gate = network.gate(index)
        gate.set_remaining(0.5, gate.excite.bias.detach())
        kept = gate.keep(gate.excite.bias.detach()[None])[0]
        assert importance[kept].min() >= importance[~kept].max()


class Tied(nn.Module):
    """What reads the gated channels has the weight of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.free = conv(3, 4), conv(4, 4)
        self.reader, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.other.weight = self.reader.weight
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.reader(self.free(self.stem(x)))).mean((2, 3)))


def test_shared_weights_are_left_alone() -> None:
    network = gated(Tied())
    weight = network.model.reader.weight.clone()
    start_by_importance(network)
    assert torch.equal(network.model.reader.weight, weight)
    free = [site.name.startswith("free") for site in network.sites]
    assert (biases(network)[free.index(True)] == 1).all()


def test_baselines_are_left_alone() -> None:
    for kind in ("fbs", "static"):
        network = gated(Mixed(DEEP, 4, False), kind=kind)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        start_by_importance(network)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_spread() -> None:
    assert torch.equal(spread(torch.tensor([3.0, 1.0, 2.0])), torch.tensor([1.5, 0.5, 1.0]))
    assert torch.equal(spread(torch.tensor([7.0])), torch.ones(1))
