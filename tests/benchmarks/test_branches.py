"""What is left unexplained of a residual branch, and what it costs, as the script on branches says."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from scopes import scope_of
from sinf.compress.depth import branches
from sinf.graph.cost import MacCount
from tiny import Mixed


@pytest.fixture
def script_of(script: Callable[..., ModuleType]) -> ModuleType:
    return script("branches", "candidates", "table")


@torch.no_grad()
def test_a_larger_kernel_leaves_less_unexplained(script_of: ModuleType) -> None:
    scope, x = scope_of(Mixed(["residual", "residual", "plain"]))
    ends = [branch.end for branch in branches(scope)]
    first = script_of.reads(scope, ends)
    assert set(first) == set(ends)
    assert all(start in branch.layers for branch in branches(scope) for start in [first[branch.end]])
    left = [script_of.unexplained(scope.graph, first, x, kernel) for kernel in (0, 1, 3)]
    for end in ends:
        variances = [float(each[end].trace()) for each in left]
        assert variances[0] > variances[1] > variances[2] >= 0
        ran = script_of._Ends(scope.graph, first)
        ran.run(x)
        rows = ran.written[end].flatten(2).transpose(1, 2).flatten(0, 1).double()
        torch.testing.assert_close(left[0][end], torch.cov(rows.T, correction=0), rtol=1e-3, atol=1e-6)


def test_what_a_stand_in_costs(script_of: ModuleType) -> None:
    scope, _ = scope_of(Mixed(["residual", "residual", "plain"]))
    macs = MacCount(scope.graph, scope.coupling).by_layer()
    for branch in branches(scope):
        start = script_of.reads(scope, [branch.end])[branch.end]
        one, three = (script_of.stand_in_macs(scope.graph, macs, start, branch.end, kernel) for kernel in (1, 3))
        assert three == 9 * one > 0
        assert script_of.stand_in_macs(scope.graph, macs, start, branch.end, 0) == 0


def test_what_loses_least_goes_first(script_of: ModuleType) -> None:
    lost, saved = {"a": 0.3, "b": 0.1, "c": 0.2}, {"a": 10.0, "b": 10.0, "c": 40.0}
    assert script_of.cheapest(lost, saved, 30.0) == (pytest.approx(0.2), 1)
    assert script_of.cheapest(lost, saved, 45.0) == (pytest.approx(0.3), 2)
    assert script_of.cheapest(lost, saved | {"b": 0.0}, 60.0) is None
