"""Times of layers at any width, from probes at a few: the clock here is a formula, so that they must come out
exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sinf.compress.prices import Prices
from sinf.compress.select import Budget
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.price import LayerTimes
from sinf.measure import layer_times as module
from sinf.measure.layer_times import layer_times, probes_of
from tiny import COLOUR, NETWORKS, Attention, Chain, ChannelsLast, Depthwise, traced

Clock = Callable[[Any], float]


def formula(probe: Any) -> float:
    """Milliseconds of a probe: 1 for its stem and head, and 0.5 + 0.01 o + 0.02 i + 0.003 o i by kernel for a layer."""
    if probe is None:
        return 77.0
    return 1.0 if probe.bare else 1.0 + of_layer(probe.kind.kernel, probe.out, probe.into, probe.kind.alone)


def of_layer(kernel: tuple[int, ...], out: int, into: int, alone: bool = False) -> float:
    taps = 1
    for side in kernel:
        taps *= side
    return 0.5 + 0.01 * out if alone else 0.5 + 0.01 * out + 0.02 * into + 0.003 * taps * out * into


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Times by the formula; gives what was opened."""
    opened: list[Any] = []

    def in_turns(running: dict[Any, Any], threads: int) -> dict[Any, float]:
        opened.extend(probe for probe in running if probe is not None)
        return {probe: formula(probe) for probe in running}

    monkeypatch.setattr(module, "_in_turns", in_turns)
    return opened


def times_of(network: nn.Module, **options: Any) -> LayerTimes:
    return layer_times(traced(network), lambda x: x, COLOUR.size, "torch", **options)


class Wide(nn.Module):
    """Layers of one kind at three widths, one in the middle of which nothing is timed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 20, 3, padding=1), nn.ReLU(),
            nn.Conv2d(20, 28, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(28, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_widths_between_those_that_were_timed(clock: list[Any]) -> None:
    times = times_of(Wide())
    layers = dict(times.layers)
    for target, out, into in (("body.2", 20, 32), ("body.4", 28, 20), ("body.4", 11, 7)):
        assert layers[target].widths.at(out, into) == pytest.approx(of_layer((3, 3), out, into))
    assert layers["head"].widths.at(5, 28) == pytest.approx(of_layer((), 5, 28))
    assert times.total == 77.0
    whole = [((3, 3), 32, 3), ((3, 3), 20, 32), ((3, 3), 28, 20), ((), 5, 28)]
    assert times.in_layers == pytest.approx(sum(of_layer(*each) for each in whole))


def test_two_layers_are_the_sum_of_both(clock: list[Any]) -> None:
    price = dict(times_of(Wide()).layers)["body.2"]
    assert price.channels is not None
    assert price.separable is not None
    for rank in (4, 9, 20):
        through = of_layer((3, 3), rank, 32) + of_layer((1, 1), 20, rank)
        assert price.channels.at(rank) == pytest.approx(through)
        apart = of_layer((1, 3), rank, 32) + of_layer((3, 1), 20, rank)
        assert price.separable.at(rank) == pytest.approx(apart)


def test_kinds_are_timed_once(clock: list[Any]) -> None:
    times_of(Wide())
    assert len(clock) == len(set(clock)) == probes_of(traced(Wide()))
    convolutions = {probe.kind for probe in clock if not probe.bare and probe.kind.kernel == (3, 3)}
    assert len(convolutions) == 1


def test_depthwise_layers_are_as_wide_both_ways(clock: list[Any]) -> None:
    network = Depthwise()
    graph = traced(network)
    layers = dict(times_of(network).layers)
    found = 0
    for name, layer in graph.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            price, found = layers[name], found + 1
            assert price.channels is None
            assert price.separable is None
            assert price.widths.at(layer.out_channels, 1) == pytest.approx(
                of_layer((), layer.out_channels, 1, alone=True)
            )
    assert found
    assert all(probe.out == probe.into for probe in clock if probe.kind.alone)


@pytest.mark.parametrize("name", [*NETWORKS, "Attention"])
def test_every_call_has_a_price_or_is_part_of_the_rest(name: str, clock: list[Any]) -> None:
    graph = traced((NETWORKS | {"Attention": Attention})[name]())
    times = layer_times(graph, lambda x: x, COLOUR.size, "torch")
    count = MacCount(graph, couple(graph))
    prices = Prices(Budget(1.0, times=times), count)
    layers = sum(prices.ways(target, 0.0).whole for target in prices.targets())
    assert layers == pytest.approx(times.in_layers)
    assert prices.rest + layers == pytest.approx(times.total)


@pytest.mark.parametrize("network", [Chain, ChannelsLast, Attention])
def test_probes_run(network: type[nn.Module]) -> None:
    """For real: every probe opens and runs, and something takes time."""
    times = times_of(network(), batch=2)
    assert times.where == "torch f32, batch 2, 1 thread"
    assert times.in_layers > 0
    assert all(price.widths.at(4, 4) >= 0 or price.widths.fixed < 0 for _, price in times.layers)


def test_vectors_of_an_image_are_timed_together(clock: list[Any]) -> None:
    times_of(ChannelsLast())
    sizes = {probe.kind.size for probe in clock if not probe.kind.kernel and not probe.bare}
    assert any(size and size[0] > 1 for size in sizes)
