"""Which channels go: the paper's schedule, a budget of MACs, and the MACs themselves counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from sinf.compress.select import Budget, Candidates, Schedule, _never_empty, select, select_together
from sinf.errors import ConfigError
from sinf.graph.cost import MacCount
from sinf.graph.coupling import CoupledGroup, Coupling, couple
from sinf.graph.slice import slice_graph
from sinf.graph.trace import trace
from tiny import CLASSES, COLOUR, NETWORKS, Chain, ChannelsLast, Depthwise, Grouped, Shared, conv, random_keep, traced


class Funnel(nn.Module):
    """Three groups of 20, 24 and 13 channels, each on a quarter of the map before; the last has most of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 20), nn.MaxPool2d(2), conv(20, 24, 1), nn.MaxPool2d(2), conv(24, 13), nn.Conv2d(13, 32, 1)
        )
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


FUNNEL = ("body.0.0", "body.2.0", "body.4.0")


def funnel() -> tuple[fx.GraphModule, Coupling, list[CoupledGroup], MacCount]:
    graph = traced(Funnel())
    coupling = couple(graph)
    return graph, coupling, [coupling.groups[name] for name in FUNNEL], MacCount(graph, coupling)


def random_importance(groups: list[CoupledGroup], seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.size, generator=draw) for group in groups}


def assert_least_important_went(groups: list[CoupledGroup], importance: dict[str, Tensor], keep: Tensor) -> None:
    for group in groups:
        stays = keep[group.units]
        assert bool(stays.any())
        if not bool(stays.all()):
            assert float(importance[group.name][stays].min()) >= float(importance[group.name][~stays].max())


# ---- the schedule


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(2, 70), min_size=1, max_size=6),
    first=st.floats(0, 0.99),
    last=st.floats(0, 0.99),
    round_to=st.integers(1, 16),
)
def test_schedule_follows_the_formula_rounded_up(sizes: list[int], first: float, last: float, round_to: int) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    groups = [
        CoupledGroup(str(i), torch.arange(start, start + size), (), (), None)
        for i, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]
    importance = random_importance(groups)
    before = torch.ones(sum(sizes), dtype=torch.bool)
    macs = MacCount(fx.symbolic_trace(nn.Identity()), Coupling(sum(sizes), {}, {}, {}, {}))
    keep = select(Schedule(first, last), groups, importance, macs, before, round_to)
    assert bool(before.all())
    assert_least_important_went(groups, importance, keep)
    for depth, group in enumerate(groups):
        ratio = first + (last - first) * (depth / (len(groups) - 1) if depth else 0)
        width, wanted = int(keep[group.units].sum()), group.size * (1 - ratio)
        assert width >= min(wanted - 1e-5, group.size)
        assert width < wanted + round_to
        assert width % round_to == 0 or width == group.size
        assert width >= min(round_to, group.size)


_FUNNEL: list[tuple[fx.GraphModule, Coupling, list[CoupledGroup], MacCount]] = []


def funnel_once() -> tuple[fx.GraphModule, Coupling, list[CoupledGroup], MacCount]:
    """Built once for all examples of a property."""
    if not _FUNNEL:
        _FUNNEL.append(funnel())
    return _FUNNEL[0]


def test_schedule_by_hand() -> None:
    _, coupling, groups, macs = funnel()
    importance = random_importance(groups)

    def widths(rule: Schedule, round_to: int) -> list[int]:
        keep = select(rule, groups, importance, macs, coupling.keep_all(), round_to)
        return [int(keep[group.units].sum()) for group in groups]

    assert widths(Schedule(0.1, 0.5), 1) == [18, 17, 7]  # 20 * 0.9, 24 * 0.7, 13 * 0.5
    assert widths(Schedule(0.1, 0.5), 4) == [20, 20, 8]
    assert widths(Schedule(0.1, 0.5), 8) == [20, 24, 8]
    assert widths(Schedule(0, 0), 8) == [20, 24, 13]
    assert widths(Schedule(0.99, 0.99), 8) == [8, 8, 8]
    assert widths(Schedule(0.99, 0.99), 1) == [1, 1, 1]
    assert widths(Schedule(0.9, 0), 1) == [2, 14, 13]  # it may fall with depth


