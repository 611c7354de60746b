"""Solving in sequence: which layers are solved again, in which order they are told, and which stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sinf.compress import low_rank
from sinf.compress.low_rank import Rank
from sinf.graph.delta import Factors, LayerDeltas, Weights
from sinf.graph.network import Network, Part
from sinf.statistics import collect
from tiny import CLASSES, COLOUR, Chain, conv, traced


class Narrow(nn.Module):
    """Behind a layer that can be two: a convolution that cannot, for its padding, and one with one output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.mirrored = nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")
        self.single = nn.Conv2d(6, 1, 3, padding=1)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.single(self.mirrored(self.stem(x)).relu()), 1))


def solve(
    network: Network, ranks: dict[str, Rank], x: Tensor, other: Tensor | None = None, **options: object
) -> tuple[LayerDeltas, list[str]]:
    """What is solved in sequence, and the targets that ``progress`` was called with."""
    labels = torch.arange(len(x)) % CLASSES
    found = collect(network.graph, network.coupling, [(x, labels)], classes=CLASSES, needs=low_rank.LowRank.needs)
    known, told = low_rank.metrics(found), list[str]()
    start = low_rank.factor(network.graph, ranks, known)
    solved = low_rank.reconstruct_ranks(
        network.graph, network.coupling, start, ranks, known, x, other, progress=told.append, **options
    )
    return solved, told


