"""The network that a scope starts from, and parts of the base model that are made of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx

from scopes import WHOLE, limited, scope_of
from sinf.compress.compressor import Scope
from sinf.compress.select import Budget
from sinf.errors import ConfigError
from sinf.graph.apply import apply
from sinf.graph.cost import MacCount
from sinf.graph.coupling import Coupling, couple
from sinf.graph.cut import cut_points, find_cut, partition
from sinf.graph.delta import Constant, Factors, LayerDelta, Weights
from sinf.graph.network import Part
from sinf.statistics import Change, collect
from times import times_of
from tiny import CLASSES, Mixed, traced

INNER, LAST = "pieces.0.body.0.0", "pieces.0.body.1"  # of a residual branch


def factored() -> tuple[Scope, Tensor]:
    """A network without the first channel of its branch, and with the last layer of the branch as two."""
    scope, x = scope_of(Mixed(["residual", "plain"]))
    keep = scope.start.keep.clone()
    keep[scope.coupling.writes[INNER].units[0]] = False
    layer = scope.graph.get_submodule(LAST)
    out, into = layer.weight.shape[:2]
    pair = Factors(torch.randn(2, into - 1, 1, 1), torch.randn(out, 2, 1, 1), torch.randn(out))
    return replace(scope, start=Part(keep, {LAST: pair})), x


def test_what_starts_from_the_base_model_is_it() -> None:
    scope, _ = scope_of(Mixed(["residual"]))
    assert scope.started.graph is scope.graph
    assert scope.started.coupling is scope.coupling
    assert scope.count(WHOLE, Budget(0.5)) is scope.regions[WHOLE].macs


@torch.no_grad()
def test_it_answers_as_its_part_does() -> None:
    scope, x = factored()
    expected = apply(scope.graph, scope.coupling, scope.start.keep, scope.start.layers)
    assert torch.equal(scope.started.graph(x), expected(x))
    assert not torch.allclose(scope.started.graph(x), scope.graph(x))
    count = MacCount(expected, scope.coupling)
    assert scope.count(WHOLE, Budget(0.5)).by_layer() == count.by_layer()


CHANGES: dict[str, dict[str, LayerDelta]] = {
    "first of two": {f"{LAST}.reduce": Weights(torch.ones(3, 4, 1, 1))},
    "second of two": {f"{LAST}.expand": Weights(torch.ones(4, 2, 1, 1), torch.arange(4.0))},
    "second of two with its bias": {f"{LAST}.expand": Weights(torch.ones(4, 2, 1, 1))},
    "constant": {f"{LAST}.expand": Constant(torch.arange(4.0))},
    "another layer": {INNER: Weights(torch.ones(4, 4, 3, 3))},
}


@pytest.mark.parametrize("layers", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_what_is_made_of_it_is_a_part_of_the_base_model(layers: dict[str, LayerDelta]) -> None:
    scope, x = factored()
    started = scope.started
    if f"{LAST}.reduce" in layers:  # of three channels, then the second has three, too
        layers = layers | {f"{LAST}.expand": Weights(torch.ones(4, 3, 1, 1), torch.arange(4.0))}
        (pair,) = started.part(layers).layers.values()
        assert isinstance(pair, Factors)
        assert pair.reduce.shape[0] == pair.expand.shape[1] == 3
        layers = {f"{LAST}.reduce": Weights(torch.ones(2, 4, 1, 1))}
    expected = apply(started.graph, started.coupling, started.coupling.keep_all(), layers)(x)
    part = started.part(layers)
    torch.testing.assert_close(apply(scope.graph, scope.coupling, part.keep, part.layers)(x), expected)
    assert not torch.allclose(expected, started.graph(x))


@pytest.mark.parametrize(
    ("half", "delta"),
    [
        ("reduce", Constant(torch.zeros(2))),
        ("reduce", Weights(torch.ones(2, 4, 1, 1), torch.zeros(2))),
        ("expand", Factors(torch.ones(1, 2, 1, 1), torch.ones(4, 1, 1, 1), torch.zeros(4))),
    ],
    ids=["constant", "bias", "two again"],
)
def test_one_of_two_layers_takes_weights(half: str, delta: LayerDelta) -> None:
    scope, _ = factored()
    with pytest.raises(ConfigError, match=f"two layers takes .*got {delta.kind} for {half}"):
        scope.started.part({f"{LAST}.{half}": delta})


def test_a_budget_of_time_takes_layers_that_were_timed() -> None:
    scope, _ = factored()
    budget = Budget(0.5, times=times_of(MacCount(scope.graph, scope.coupling), {INNER: 1.0}))
    with pytest.raises(ConfigError, match="got 1 layers"):
        scope.count(WHOLE, budget)
    narrow = replace(scope, start=Part(scope.start.keep))
    assert narrow.count(WHOLE, budget).by_layer() == MacCount(narrow.started.graph, scope.coupling).by_layer()


def test_a_tail_reads_all_features_where_no_channels_are_removed() -> None:
    graph = traced(Mixed(["residual", "plain"]))
    cut = find_cut(graph, cut_points(graph)[0].name)
    tail, coupling = partition(graph, cut).tail, couple(graph, free_output=True)
    slot, keep = coupling.values[cut.node], coupling.keep_all()
    whole = scope_of(Mixed(["residual"]))[0]
    scope = replace(whole, graph=tail, coupling=coupling, start=Part(keep.clone()), slot=slot)
    assert scope.started.graph is tail
    keep[slot.units[:1]] = False
    with pytest.raises(ConfigError, match="got 3 of 4 channels"):
        _ = replace(scope, start=Part(keep)).started


def test_sums_of_a_network_for_some_classes_are_those_of_their_answer() -> None:
    """Labels are those of all classes."""
    whole, x = scope_of(Mixed(["residual", "plain"]))
    scope, labels = limited(whole, [1, 4]), torch.arange(len(x)) % CLASSES

    def sums(graph: fx.GraphModule, coupling: Coupling) -> dict[str, Tensor]:
        changes = collect(graph, coupling, [(x, labels)], classes=CLASSES, answer=[1, 4], needs=(Change,)).units[Change]
        return {target: changes.total[coupling.reads[target].units] for target in coupling.mixers.values()}

    base, few = sums(scope.graph, scope.coupling), sums(scope.started.graph, scope.started.coupling)
    assert base.keys() == few.keys()
    for name, expected in base.items():
        torch.testing.assert_close(few[name], expected)
