"""Times of layers at any width, from probes at a few: the clock here is a formula, so that they must come out
exactly."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sinf.compress.prices import Prices
from sinf.compress.select import Budget
from sinf.engine.torch_runtime import Torch
from sinf.errors import DataWarning
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.price import LayerTimes
from sinf.measure import layer_times as module
from sinf.measure.layer_table import LayerTable
from sinf.measure.layer_times import from_tensors, layer_times, probes_of, to_tensors
from times import made_up_clock, of_layer
from tiny import COLOUR, NETWORKS, Attention, Chain, ChannelsLast, Depthwise, traced


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Times by the formula; gives what was opened."""
    return made_up_clock(monkeypatch)


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


@pytest.mark.parametrize("width", [8, 16])
def test_more_ranks_than_channels_take_more_time(clock: list[Any], width: int) -> None:
    """A separable layer of few channels may have more of them between its two: each costs, whatever was timed."""
    narrow = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
    price = dict(times_of(nn.Sequential(narrow, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 6))).layers)
    separable = price["0.2"].separable
    assert separable is not None
    for rank in (width, 3 * width):
        apart = of_layer((1, 3), rank, width) + of_layer((3, 1), width, rank)
        assert separable.at(rank) == pytest.approx(apart)


def test_widths_are_of_channels_that_are_computed_together(
    clock: list[Any], table: LayerTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a line through them is one through what multiples take; ranks then are multiples too."""
    monkeypatch.setattr(Torch, "together", lambda self, precision: 16)
    times = times_of(Wide(), table=table)
    assert times.together == 16
    assert from_tensors(to_tensors(times)) == times
    widths = {width for probe in clock if not probe.bare for width in (probe.out, probe.into)}
    assert widths == {16, 32, 5, 28}  # the latter are the most of the head
    assert probes_of(traced(Wide())) == len(set(clock))


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
                of_layer(layer.kernel_size, layer.out_channels, 1, layer.in_channels)
            )
    assert found
    assert all(probe.out == probe.read for probe in clock if probe.kind.groups is None)


@pytest.mark.parametrize("name", [*NETWORKS, "Attention"])
def test_every_call_has_a_price_or_is_part_of_the_rest(name: str, clock: list[Any]) -> None:
    graph = traced((NETWORKS | {"Attention": Attention})[name]())
    times = layer_times(graph, lambda x: x, COLOUR.size, "torch")
    count = MacCount(graph, couple(graph))
    prices = Prices(Budget(1.0, times=times), count)
    layers = sum(prices.layer_cost(target, 0.0).whole for target in prices.targets())
    assert layers == pytest.approx(times.in_layers)
    assert prices.rest + layers == pytest.approx(times.total)


@pytest.mark.parametrize("network", [Chain, ChannelsLast, Attention])
def test_probes_run(network: type[nn.Module]) -> None:
    """For real: every probe opens and runs, and something takes time."""
    times = times_of(network(), batch=2)
    assert times.where == "torch f32, batch 2, 1 thread"
    assert times.in_layers > 0
    assert all(price.widths.at(4, 4) >= 0 or price.widths.fixed < 0 for _, price in times.layers)


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_what_is_stored_comes_back(clock: list[Any], table: LayerTable, precision: str) -> None:
    """To the bit, with the precision as a field of its own, which says whether rounding counts."""
    times = times_of(Wide(), table=table, precision=precision)
    assert (times.precision, times.rounding > 0) == (precision, precision == "int8")
    assert from_tensors(to_tensors(times)) == times


def test_vectors_of_an_image_are_timed_together(clock: list[Any]) -> None:
    times_of(ChannelsLast())
    sizes = {probe.kind.size for probe in clock if not probe.kind.kernel and not probe.bare}
    assert any(size and size[0] > 1 for size in sizes)


# ---- kept for other networks


class Load:
    """What other processes take, as one sets it."""

    now: float | None = 0.0

    def load(self) -> float | None:
        return Load.now


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LayerTable:
    """One whose networks are opened in no time, on an idle machine."""
    monkeypatch.setattr(module, "_opened", lambda *given: (lambda x: x, torch.zeros(1)))
    monkeypatch.setattr(module, "OtherProcesses", Load)
    monkeypatch.setattr(Load, "now", 0.0)
    return LayerTable(tmp_path)


class Wider(Wide):
    """One layer more, of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.Conv2d(28, 28, 5, padding=2))


def test_a_second_network_of_the_same_kinds_times_nothing(clock: list[Any], table: LayerTable) -> None:
    first = times_of(Wide(), table=table)
    assert len(clock) == probes_of(traced(Wide())) > 0
    clock.clear()
    told: list[tuple[int, int]] = []
    again = times_of(Wide(), table=LayerTable(table.folder), progress=lambda *done: told.append(done))
    assert clock == []
    assert again == first
    assert told == [(1, 1)]