def images(count: int = 60, seed: int = 0) -> Tensor:
    return torch.randn(count, *COLOUR.size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def chain() -> Network:
    torch.manual_seed(0)
    return Network(traced(Chain()))


def test_layers_before_the_first_that_became_two_stay(chain: Network) -> None:
    """They read and write what they did. Where the smaller network reads other features, all layers are solved."""
    ranks = {"second.0": Rank(3)}
    solved, told = solve(chain, ranks, images())
    assert told == ["second.0", "head"]
    assert {target: type(layer) for target, layer in solved.items()} == {"second.0": Factors, "head": Weights}
    other = images() + 0.1 * images(seed=1)
    solved, told = solve(chain, ranks, images(), other)
    assert told == ["first.0", "second.0", "head"]
    assert {target for target, layer in solved.items() if isinstance(layer, Weights)} == {"first.0", "head"}


@torch.no_grad()
def test_other_features_that_are_scaled_are_made_up_for(chain: Network) -> None:
    """The smaller network reads half of what the base network reads: the first layer doubles its weights."""
    x = images(400)
    solved, _ = solve(chain, {"head": Rank(6)}, x, 0.5 * x)
    first = solved["first.0"]
    assert isinstance(first, Weights)
    assert first.bias is None  # it had none, and the norm behind it has one
    torch.testing.assert_close(first.weight, 2 * chain.graph.get_submodule("first.0").weight, rtol=0.05, atol=0.02)


@torch.no_grad()
def test_the_mean_of_what_a_layer_writes_stays_at_any_rank(chain: Network) -> None:
    """What is left out is the least of what varies around the mean."""
    x = images(400) + 1.0
    solved, _ = solve(chain, {"head": Rank(1)}, x)
    smaller = chain.whole(Part(chain.coupling.keep_all(), solved))
    wanted, found = (graph(x.clone()) for graph in (chain.graph, smaller))
    assert torch.linalg.matrix_rank(found - found.mean(0), rtol=1e-3) == 1
    gap = (found.mean(0) - wanted.mean(0)).abs() / wanted.std(0)
    assert float(gap.max()) < 0.02


class Rows(nn.Module):
    """A kernel that reads no rows outside of the image, so that all of its rows have the same mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=(0, 1))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


@torch.no_grad()
def test_separable_layers_make_up_for_the_mean_of_what_they_leave_out() -> None:
    torch.manual_seed(0)
    network, x = Network(traced(Rows())), images(400) + 1.0
    labels = torch.arange(len(x)) % CLASSES
    found = collect(network.graph, network.coupling, [(x, labels)], classes=CLASSES, needs=low_rank.LowRank.needs)
    start = low_rank.factor(network.graph, {"conv": Rank(2, True)}, low_rank.metrics(found))
    two = network.whole(Part(network.coupling.keep_all(), start))
    pair = nn.Sequential(two.get_submodule("conv.reduce"), two.get_submodule("conv.expand"))
    wanted, ours = network.graph.get_submodule("conv")(x), pair(x)
    assert float((wanted - ours).std()) > 0.1 * float(wanted.std())  # something is left out
    gap = (wanted - ours).mean((0, 2, 3)).abs() / wanted.std((0, 2, 3))
    assert float(gap.max()) < 0.03


@torch.no_grad()
def test_without_progress_the_layers_are_the_same(chain: Network) -> None:
    ranks, x = {"first.0": Rank(4)}, images()
    solved, _ = solve(chain, ranks, x)
    labels = torch.arange(len(x)) % CLASSES
    found = collect(chain.graph, chain.coupling, [(x, labels)], classes=CLASSES, needs=low_rank.LowRank.needs)
    known = low_rank.metrics(found)
    start = low_rank.factor(chain.graph, ranks, known)
    again = low_rank.reconstruct_ranks(chain.graph, chain.coupling, start, ranks, known, x)
    assert solved.keys() == again.keys()
    for target, layer in solved.items():
        assert all(torch.equal(tensor, again[target].tensors()[name]) for name, tensor in layer.tensors().items())


@torch.no_grad()
def test_layers_that_cannot_be_two_stay_and_one_output_is_solved() -> None:
    torch.manual_seed(0)
    network, x = Network(traced(Narrow())), images(300)
    solved, told = solve(network, {"stem.0": Rank(3)}, x)
    assert told == ["stem.0", "mirrored", "single", "head"]
    assert solved.keys() == {"stem.0", "single", "head"}
    smaller = network.whole(Part(network.coupling.keep_all(), solved))
    start = network.whole(Part(network.coupling.keep_all(), {"stem.0": solved["stem.0"]}))
    wanted = network.graph(x.clone())
    ours, before = (float((graph(x.clone()) - wanted).square().mean()) for graph in (smaller, start))
    assert ours < before


def test_a_layer_whose_equations_take_too_much_stays_as_it_was_found(chain: Network) -> None:
    """The limit is in bytes: the head has 81 unknowns, the convolutions 28 and 55."""
    x, ranks = images(), {"first.0": Rank(4), "head": Rank(2)}
    labels = torch.arange(len(x)) % CLASSES
    found = collect(chain.graph, chain.coupling, [(x, labels)], classes=CLASSES, needs=low_rank.LowRank.needs)
    start = low_rank.factor(chain.graph, ranks, low_rank.metrics(found))
    free, _ = solve(chain, ranks, x)
    none, _ = solve(chain, ranks, x, equations=0)
    assert none.keys() == ranks.keys()
    for target in ranks:
        found_first, solved = start[target].tensors(), free[target].tensors()
        assert all(torch.equal(tensor, found_first[name]) for name, tensor in none[target].tensors().items())
        assert not all(torch.equal(tensor, found_first[name]) for name, tensor in solved.items())


class Falling(nn.Module):
    """A layer whose outputs vary less and less."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        with torch.no_grad():
            self.first.weight *= 2.0 ** -torch.arange(16)[:, None, None, None]
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu().mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("separable", [False, True])
def test_what_passes_between_two_layers_varies_alike(separable: bool) -> None:
    """One range for all is then well used, by activations and by the weights of the second layer."""
    torch.manual_seed(0)
    network = Network(traced(Falling()))
    factors = solve(network, {"first": Rank(8, separable)}, images())[0]["first"]
    assert isinstance(factors, Factors)
    layer = network.graph.get_submodule("first")
    pair = factors.apply(layer, layer, torch.arange(16), torch.arange(3))
    between = pair.get_submodule("reduce")(images(20, seed=2)).std((0, 2, 3))
    weights = pair.get_submodule("expand").weight.square().mean((0, 2, 3)).sqrt()
    assert float(between.max() / between.mean()) < 2
    assert float(weights.max() / weights.mean()) < 2
