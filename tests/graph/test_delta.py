"""What stands in the place of layers: by hand, through tensors and back, and refused in other shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from sinf.graph import delta
from sinf.graph.apply import apply, replaced
from sinf.graph.cost import MacCount
from sinf.graph.coupling import Coupling, Slot, couple
from sinf.graph.delta import Factors, LayerDelta, Mix, Weights, can_factor
from sinf.graph.network import Part, PartedNetwork
from sinf.graph.slice import parameters_of
from tiny import COLOUR, NETWORKS, Chain, random_keep, traced

KINDS = ["mix", "weights", "factors", "separable"]


def shape_of(graph: fx.GraphModule, coupling: Coupling, keep: Tensor, target: str) -> tuple[int, ...]:
    """The shape of a layer's weight when the units stay that do."""
    base = graph.get_submodule(target)
    read, written = coupling.reads[target], coupling.writes[target]
    return len(written.index(keep)), len(read.index(keep)), *base.weight.shape[2:]


def drawn(kind: str, base: nn.Module, shape: tuple[int, ...], read: Slot, rank: int = 2) -> LayerDelta:
    """A delta of random tensors."""
    out, into, *kernel = shape
    if kind == "mix":
        return Mix(torch.randn(len(read.units), into // read.repeat))
    if kind == "weights":
        return Weights(torch.randn(shape), None if base.bias is None else torch.randn(out))
    ones = [1] * len(kernel)
    first, second = ([1, kernel[1]], [kernel[0], 1]) if kind == "separable" and kernel else (kernel, ones)
    return Factors(torch.randn(rank, into, *first), torch.randn(out, rank, *second), torch.randn(out))


def deltas(graph: fx.GraphModule, coupling: Coupling, keep: Tensor, draw: list[str]) -> dict[str, LayerDelta]:
    """Of layers where channels meet, one of each drawn kind in turn; layers that cannot be two get weights."""
    found = {}
    for number, target in enumerate(coupling.mixers.values()):
        base, kind = graph.get_submodule(target), draw[number % len(draw)]
        kind = kind if kind in ("mix", "weights") or can_factor(base) else "weights"
        found[target] = drawn(kind, base, shape_of(graph, coupling, keep, target), coupling.reads[target])
    return found


@settings(max_examples=10, deadline=None)
@given(
    name=st.sampled_from([name for name in NETWORKS if name not in ("Grouped",)]),
    draw=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_tensors_and_back_is_the_same_network(name: str, draw: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    graph = traced(NETWORKS[name]())
    coupling = couple(graph)
    keep = random_keep(coupling, seed=seed)
    layers = deltas(graph, coupling, keep, draw)
    part = Part(keep, layers)
    again = Part.from_tensors(part.to_tensors(coupling, "p.", torch.float32), coupling, "p.")
    assert torch.equal(again.keep, keep)
    assert list(again.layers) == list(layers)
    x = torch.randn(2, *COLOUR.size)
    expected = apply(graph, coupling, keep, layers)(x.clone())
    assert torch.equal(apply(graph, coupling, again.keep, again.layers)(x.clone()), expected)
    called_as_one = replaced(graph, coupling, keep, layers)
    torch.testing.assert_close(called_as_one(x.clone()), expected)
    for target, layer in layers.items():
        base, read = graph.get_submodule(target), coupling.reads[target]
        shape = shape_of(graph, coupling, keep, target)
        assert layer.fits(base, shape, read)
        assert not layer.fits(base, (shape[0] + 1, shape[1] + read.repeat, *shape[2:]), read)
        assert not any(t.requires_grad for t in layer.tensors().values())


@torch.no_grad()
def test_factors_are_their_product() -> None:
    """A layer of two through channels is the layer with the product of the weights."""
    torch.manual_seed(0)
    base = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2)
    factors = Factors(torch.randn(3, 4, 3, 3), torch.randn(6, 3, 1, 1), torch.randn(6))
    one = Weights(torch.einsum("or,rcij->ocij", factors.expand[:, :, 0, 0], factors.reduce), factors.bias)
    rows, read = torch.arange(6), Slot(1, torch.arange(4))
    x = torch.randn(2, 4, 9, 7)
    torch.testing.assert_close(factors.apply(base, base, rows, read)(x), one.apply(base, base, rows, read)(x))


@torch.no_grad()
def test_separable_factors_are_their_product() -> None:
    torch.manual_seed(0)
    base = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1), bias=False)
    factors = Factors(torch.randn(3, 4, 1, 2), torch.randn(6, 3, 3, 1), torch.randn(6))
    weight = torch.einsum("ori,rcj->ocij", factors.expand[..., 0], factors.reduce[:, :, 0])
    own = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1))
    own.weight.data, own.bias.data = weight, factors.bias
    x = torch.randn(2, 4, 9, 7)
    found = factors.apply(base, base, torch.arange(6), Slot(1, torch.arange(4)))(x)
    torch.testing.assert_close(found, own(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_costs_count_both_layers() -> None:
    graph = traced(Chain())
    network = PartedNetwork(graph)
    coupling = network.coupling
    layers = {"second.0": drawn("separable", graph.get_submodule("second.0"), (5, 6, 3, 3), coupling.reads["second.0"])}
    two = network.whole(Part(coupling.keep_all(), layers))
    second = two.get_submodule("second.0.expand")
    nodes = {str(n.target): n for n in two.graph.nodes if n.op == "call_module"}
    reduced, expanded = (nodes[f"second.0.{name}"].meta["shape"] for name in ("reduce", "expand"))
    x, found = torch.randn(1, *COLOUR.size), {}
    for name, module in (("reduce", two.get_submodule("second.0.reduce")), ("expand", second)):
        module.register_forward_hook(lambda m, a, y, name=name: found.update({name: tuple(y.shape)}))
    two(x)
    assert found == {"reduce": tuple(reduced), "expand": tuple(expanded)}
    macs = reduced[2] * reduced[3] * 2 * 6 * 3 + expanded[2] * expanded[3] * 5 * 2 * 3
    before = MacCount(graph, coupling).by_layer()
    assert network.cost_of(two) == sum(before.values()) - before["second.0"] + macs
    assert parameters_of(two) == parameters_of(graph) - 5 * 6 * 9 + 2 * 6 * 3 + 5 * 2 * 3 + (
        0 if graph.get_submodule("second.0").bias is not None else 5
    )


def test_the_base_network_stays_as_it_was() -> None:
    torch.manual_seed(0)
    graph = traced(Chain())
    coupling = couple(graph)
    keep = random_keep(coupling)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    made = apply(graph, coupling, keep, deltas(graph, coupling, keep, KINDS))
    for parameter in made.get_submodule("head").parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[name], value) for name, value in graph.state_dict().items())


