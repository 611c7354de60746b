"""Times of convolutions in groups, and of the few layers that are not timed; budgets of time make both smaller. The
clock is a formula, so that times must come out exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scopes import WHOLE, scope_of
from sinf.compress.compressor import Compression, Run
from sinf.compress.low_rank import LowRank
from sinf.compress.prices import Prices
from sinf.compress.select import Budget, select
from sinf.engine.torch_runtime import Torch
from sinf.graph.apply import apply
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.delta import Factors
from sinf.graph.price import LayerTimes, blocks
from sinf.graph.slice import slice_graph
from sinf.graph.trace import note_shapes, trace
from sinf.measure import layer_times as module
from sinf.measure.layer_kinds import Kind, Probe
from sinf.measure.layer_table import LayerTable
from sinf.measure.layer_times import layer_times, probes_of
from sinf.models.to_plain import make_plain, to_plain
from sinf.storage.steps import StepStore
from times import made_up_clock, of_layer
from tiny import COLOUR, WideGroups, traced


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Times by the formula; gives what was opened."""
    return made_up_clock(monkeypatch)


@pytest.fixture
def never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_opened", lambda *given: (lambda x: x, torch.zeros(1)))


def times_of(network: nn.Module, **options: Any) -> LayerTimes:
    return layer_times(traced(network), lambda x: x, COLOUR.size, "torch", **options)


def of_conv(layer: nn.Conv2d) -> float:
    return of_layer(layer.kernel_size, layer.out_channels, layer.weight.shape[1], layer.in_channels)


class Between(nn.Module):
    """A convolution between a 1x1 convolution and a linear layer."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, layer.in_channels, 1), layer
        self.head = nn.Linear(layer.out_channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.stem(x).relu()).relu().mean((2, 3)))


def between(groups: int, out: int, into: int, kernel: int = 3) -> Between:
    """With so many outputs and inputs of each group."""
    return Between(nn.Conv2d(groups * into, groups * out, kernel, padding=kernel // 2, groups=groups))


SIZES = [(4, 16, 16), (8, 12, 4), (32, 2, 1), (32, 1, 1), (2, 9, 24)]  # groups, outputs and inputs of each


@pytest.mark.parametrize(("groups", "out", "into"), SIZES)
def test_fewer_groups_take_less_time(groups: int, out: int, into: int, clock: list[Any]) -> None:
    """Whole groups go: then there are fewer outputs, and as many inputs of each group as before."""
    price = dict(times_of(between(groups, out, into)).layers)["layer"]
    for left in (groups, groups // 2, 1):
        assert price.widths.at(left * out, into) == pytest.approx(of_conv(between(left, out, into).layer))


@pytest.mark.parametrize(("groups", "out", "into"), [size for size in SIZES if size[1] > 1])
def test_two_layers_in_the_same_groups(groups: int, out: int, into: int, clock: list[Any]) -> None:
    price = dict(times_of(between(groups, out, into)).layers)["layer"]
    assert price.separable is None
    assert price.channels is not None
    for of_each in range(1, out + 1):
        two = of_conv(between(groups, of_each, into).layer) + of_conv(between(groups, out, of_each, 1).layer)
        assert price.channels.at(groups * of_each) == pytest.approx(two)


def test_one_output_a_group_becomes_no_two(clock: list[Any]) -> None:
    price = dict(times_of(between(8, 1, 3)).layers)["layer"]
    assert price.channels is price.separable is None


@given(
    groups=st.integers(2, 7), out=st.integers(1, 24), into=st.integers(1, 24), kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2), together=st.sampled_from([1, 8, 16]),
)  # fmt: skip
@settings(max_examples=60)
def test_probes_of_groups_are_layers_as_they_could_come(
    groups: int, out: int, into: int, kernel: int, stride: int, together: int
) -> None:
    """With whole groups of the layer, or with as many groups as it has, and never wider."""
    layer = nn.Conv2d(groups * into, groups * out, kernel, stride, padding=1, groups=groups)
    kind = Kind.of(layer, (1, groups * into, 7, 5))
    assert kind is not None
    block = blocks(together, groups, groups * out, into)
    widest = module._widest([("layer", layer, kind, 1)], together)
    probes = module._all_probes(widest, together)
    assert {probe.kind for probe in probes if not probe.bare} == set(widest)
    assert len(widest) == (1 if out == 1 else 3)
    for probe in probes:
        network = probe.network()
        with torch.no_grad():
            assert network(torch.zeros(3, *probe.input_size)).shape == (3, 2)
        if probe.bare:
            continue
        made = network.layers[2]
        of_each = made.out_channels // made.groups, made.weight.shape[1]
        assert made.out_channels == probe.out
        assert made.in_channels == probe.read
        if probe.kind == kind:
            assert of_each == (out, into)
            assert made.groups <= groups
        else:
            assert made.groups == groups
            assert all(width % block == 0 for width in of_each)
            assert of_each[0] <= out
            assert of_each[1] <= (out if probe.kind.inputs is None else into)


def test_groups_of_blocks_have_ranks_of_blocks(clock: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that computes 16 channels together does so in every group, or in none."""
    monkeypatch.setattr(Torch, "together", lambda self, precision: 16)
    for each, step, widths in (
        (32, 32, {(32, 32), (64, 32), (64, 16)}),
        (24, 2, {(16, 24), (48, 24), (48, 8)}),
    ):  # outputs, and inputs of a group: those of the first layer vary, and these of the second
        clock.clear()
        network = between(2, each, each)
        times = times_of(network)
        graph = traced(network)
        prices = Prices(Budget(0.9, times=times), MacCount(graph, couple(graph)))
        assert (prices.step("layer", 1), prices.step("layer", 3)) == (step, 3 * step)
        assert prices.step("stem", 1) == 16
        two = {(probe.out, probe.into) for probe in clock if probe.kind.factored}
        assert two == widths


