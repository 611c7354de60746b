"""What the script on grouped convolutions counts is what torch counts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("grouped", "table")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("grouped")
    for name in names:
        sys.modules.pop(name, None)


def macs(network: nn.Module, *size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *size))
    return int(counter.get_total_flops()) // 2


def test_layers_of_a_network_and_the_two_in_their_place(grouped: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "SIZE", (6, 8, 8))
    options = {"stride": 2, "padding": 1, "groups": 3}
    network = nn.Sequential(nn.Conv2d(6, 12, 3, **options), nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 1))
    layers = grouped.layers_of(network)
    assert sum(layers.values()) == 3
    assert sum(count * layer.macs for layer, count in layers.items()) == macs(network, 6, 8, 8)
    (layer,) = (each for each in layers if each.groups == 3)
    assert layer.rank(0.5) == 1
    assert layer.two(0.5)(torch.zeros(1, 6, 8, 8)).shape == layer.one()(torch.zeros(1, 6, 8, 8)).shape
    assert layer.share(0.5) * layer.macs == pytest.approx(macs(layer.two(0.5), 6, 8, 8))
