"""Budgets of MACs and of measured time: the same choices by either where time is proportional to MACs, others where it
is not, and never more than the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from sinf.compress.low_rank.choose import Rank, choose_ranks
from sinf.compress.low_rank.metric import Losses
from sinf.compress.prices import Prices
from sinf.compress.select import Budget, select
from sinf.errors import ConfigError
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.price import LayerTimes, Line, Price
from times import times_of
from tiny import CLASSES, Attention, Chain, Shared, traced

TARGETS = ("first.0", "second.0", "head")


def counted(graph: fx.GraphModule) -> MacCount:
    return MacCount(graph, couple(graph))


def metrics_of(count: MacCount, seed: int = 0) -> dict[str, Losses]:
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for target in Prices(Budget(1.0), count).targets():
        module = next(m for name, m, _ in count.nodes if name == target)
        out, into = module.weight.shape[:2]
        values = torch.rand(out, generator=draw).sort(descending=True).values
        rows = (
            torch.rand(into * 3, generator=draw).sort(descending=True).values if module.weight.ndim == 4 else values[:0]
        )
        found[target] = Losses(values, rows, rows, 16.0, 1)
    return found


def spent(times: LayerTimes, count: MacCount, ranks: dict[str, Rank]) -> float:
    prices = Prices(Budget(1.0, times=times), count)
    total = prices.rest
    for target in prices.targets():
        cost, rank = prices.layer_cost(target, 0.0), ranks.get(target)
        line = None if rank is None else cost.separable if rank.separable else cost.channels
        total += cost.whole if line is None or rank is None else line.at(rank.channels)
    return total


@given(share=st.floats(0.35, 0.95), seed=st.integers(0, 5), dear=st.sampled_from(TARGETS), scale=st.floats(0.1, 10))
@settings(max_examples=40, deadline=None)
def test_ranks_stay_within_a_budget_of_time(share: float, seed: int, dear: str, scale: float) -> None:
    count = counted(traced(Chain()))
    times = times_of(count, {dear: scale}, rest=100.0)
    known = metrics_of(count, seed)
    least = spent(times, count, {target: Rank(1, metric.kernel_rows.numel() > 0) for target, metric in known.items()})
    if least > share * times.total:
        with pytest.raises(ConfigError, match="at least"):
            choose_ranks(Budget(share, times=times), count, known, 1)
    else:
        ranks = choose_ranks(Budget(share, times=times), count, known, 1)
        assert spent(times, count, ranks) <= share * times.total * (1 + 1e-9)


def test_time_decides_where_it_is_not_what_macs_are() -> None:
    count = counted(traced(Chain()))
    known = metrics_of(count)
    same_prices = choose_ranks(Budget(0.7, times=times_of(count)), count, known, 1)
    dear = choose_ranks(Budget(0.7, times=times_of(count, {"head": 50.0})), count, known, 1)
    assert "head" in dear
    assert same_prices != dear


def test_a_second_call_costs_too() -> None:
    """A layer whose two halves take longer than it does whole stays whole, however few MACs they have."""
    count = counted(traced(Chain()))
    known, times = metrics_of(count), times_of(count)
    calls = 0.5 * times.total
    layers = tuple(
        (target, Price(price.widths, Line(calls, price.channels.each), None) if price.channels else price)
        if target == "second.0"
        else (target, price)
        for target, price in times.layers
    )
    ranks = choose_ranks(
        Budget(0.8, times=LayerTimes("", "f32", times.total, times.in_layers, layers)), count, known, 1
    )
    assert "second.0" not in ranks


def test_as_many_channels_as_outputs_save_nothing() -> None:
    """Whatever the clock says: the layer would be there as it is, and another after it."""
    count = counted(traced(Chain()))
    known, times = metrics_of(count), times_of(count)
    layers = tuple(
        (target, replace(price, channels=Line(0.8 * price.widths.at(5, 6), 0.0), separable=None))
        if target == "second.0"
        else (target, price)
        for target, price in times.layers
    )
    noisy = replace(times, layers=layers)
    ranks = choose_ranks(Budget(0.9, times=noisy), count, known, 1)
    assert ranks.get("second.0") in (None, Rank(4))


def test_channels_go_where_time_is() -> None:
    graph = traced(Chain())
    coupling = couple(graph)
    count, groups = MacCount(graph, coupling), list(coupling.groups.values())
    importance = {group.name: torch.ones(group.size) for group in groups}

    def widths(times: LayerTimes | None) -> dict[str, int]:
        keep = select(Budget(0.75, times=times), groups, importance, count, coupling.keep_all(), 1)
        return {group.name: int(keep[group.units].sum()) for group in groups}

    assert widths(times_of(count)) == widths(None)
    first, second = widths(times_of(count, {"head": 100.0})), widths(times_of(count, {"first.0": 100.0}))
    assert first != second


def test_what_is_no_layer_takes_its_share_of_time() -> None:
    count = counted(traced(Chain()))
    bare, with_rest = times_of(count), times_of(count, rest=1000.0)
    part = count.of({"first.0"})
    assert Prices(Budget(1.0, times=bare), part).rest == 0
    rest = [Prices(Budget(1.0, times=with_rest), each).rest for each in (count, part, count.of({"second.0", "head"}))]
    assert rest[0] == pytest.approx(1000.0)
    assert rest[1] + rest[2] == pytest.approx(1000.0)
    assert 0 < rest[1] < 1000


@pytest.mark.parametrize(("together", "round_to", "step"), [(1, 1, 1), (2, 1, 2), (4, 2, 4), (2, 3, 6)])
def test_ranks_are_of_channels_that_are_computed_together(together: int, round_to: int, step: int) -> None:
    """What lies between takes as long, and loses more."""
    count = counted(traced(Chain()))
    budget = Budget(0.9, times=replace(times_of(count), together=together))
    ranks = choose_ranks(budget, count, metrics_of(count), round_to)
    assert ranks
    assert all(rank.channels % step == 0 for rank in ranks.values())
    assert Prices(Budget(0.7), count).step("head", round_to) == round_to


def test_layers_that_take_longer_one_by_one_than_the_network_leave_no_rest() -> None:
    """And a budget is a share of what they take: with less than nothing beside them, more than that would stay."""
    count = counted(traced(Chain()))
    bare, known = times_of(count), metrics_of(count)
    over = replace(bare, total=0.8 * bare.total)
    assert Prices(Budget(1.0, times=over), count).rest == 0
    assert choose_ranks(Budget(0.6, times=over), count, known, 1) == choose_ranks(
        Budget(0.6, times=bare), count, known, 1
    )


def test_a_layer_that_is_called_twice_takes_its_time_twice() -> None:
    count = counted(traced(Shared()))
    times = times_of(count)
    prices = Prices(Budget(1.0, times=times), count)
    twice = next(t for t in prices.targets() if sum(name == t for name, _, _ in count.nodes) == 2)
    by_macs = Prices(Budget(1.0), count).layer_cost(twice, 16.0)
    by_time = prices.layer_cost(twice, 16.0)
    assert by_time.whole == pytest.approx(by_macs.whole)
    assert by_time.channels is not None
    assert by_macs.channels is not None
    assert by_time.channels.each == pytest.approx(by_macs.channels.each)


def test_products_of_values_count_in_macs() -> None:
    count = counted(traced(Attention()))
    assert Prices(Budget(1.0), count).rest == count.products > 0


def test_loading_weights_counts() -> None:
    count = counted(traced(Chain()))
    (bare, loaded) = (Prices(Budget(1.0, cost), count).layer_cost("head", 0.0).whole for cost in (0.0, 32.0))
    head = next(m for name, m, _ in count.nodes if name == "head")
    assert isinstance(head, nn.Linear)
    assert loaded - bare == 32 * head.weight.numel()
    assert head.out_features == CLASSES


def test_in_int8_a_layer_on_which_much_depends_is_not_made_two() -> None:
    """What stays is rounded: the more of the answer passes there, the more that loses."""
    count = counted(traced(Chain()))
    times, known = times_of(count), metrics_of(count)
    int8 = replace(times, precision="int8")
    assert (times.rounding, replace(times, precision="bf16").rounding) == (0, 0)
    assert replace(times, where="an engine called int8, batch 1").rounding == 0
    first = known["first.0"]
    names = ("values", "kernel_rows", "kernel_row_noise")
    one = {name: 1e6 * (torch.arange(len(getattr(first, name))) == 0).float() for name in names}
    known["first.0"] = replace(first, **one)  # one direction counts, and all the more
    assert "first.0" in choose_ranks(Budget(0.8, times=times), count, known, 1)
    assert "first.0" not in choose_ranks(Budget(0.8, times=int8), count, known, 1)