def test_what_is_in_blocks_tells_nothing_of_what_is_not(
    clock: list[Any], never_opened: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 24 channels are between those of 16 and of 32, and are computed in another way."""
    monkeypatch.setattr(Torch, "together", lambda self, precision: 16)
    monkeypatch.setattr(module, "is_idle", lambda load: True)
    times_of(between(2, 32, 32), table=LayerTable(tmp_path))
    clock.clear()
    times = times_of(between(2, 24, 24), table=LayerTable(tmp_path))
    assert {probe.out for probe in clock if probe.kind.factored} == {16, 48}
    clock.clear()
    assert times_of(between(2, 24, 24), table=LayerTable(tmp_path)) == times
    assert clock == []


def test_widths_in_groups_that_are_slower_than_all_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines have faster ways for groups of some widths: what is narrower is not taken to be as fast."""
    made_up_clock(monkeypatch, lambda probe: 5.0 if probe.kind.factored and probe.out < 64 else 1.0)
    price = dict(times_of(between(4, 16, 16)).layers)["layer"]
    assert price.widths.at(64, 16) == 1.0
    assert price.channels is not None
    assert min(price.channels.at(rank) for rank in range(4, 64, 4)) >= 5.0


# ---- budgets


def taken(network: nn.Module) -> float:
    """Milliseconds of all layers of a network that was made smaller, each timed as it is."""
    description, state = to_plain(network)
    plain = make_plain(description, COLOUR.size)
    plain.load_state_dict(state)
    return layer_times(trace(plain, COLOUR), lambda x: x, COLOUR.size, "torch").in_layers


@torch.no_grad()
@pytest.mark.parametrize("asked", [0.95, 0.85, 0.75])
def test_ranks_in_groups_by_a_budget_of_time(asked: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they take the time, they become two, and the network takes what was asked for."""
    made_up_clock(monkeypatch, lambda probe: 0.1 if probe.kind.groups == 1 else of_conv(conv_of(probe)), 6.0)
    scope, _ = scope_of(WideGroups())
    times = layer_times(scope.graph, lambda x: x, COLOUR.size, "torch")
    grouped = dict(times.layers)["grouped.0"].widths.at(16, 8)
    assert grouped > 0.8 * times.in_layers
    notices: list[str] = []
    run = Run(StepStore(tmp_path), notice=notices.append)
    work = Compression(LowRank(2), [scope], [(Budget(asked, times=times), WHOLE)], run)
    part = work.part(0)
    assert isinstance(part.layers["grouped.0"], Factors)
    after = taken(apply(scope.graph, scope.coupling, part.keep, part.layers))
    assert after + times.total - times.in_layers <= asked * times.total
    assert not [text for text in notices if "grouped.0" in text]


def conv_of(probe: Probe) -> nn.Conv2d:
    layer = probe.kind.made(probe.out, probe.into)
    assert isinstance(layer, nn.Conv2d)
    return layer


@torch.no_grad()
@pytest.mark.parametrize("groups", [4, 8, 16])
def test_channels_go_where_groups_take_all_the_time(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = WideGroups(groups)
    layer = network.get_submodule("grouped.0")
    assert isinstance(layer, nn.Conv2d)
    made_up_clock(monkeypatch, lambda probe: 0.0 if probe.kind.groups else of_conv(conv_of(probe)), of_conv(layer))
    graph = note_shapes(traced(network))
    coupling = couple(graph)
    times = layer_times(graph, lambda x: x, COLOUR.size, "torch")
    assert times.in_layers == pytest.approx(times.total)
    free, count = coupling.free_groups(), MacCount(graph, coupling)
    importance = {group.name: torch.ones(group.size) for group in free}
    keep = select(Budget(0.75, times=times), free, importance, count, coupling.keep_all(), 1)
    assert 0 < taken(slice_graph(graph, coupling, keep)) <= 0.75 * times.total


class Reflected(nn.Module):
    """Convolutions that are not timed: in three dimensions, and padded by what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.padded = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.deep = nn.Conv3d(8, 5, 1)
        self.head = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.deep(self.padded(self.stem(x).relu()).relu()[:, :, None]).relu().mean((2, 3, 4)))


UNTIMED = {"padded": 64 * 9 * 8 * 8, "deep": 64 * 8 * 5}  # MACs


@pytest.mark.parametrize("rest", [0.5, 1.0, 40.0])
def test_layers_that_are_not_timed_count_by_their_macs(rest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much for each as the others take, but no more than is left of the network's time."""
    timed = {(3, 3): (8, 3), (): (5, 5)}
    taken = sum(of_layer(kernel, *widths) for kernel, widths in timed.items())
    made_up_clock(monkeypatch, total=taken + rest)
    times = times_of(Reflected())
    layers = dict(times.layers)
    a_mac = min(taken / (64 * 27 * 8 + 25), rest / sum(UNTIMED.values()))
    for target, widths in (("padded", (8, 8)), ("deep", (5, 8))):
        assert layers[target].channels is layers[target].separable is None
        assert layers[target].widths.at(*widths) == pytest.approx(a_mac * UNTIMED[target])
    assert times.in_layers == pytest.approx(taken + a_mac * sum(UNTIMED.values()))
    assert times.in_layers <= times.total * (1 + 1e-12)
    graph = traced(Reflected())
    prices = Prices(Budget(1.0, times=times), MacCount(graph, couple(graph)))
    assert prices.rest == pytest.approx(times.total - times.in_layers)
    assert prices.layer_cost("padded", 0.0).whole == pytest.approx(a_mac * UNTIMED["padded"])


def test_a_network_of_which_nothing_takes_time_but_what_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up_clock(monkeypatch, lambda probe: 0.0, 3.0)
    assert times_of(Reflected()).in_layers == 0
    made_up_clock(monkeypatch, total=3.0)
    bare = nn.Sequential(nn.Conv2d(3, 4, 8, padding_mode="circular"), nn.Flatten())
    assert probes_of(traced(bare)) == 0
    times = times_of(bare)
    assert times.in_layers == times.total == 3.0
