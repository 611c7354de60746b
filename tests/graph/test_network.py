"""The cut that is taken when none is named: nearest to a share of the MACs, where features cost little."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sinf.graph.network import PartedNetwork
from sinf.routing.predictor import RouterConfig, predictor_macs
from tiny import CLASSES, COLOUR, conv, traced


class Shrinking(nn.Module):
    """Many channels of large maps right up to 60 % of the MACs, then a pooling, then the rest."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.early = nn.Sequential(conv(3, 8), conv(8, 8), nn.Conv2d(8, width, 1), nn.ReLU())
        self.small = nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU(), nn.MaxPool2d(2))
        self.late = nn.Sequential(conv(4, 32), conv(32, 24), conv(24, 24))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.late(self.small(self.early(x))).mean((2, 3)))


@pytest.mark.parametrize("width", [16, 32])
def test_huge_features_are_avoided(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = traced(Shrinking(width))
    monkeypatch.setattr("sinf.graph.network._LARGE_FEATURES", 1e12)
    share = 0.0
    for point in ("early", "small"):  # the wide place is nearest by MACs alone
        network = PartedNetwork(graph, point)
        share = share or network.extractor_macs.total() / network.macs.total()
    assert PartedNetwork(graph, cut_at=share).cut.name == "early"
    monkeypatch.setattr("sinf.graph.network._LARGE_FEATURES", 8 * 8 * width * 2)
    assert PartedNetwork(graph, cut_at=share).cut.name == "small"
    assert PartedNetwork(graph, "early").cut.name == "early"  # who names it gets it


def test_a_cut_whose_predictor_costs_much_is_avoided() -> None:
    graph = traced(Shrinking(16))
    wide = PartedNetwork(graph, "early")
    share = wide.extractor_macs.total() / wide.macs.total()
    assert PartedNetwork(graph, cut_at=share).cut.name == "early"
    config = RouterConfig()
    chosen = PartedNetwork(graph, cut_at=share, predictor_macs=lambda shape: predictor_macs(shape, 2, config))
    cost = {shape[0]: predictor_macs(shape, 2, config) for shape in (wide.cut.shape, chosen.cut.shape)}
    assert chosen.cut.name == "small"
    assert cost[chosen.cut.shape[0]] < cost[wide.cut.shape[0]]


def test_macs_of_a_predictor_take_no_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert predictor_macs((16, *COLOUR.size[1:]), 3, RouterConfig()) > 0
    assert torch.equal(torch.get_rng_state(), before)