def test_only_kinds_that_are_not_there_are_timed(clock: list[Any], table: LayerTable) -> None:
    times_of(Wide(), table=table)
    first = {probe.kind for probe in clock if not probe.bare}
    clock.clear()
    times = times_of(Wider(), table=table)
    new = {probe.kind for probe in clock if not probe.bare}
    assert (5, 5) in {kind.kernel for kind in new}
    assert not first & new
    assert times == times_of(Wider())
    assert probes_of(traced(Wider()), table) == 0


def test_kinds_that_are_narrower_than_those_that_were_timed(clock: list[Any], table: LayerTable) -> None:
    """Between the widths that were timed a network finds what it needs; beyond, it is timed anew."""
    times_of(Wide(), table=table)
    clock.clear()
    narrower = Wide()
    narrower.body[0], narrower.body[2] = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 20, 3, padding=1)
    times = times_of(narrower, table=table)
    assert clock == []
    assert dict(times.layers)["body.4"].widths.at(28, 20) == pytest.approx(of_layer((3, 3), 28, 20))
    wider = Wide()
    wider.body[0], wider.body[2] = nn.Conv2d(3, 36, 3, padding=1), nn.Conv2d(36, 20, 3, padding=1)
    times_of(wider, table=table)
    assert {probe.out for probe in clock if probe.kind.kernel == (3, 3)} == {8, 36}


@pytest.mark.parametrize(
    "changed", ["engine", "version", "precision", "threads", "batch", "processor", "format", "touched"]
)
def test_what_times_depend_on_is_timed_anew(
    clock: list[Any], table: LayerTable, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, run, options = traced(Wide()), lambda x: x, {"table": table}
    layer_times(graph, run, COLOUR.size, "torch", **options)
    clock.clear()
    engine = "onnxruntime" if changed == "engine" else "torch"
    options |= {"precision": {"precision": "int8"}, "threads": {"threads": 2}, "batch": {"batch": 2}}.get(changed, {})
    if changed == "version":
        monkeypatch.setattr(Torch, "version", "another")
    elif changed == "processor":
        monkeypatch.setattr(module, "machine", lambda: {"processor": "another"})
    elif changed == "format":
        monkeypatch.setattr(module, "FORMAT", 0)
    elif changed == "touched":
        monkeypatch.setattr(module, "_touched", lambda *given: 8)
    layer_times(graph, run, COLOUR.size, engine, **options)
    assert len(clock) == probes_of(graph)
    clock.clear()
    layer_times(graph, run, COLOUR.size, engine, **options)
    assert clock == []


def test_a_network_that_fills_more_of_the_caches() -> None:
    """By its weights, and by what its layers write for a batch, in the numbers of the precision."""
    small, large = traced(Wide()), traced(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 20_000)))
    assert module._touched(small, 1) == 2
    assert module._touched(large, 1) == 32
    assert module._touched(large, 1, "bf16") == module._touched(large, 1, "int8") == 8  # 4 million weights
    assert (module._touched(large, 80, "bf16"), module._touched(large, 80, "int8")) == (32, 8)
    assert module._touched(small, 200) == 8
    assert module._touched(small, 10_000) is None


def test_what_was_timed_on_a_loaded_machine_is_not_kept(clock: list[Any], table: LayerTable) -> None:
    Load.now = 1.5
    with pytest.warns(DataWarning, match=r"other processes took 1\.50 cores"):
        loaded = times_of(Wide(), table=table)
    assert loaded == times_of(Wide())
    Load.now = 0.1
    for timed in (probes_of(traced(Wide())), 0):
        clock.clear()
        times_of(Wide(), table=table)
        assert len(clock) == timed


def test_what_is_kept_is_not_used_on_a_loaded_machine(clock: list[Any], table: LayerTable) -> None:
    """Beside what is timed now, it would seem too fast."""
    times_of(Wide(), table=table)
    clock.clear()
    Load.now = 1.5
    with pytest.warns(DataWarning) as said:
        times_of(Wider(), table=table)
    assert len(said) == 1
    everything = probes_of(traced(Wider()))
    assert len(set(clock)) == everything < len(clock)
    assert probes_of(traced(Wider()), table) > 0
    Load.now = None  # where the system does not tell
    times_of(Wider(), table=table)
    assert probes_of(traced(Wider()), table) == 0


def test_without_a_table_nothing_is_said_of_the_load(clock: list[Any], table: LayerTable) -> None:
    Load.now = 1.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        times_of(Wide())


def test_a_damaged_entry_is_timed_again(clock: list[Any], table: LayerTable) -> None:
    first = times_of(Wide(), table=table)
    assert table.folder is not None
    for path in sorted(table.folder.iterdir())[:1]:
        path.write_text("{")
    clock.clear()
    with pytest.warns(DataWarning, match="it is measured again"):
        assert times_of(Wide(), table=table) == first
    assert len({probe.kind for probe in clock if not probe.bare}) == 1
    clock.clear()
    times_of(Wide(), table=table)
    assert clock == []
