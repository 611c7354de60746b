"""What forms of low rank lose, as the script on forms says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType

import pytest
import torch

from scopes import scope_of
from sinf.compress.low_rank import Metric, metrics
from sinf.statistics import Fisher, KernelRows, OutputMoments, SiteStatistics, collect
from tiny import Mixed


@pytest.fixture
def script_of(script: Callable[..., ModuleType]) -> ModuleType:
    return script("forms", "candidates", "table")


@pytest.fixture(scope="module")
def layer() -> tuple[SiteStatistics, Metric]:
    """The last layer of a small network with a kernel of three rows, the same in every run. With other random weights
    the correlation of rows, estimated by their distance, may be indefinite; then the separable form says other losses,
    and the last directions may win less than nothing."""
    torch.manual_seed(1)
    scope, x = scope_of(Mixed(["plain", "plain", "plain"]))
    batches = [(x, torch.arange(len(x)) % 3)]
    statistics = collect(scope.graph, scope.coupling, batches, classes=3, needs=(OutputMoments, Fisher, KernelRows))
    target = [name for name, site in statistics.items() if site[KernelRows].present][-1]
    return statistics[target], metrics(statistics)[target]


def test_fewer_directions_of_the_inputs_lose_more(script_of: ModuleType, layer: tuple[SiteStatistics, Metric]) -> None:
    between = script_of.Between(*layer)
    lost = [between.of_inputs(rank) for rank in range(between.shape[1] + 1)]
    assert lost[-1] == pytest.approx(0, abs=1e-6 * lost[0])
    assert all(more >= less - 1e-9 * lost[0] for more, less in pairwise(lost))
    # Without any direction all is lost that varies: as much as the separable form says of rank 0.
    assert lost[0] == pytest.approx(0.5 * float(layer[1].kernel_rows.sum()), rel=1e-6)


def test_smaller_forms_lose_more(script_of: ModuleType, layer: tuple[SiteStatistics, Metric]) -> None:
    """With fewer weights none of them loses less."""
    losses = torch.tensor(list(script_of.losses(*layer)))
    assert losses.shape == (len(script_of.SHARES), 3)
    assert (losses[1:] >= losses[:-1] - 1e-9).all()