def test_among_equals_the_later_channels_go() -> None:
    _, coupling, groups, macs = funnel()
    importance = {group.name: torch.ones(group.size) for group in groups}
    keep = select(Schedule(0.5, 0.5), groups, importance, macs, coupling.keep_all(), 1)
    assert torch.nonzero(keep[groups[0].units]).flatten().tolist() == list(range(10))


class Joined(nn.Module):
    """A sum after a concatenation: one group of seven channels, of which one layer makes four and another three."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = conv(3, 4), conv(3, 3), conv(3, 7)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((torch.cat([self.left(x), self.right(x)], 1) + self.both(x)).mean((2, 3)))


def joined(last: float) -> tuple[Coupling, list[CoupledGroup], dict[str, Tensor], MacCount]:
    """The three channels of the layer on the right are the least important, by ``last``."""
    graph = traced(Joined())
    coupling = couple(graph)
    (group,) = coupling.free_groups()
    importance = torch.full((coupling.units,), 10.0)
    importance[coupling.writes["right.0"].units] = last * torch.tensor([1.0, 3.0, 2.0])
    return coupling, [group], {group.name: importance[group.units]}, MacCount(graph, coupling)


def test_no_layer_of_a_group_loses_all_its_channels() -> None:
    coupling, groups, importance, macs = joined(last=1)
    keep = select(Schedule(0.5, 0.5), groups, importance, macs, coupling.keep_all(), 1)
    right = coupling.writes["right.0"].units
    assert keep[right].tolist() == [False, True, False]
    assert bool(keep[coupling.writes["left.0"].units].all())


def test_budget_is_met_although_no_layer_loses_all_its_channels() -> None:
    coupling, groups, importance, macs = joined(last=1)
    start = macs.total()
    for budget in (0.9, 0.7, 0.6, 0.5, 0.4):
        keep = select(Budget(budget), groups, importance, macs, coupling.keep_all(), 1)
        assert bool(keep[coupling.writes["right.0"].units].any())
        assert macs.total(keep) <= budget * start


@pytest.mark.parametrize(("first", "last"), [(-0.1, 0.5), (0.1, 1.0), (1.5, 0.5), (0.1, float("nan"))])
def test_schedule_refuses_ratios_out_of_range(first: float, last: float) -> None:
    with pytest.raises(ConfigError, match=r"pruning ratio '(first|last)' must be in \[0, 1\)"):
        Schedule(first, last)


# ---- the budget


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    budget=st.floats(0.05, 1),
    round_to=st.sampled_from([1, 3, 8]),
    weight_cost=st.sampled_from([0.0, 32.0]),
)
def test_budget_is_met_or_refused(seed: int, budget: float, round_to: int, weight_cost: float) -> None:
    _, coupling, groups, macs = funnel_once()
    importance = random_importance(groups, seed)
    least = coupling.keep_all()
    for group in groups:
        least[group.units[min(round_to, group.size) :]] = False
    start, floor = (macs.total(keep, weight_cost) for keep in (coupling.keep_all(), least))
    rule = Budget(budget, weight_cost)
    if floor > budget * start:
        with pytest.raises(ConfigError, match=r"within reach.*must stay"):
            select(rule, groups, importance, macs, coupling.keep_all(), round_to)
        return
    keep = select(rule, groups, importance, macs, coupling.keep_all(), round_to)
    assert macs.total(keep, weight_cost) <= budget * start
    assert_least_important_went(groups, importance, keep)
    for group in groups:
        width = int(keep[group.units].sum())
        assert width % round_to == 0 or width == group.size
    others = torch.ones_like(keep)
    for group in groups:
        others[group.units] = False
    assert bool(keep[others].all())


def test_budget_of_everything_removes_nothing() -> None:
    _, coupling, groups, macs = funnel()
    assert bool(select(Budget(1), groups, random_importance(groups), macs, coupling.keep_all()).all())


def test_budget_is_spent_where_a_mac_costs_least() -> None:
    _, coupling, groups, macs = funnel()
    dear = {group.name: torch.full((group.size,), 100.0) for group in groups}
    for cheap in groups:
        importance = dear | {cheap.name: torch.rand(cheap.size)}
        keep = select(Budget(0.9), groups, importance, macs, coupling.keep_all(), 1)
        lost = [group.name for group in groups if not bool(keep[group.units].all())]
        assert lost == [cheap.name]


def test_budget_takes_the_single_step_that_is_cheapest_a_mac() -> None:
    """Against all single steps tried by hand: a budget that one step of any group meets."""
    _, coupling, groups, macs = funnel()
    for seed in range(5):
        importance = random_importance(groups, seed)
        start, prices = macs.total(), {}
        for group in groups:
            trial = coupling.keep_all()
            least = int(importance[group.name].argmin())
            trial[group.units[least]] = False
            prices[group.name] = float(importance[group.name][least]) / (start - macs.total(trial))
        keep = select(Budget(0.9999), groups, importance, macs, coupling.keep_all(), 1)
        assert int((~keep).sum()) == 1
        best = min(prices, key=lambda name: prices[name])
        assert not bool(keep[coupling.groups[best].units].all())


def test_weight_cost_shifts_the_removal_to_layers_with_many_weights() -> None:
    _, coupling, groups, macs = funnel()
    importance = {group.name: torch.ones(group.size) for group in groups}
    plain, weighty = (
        select(Budget(0.6, cost), groups, importance, macs, coupling.keep_all(), 1) for cost in (0.0, 1000.0)
    )
    first, last = groups[0].units, groups[-1].units
    assert int(weighty[last].sum()) < int(plain[last].sum())
    assert int(weighty[first].sum()) > int(plain[first].sum())


@pytest.mark.parametrize("rule", [Schedule(0.3, 0.3), Budget(0.9)])
def test_what_was_removed_before_stays_removed(rule: Schedule | Budget) -> None:
    _, coupling, groups, macs = funnel()
    before = coupling.keep_all()
    before[groups[0].units[4:]] = False
    start = macs.total(before)
    copy = before.clone()
    keep = select(rule, groups[1:], random_importance(groups), macs, before, 1)
    assert torch.equal(before, copy)
    assert not bool(keep[groups[0].units[4:]].any())
    assert bool(keep[groups[0].units[:4]].all())
    if isinstance(rule, Budget):
        assert 0.8 * start < macs.total(keep) <= 0.9 * start


@pytest.mark.parametrize("macs", [0, -0.5, 1.01, float("nan")])
def test_budget_out_of_range_is_refused(macs: float) -> None:
    with pytest.raises(ConfigError, match=r"MAC budget must be in \(0, 1\]"):
        Budget(macs)


@pytest.mark.parametrize("cost", [-1, float("nan"), float("inf")])
def test_weight_cost_out_of_range_is_refused(cost: float) -> None:
    with pytest.raises(ConfigError, match="weight_cost"):
        Budget(0.5, cost)


def test_budget_out_of_reach_says_what_is_within() -> None:
    _, coupling, groups, macs = funnel()
    with pytest.raises(ConfigError, match=r"got 0\.01 of the part's MACs; at least 0\.\d{3} must stay") as error:
        select(Budget(0.01), groups, random_importance(groups), macs, coupling.keep_all(), 8)
    within = float(str(error.value).split("at least ")[1].split()[0])
    keep = select(Budget(within + 0.001), groups, random_importance(groups), macs, coupling.keep_all(), 8)
    assert [int(keep[group.units].sum()) for group in groups] == [8, 8, 8]


# ---- one budget for several parts


def greedy(budget: Budget, part: Candidates, round_to: int) -> Tensor:
    """The descent by its definition: every step tries every group, and every trial walks over all layers."""
    keep, widths = part.keep.clone(), {group.name: group.size for group in part.groups}
    start = cost = part.macs.total(keep, budget.weight_cost)
    while cost > budget.macs * start:
        best = None
        for group in part.groups:
            width = (math.ceil(widths[group.name] / round_to) - 1) * round_to
            order = torch.argsort(part.importance[group.name], descending=True, stable=True)
            ordered = part.importance[group.name][order].double()
            while width >= 1:
                trial = keep.clone()
                trial[group.units[order[width:]]] = False
                trial = _never_empty(trial, part)
                left = part.macs.total(trial, budget.weight_cost)
                if left < cost:
                    price = float(ordered[width : widths[group.name]].sum()) / (cost - left)
                    if best is None or price < best[0]:
                        best = price, group.name, width, trial, left
                    break
                width -= round_to
        if best is None:
            raise ConfigError("out of reach")
        _, name, widths[name], keep, cost = best
    chosen = part.keep.clone()
    for group in part.groups:
        order = torch.argsort(part.importance[group.name], descending=True, stable=True)
        chosen[group.units[order[widths[group.name] :]]] = False
    return _never_empty(chosen, part)


@pytest.mark.parametrize("name", [*NETWORKS, "Joined"])
def test_a_budget_chooses_what_the_definition_of_the_descent_chooses(name: str) -> None:
    graph = traced(Joined() if name == "Joined" else NETWORKS[name]())
    coupling = couple(graph)
    groups, macs = coupling.free_groups(), MacCount(graph, coupling)
    for seed, share, round_to, weight_cost in ((0, 0.7, 1, 0.0), (1, 0.5, 3, 32.0), (2, 0.85, 8, 0.5)):
        part = Candidates(groups, random_importance(groups, seed), macs, coupling.keep_all())
        budget = Budget(share, weight_cost)
        try:
            expected = greedy(budget, part, round_to)
        except ConfigError:
            with pytest.raises(ConfigError):
                select_together(budget, [part], [1.0], round_to)
            continue
        assert torch.equal(select_together(budget, [part], [1.0], round_to)[0], expected)


def test_the_layers_are_not_walked_over_for_every_choice_that_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    _, coupling, groups, macs = funnel()
    walks = []
    monkeypatch.setattr(MacCount, "by_layer", lambda *given, by=MacCount.by_layer: walks.append(1) or by(*given))
    select(Budget(0.2), groups, random_importance(groups), macs, coupling.keep_all(), 1)
    assert len(walks) <= 1


def test_one_part_alone_has_the_budget_for_itself() -> None:
    _, coupling, groups, macs = funnel()
    importance = random_importance(groups)
    alone = select(Budget(0.5), groups, importance, macs, coupling.keep_all(), 1)
    (together,) = select_together(Budget(0.5), [Candidates(groups, importance, macs, coupling.keep_all())], [0.3], 1)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1)])
def test_a_budget_of_the_whole_is_a_mean_over_inputs(shares: tuple[float, float]) -> None:
    _, coupling, groups, macs = funnel()
    parts = [Candidates(groups, random_importance(groups, seed), macs, coupling.keep_all()) for seed in (1, 2)]
    kept = select_together(Budget(0.6), parts, shares, 1)
    mean = sum(share * macs.total(keep) for share, keep in zip(shares, kept, strict=True)) / macs.total()
    assert 0.55 < mean <= 0.6


def test_a_budget_of_the_whole_is_spent_in_the_part_where_it_costs_least() -> None:
    _, coupling, groups, macs = funnel()
    cheap = random_importance(groups)
    dear = {name: 1000 + values for name, values in cheap.items()}
    parts = [Candidates(groups, importance, macs, coupling.keep_all()) for importance in (dear, cheap)]
    first, second = select_together(Budget(0.8), parts, (0.5, 0.5), 1)
    assert bool(first.all())
    assert macs.total(second) <= 0.6 * macs.total()


def test_parts_that_are_equal_end_equal() -> None:
    _, coupling, groups, macs = funnel()
    part = Candidates(groups, random_importance(groups), macs, coupling.keep_all())
    first, second = select_together(Budget(0.5), [part, part], (0.5, 0.5), 1)
    assert abs(macs.total(first) - macs.total(second)) < 0.1 * macs.total()
    assert int((first ^ second).sum()) <= 2  # one of them may be a step ahead


def test_a_budget_of_the_whole_out_of_reach_is_refused() -> None:
    _, coupling, groups, macs = funnel()
    part = Candidates(groups, random_importance(groups), macs, coupling.keep_all())
    with pytest.raises(ConfigError, match="within reach"):
        select_together(Budget(0.01), [part, part], (0.5, 0.5), 8)


# ---- MACs


@pytest.mark.parametrize(
    ("cls", "by_hand"),
    [
        (Chain, {"first.0": 64 * 27 * 6, "second.0": 64 * 54 * 5, "head": 80 * 6}),
        (Grouped, {"stem.0": 64 * 27 * 6, "grouped.0": 64 * 9 * 2 * 12, "head": 12 * 6}),
        (ChannelsLast, {"stem.0": 64 * 27 * 6, "up": 64 * 6 * 9, "down": 64 * 9 * 6, "head": 6 * 6}),
        (Shared, {"stem.0": 64 * 27 * 5, "twice": 2 * 64 * 45 * 5, "head": 5 * 6}),
        (
            Depthwise,
            {"expand.0": 64 * 3 * 8, "depthwise.0": 64 * 9 * 8, "squeeze": 8 * 4, "excite": 4 * 8}
            | {"project.0": 64 * 8 * 5, "head": 5 * 6},
        ),
    ],
)
def test_macs_by_hand(cls: type[nn.Module], by_hand: dict[str, int]) -> None:
    graph = traced(cls())
    macs = MacCount(graph, couple(graph))
    assert macs.by_layer() == by_hand
    assert macs.total() == sum(by_hand.values())


def test_macs_of_a_stride_count_the_positions_that_are_written() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, (3, 1), stride=2), nn.Flatten(), nn.Linear(4 * 3 * 4, CLASSES))
    graph = traced(net)
    assert MacCount(graph, couple(graph)).by_layer() == {"0": 12 * 9 * 4, "2": 48 * 6}


def test_weight_cost_counts_every_weight() -> None:
    graph = traced(Depthwise())
    macs = MacCount(graph, couple(graph))
    plain, weighty = macs.by_layer(), macs.by_layer(weight_cost=32)
    for target, count in plain.items():
        assert weighty[target] - count == 32 * graph.get_submodule(target).weight.numel()


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_with_some_kept_are_those_of_the_sliced_network(name: str) -> None:
    graph = traced(NETWORKS[name]())
    coupling = couple(graph, free_output=True)
    macs = MacCount(graph, coupling)
    for seed in range(3):
        keep = random_keep(coupling, 0.5, seed)
        sliced = trace(slice_graph(graph, coupling, keep), COLOUR)
        assert MacCount(sliced, couple(sliced)).by_layer() == macs.by_layer(keep)
        assert macs.by_layer(keep, 8.0) == MacCount(sliced, couple(sliced)).by_layer(weight_cost=8.0)
    assert macs.total(keep) < macs.total() == macs.total(coupling.keep_all())


def test_macs_are_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    graph = traced(Funnel())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        graph(torch.randn(1, *COLOUR.size))
    assert math.isclose(2 * MacCount(graph, couple(graph)).total(), counter.get_total_flops())