def test_layers_of_another_part_are_left_out() -> None:
    network = PartedNetwork(traced(Chain()), "first")
    coupling = network.coupling
    layers = deltas(network.graph, coupling, coupling.keep_all(), ["factors"])
    early, late = network.split(Part(coupling.keep_all(), layers))
    assert set(early.layers) | set(late.layers) == set(layers)
    assert set(early.layers) == network.extractor_targets & set(layers)
    x = torch.randn(2, *COLOUR.size)
    both = network.tail(late)(network.extractor(early)(x.clone()))
    torch.testing.assert_close(both, network.whole(Part(coupling.keep_all(), layers))(x.clone()))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_take_the_type_of_the_layer(kind: str) -> None:
    base = nn.Conv2d(4, 6, 3).double()
    read = Slot(1, torch.arange(4))
    layer = drawn(kind, base, (6, 4, 3, 3), read)
    made = layer.apply(base, base, torch.arange(6), read)
    assert {p.dtype for p in made.parameters()} == {torch.float64}
    assert not any(
        p.requires_grad or p.is_meta for name, p in made.named_parameters() if kind != "mix" or "bias" not in name
    )


@pytest.mark.parametrize(
    "name", ["mix.matrix", "other.matrix.head", "mix.other.head", "factors.reduce.head", "", "weights.bias.head"]
)
def test_names_that_are_no_layers(name: str) -> None:
    with pytest.raises(ValueError, match="of a layer"):
        delta.from_tensors({name: torch.zeros(1)})


def test_two_kinds_cannot_stand_for_one_layer() -> None:
    with pytest.raises(ValueError, match="no part of a layer"):
        delta.from_tensors({"mix.matrix.head": torch.zeros(1), "weights.weight.head": torch.zeros(1)})


def test_factors_of_other_shapes_do_not_fit() -> None:
    base, read = nn.Conv2d(4, 6, 3), Slot(1, torch.arange(4))
    good = drawn("factors", base, (6, 4, 3, 3), read)
    assert good.fits(base, (6, 4, 3, 3), read)
    for change in (
        {"reduce": torch.zeros(2, 4, 3, 1)},
        {"reduce": torch.zeros(0, 4, 3, 3), "expand": torch.zeros(6, 0, 1, 1)},
        {"expand": torch.zeros(6, 3, 1, 1)},
        {"expand": torch.zeros(6, 2, 3, 3)},
        {"expand": torch.zeros(6, 2)},
        {"bias": torch.zeros(5)},
    ):
        assert not replace(good, **change).fits(base, (6, 4, 3, 3), read)
    grouped = nn.Conv2d(4, 6, 3, groups=2)
    assert not good.fits(grouped, (6, 4, 3, 3), read)


def test_a_network_that_keeps_all_is_shared() -> None:
    graph = traced(Chain())
    coupling = couple(graph)
    same = apply(graph, coupling, coupling.keep_all(), {})
    before, after = graph.state_dict(), same.state_dict()
    assert {name: tensor.data_ptr() for name, tensor in before.items()} == {
        name: tensor.data_ptr() for name, tensor in after.items()
    }
