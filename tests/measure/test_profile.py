"""The profile's figures add up."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from sinf.graph.cut import cut_points
from sinf.graph.trace import trace
from sinf.measure.profile import Profile, profile
from sinf.models import BaseModel, load_model
from sinf.models.load import ModelSpec
from tiny import CLASSES, COLOUR, HalfShuffled, Shared, randomise


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_model("resnet20")


@pytest.fixture(scope="module")
def found(base: BaseModel) -> Profile:
    return profile(base, runs=2)


def counted_macs(module: nn.Module, size: tuple[int, ...]) -> dict[str, int]:
    """By hooks of torch's own."""
    counts: dict[str, int] = {}

    def count(name: str, layer: nn.Module, y: Tensor) -> None:
        positions = math.prod(y.shape[2:])
        counts[name] = counts.get(name, 0) + positions * layer.weight.numel()

    hooks = [
        layer.register_forward_hook(lambda layer, _, y, name=name: count(name, layer, y))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        module(torch.zeros(1, *size))
    for hook in hooks:
        hook.remove()
    return counts


def test_macs_and_parameters_add_up(base: BaseModel, found: Profile) -> None:
    by_layer = counted_macs(base.module, base.spec.preprocessing.size)
    assert {layer.name: layer.macs for layer in found.layers if layer.macs} == by_layer
    assert found.macs == sum(by_layer.values()) == sum(layer.macs for layer in found.layers)
    assert found.parameters == sum(p.numel() for p in base.module.parameters())
    assert found.parameters == sum(layer.parameters for layer in found.layers)
    assert found.model == "resnet20"


def test_layers_are_the_models_own(base: BaseModel, found: Profile) -> None:
    names = [layer.name for layer in found.layers]
    assert len(set(names)) == len(names)
    for layer in found.layers:
        assert layer.kind == type(base.module.get_submodule(layer.name)).__name__
    stem = next(layer for layer in found.layers if layer.name == "conv1")
    assert (stem.kind, stem.shape, stem.parameters) == ("Conv2d", (16, 32, 32), 3 * 16 * 9)


def test_shares_of_time_add_up(found: Profile) -> None:
    total = sum(layer.time for layer in found.layers)
    assert all(0 <= layer.time <= 1 for layer in found.layers)
    assert 0 < total <= 1 + 1e-9
    assert found.milliseconds > 0


def test_all_time_is_that_of_layers_where_there_is_nothing_else() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, CLASSES)).eval()
    result = profile(BaseModel(net, ModelSpec("chain", CLASSES, COLOUR)), runs=2)
    assert [layer.name for layer in result.layers] == ["0", "1", "2", "3"]
    assert sum(layer.time for layer in result.layers) == pytest.approx(1)


def test_cuts_are_in_order(base: BaseModel, found: Profile) -> None:
    points = cut_points(trace(base.module, base.spec.preprocessing))
    assert [(cut.name, cut.shape) for cut in found.cuts] == [(point.name, point.shape) for point in points]
    for shares in ([cut.macs_before for cut in found.cuts], [cut.time_before for cut in found.cuts]):
        assert shares == sorted(shares)
        assert 0 < shares[0] < shares[-1] <= 1 + 1e-9
    head = next(layer for layer in found.layers if layer.name == "fc")
    assert found.cuts[-1].macs_before == pytest.approx(1 - head.macs / found.macs)


def test_groups_of_a_residual_network(found: Profile) -> None:
    groups = {group.name: group for group in found.groups}
    assert groups["input"].blocked is not None
    assert groups["conv1"].blocked is None
    assert groups["conv1"].channels == 16
    assert {"conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"} <= set(groups["conv1"].producers)
    assert groups["layer2.1.conv1"].producers == ("layer2.1.conv1",)
    assert groups["layer2.1.conv1"].consumers == ("layer2.1.conv2",)


def test_what_blocks_a_group_is_named() -> None:
    result = profile(BaseModel(randomise(HalfShuffled()), ModelSpec("shuffled", CLASSES, COLOUR)), runs=1)
    blocked = {group.name: group.blocked for group in result.groups}
    assert blocked["free.0"] is None
    assert "view" in blocked["moved.0"]


def test_layer_that_is_called_twice_is_one_line_with_both_costs() -> None:
    net = randomise(Shared())
    result = profile(BaseModel(net, ModelSpec("shared", CLASSES, COLOUR)), runs=1)
    by_name = {layer.name: layer for layer in result.layers}
    assert len(by_name) == len(result.layers)
    assert by_name["twice"].macs == 2 * 64 * 45 * 5
    assert result.macs == sum(layer.macs for layer in result.layers)
    assert sum(layer.time for layer in result.layers) <= 1 + 1e-9


def test_threads_are_set_while_it_runs_and_restored() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.seen = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES), set()
            self.body.register_forward_hook(lambda *_: self.seen.add(torch.get_num_threads()))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).mean((2, 3)))

    before, net = torch.get_num_threads(), Counting()
    result = profile(BaseModel(net, ModelSpec("counting", CLASSES, COLOUR)), threads=before + 1, runs=1)
    assert torch.get_num_threads() == before
    assert result.threads == before + 1
    assert before + 1 in net.seen


def test_profile_is_json(found: Profile) -> None:
    record = json.loads(json.dumps(found.to_json()))
    assert record["layers"][0]["name"] == "conv1"
    assert record["cuts"][0]["macs_before"] > 0
