"""What is counted of a network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sinf.errors import CutError
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.network import Network, PartedNetwork
from tiny import CLASSES, COLOUR, NETWORKS, Attention, traced


class Multiplied(nn.Module):
    """Attention by hand: two products of values by values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        weights = (x @ x.transpose(1, 2)).softmax(-1)
        return self.head(torch.matmul(weights, x).mean(1))


@pytest.mark.parametrize("made", [*NETWORKS.values(), Multiplied])
def test_all_multiplications_are_counted(made: type[nn.Module]) -> None:
    """As torch counts them, who looks at every operation that runs."""
    graph = traced(made())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        graph(torch.zeros(1, *COLOUR.size))
    assert MacCount(graph, couple(graph)).total() == counter.get_total_flops() // 2


def test_products_are_no_layer_s() -> None:
    graph = traced(Attention())
    count = MacCount(graph, couple(graph))
    tokens, width = 16, 12
    assert count.products == 2 * tokens * tokens * width
    assert count.total() - sum(count.by_layer().values()) == count.products
    assert count.of({"head"}).total() == width * CLASSES


def test_a_network_without_a_cut_is_a_network() -> None:
    graph = traced(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(COLOUR.size), CLASSES)))
    assert Network(graph).macs.total() == math.prod(COLOUR.size) * CLASSES
    with pytest.raises(CutError, match="prune makes the whole network smaller"):
        PartedNetwork(graph)
