"""The budget of memory: sizes that are read and said, batches that fit, values that are counted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from sinf.errors import ConfigError
from sinf.machine import memory
from sinf.machine.memory import OVERHEAD, Memory, activations, parse
from tiny import COLOUR, NETWORKS, traced


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("800 MB", 800 * 10**6), ("2GiB", 2 << 30), ("1.5gb", 1_500_000_000), ("3G", 3 * 10**9)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "8GBit", "GB", "1e9", "8 B B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="8GB"):
        parse(text)


@given(
    st.integers(10**8, 10**11), st.integers(1, 10**10), st.integers(1, 512), st.integers(0, 10**10), st.integers(1, 8)
)
def test_a_batch_fits_or_is_refused(budget: int, each: int, most: int, fixed: int, least: int) -> None:
    plan = Memory(budget)
    try:
        count = plan.batch("statistics", each, most, fixed=fixed, least=least)
    except ConfigError:
        assert OVERHEAD + fixed + min(least, most) * each > 0.9 * budget - 1
        return
    assert min(least, most) <= count <= most
    assert OVERHEAD + fixed + count * each <= budget
    assert count == most or OVERHEAD + fixed + (count + 1) * each > 0.9 * budget - 1
    assert plan.steps[-1].bytes <= budget


def test_an_error_names_the_step_and_what_it_would_take() -> None:
    with pytest.raises(ConfigError, match=r"statistics must fit .*1\.0 GB.* 3\.0 GB .*--memory 3GB"):
        Memory(1_000_000_000).batch("statistics", 2 * 10**9, 50)


def test_the_summary_names_the_largest_step_and_the_smaller_batches() -> None:
    plan = Memory(3 * 10**9)
    plan.batch("features", 10**6, 50)
    plan.batch("statistics", 10**8, 50)
    text = plan.summary()
    assert "statistics" in text
    assert "of 3.0 GB" in text
    assert "batches of 20 in statistics" in text
    assert "50" not in text


class Live(fx.Interpreter):
    """Counts what is alive while a graph runs, as a graph's own code forgets it."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.peak = 0

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        values = [*(v for node, v in self.env.items() if node.op != "get_attr"), value if n.op != "get_attr" else None]
        self.peak = max(self.peak, sum(v.nbytes for v in values if isinstance(v, Tensor)))
        return value


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_what_is_alive_is_counted(name: str) -> None:
    """Scratch and slack come on top, but no network is counted several times."""
    graph = traced(NETWORKS[name]())
    live = Live(graph)
    live.run(torch.randn(1, *COLOUR.size))
    counted = activations(graph)
    assert live.peak <= counted.forward <= 4 * live.peak
    assert counted.forward <= counted.backward


def test_a_value_that_is_read_late_is_alive_until_then() -> None:
    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wide = x.repeat(1, 10, 1, 1)
            small = x.sum((2, 3), keepdim=True)
            for _ in range(3):
                small = small + 1
            return (wide + small.repeat(1, 10, 1, 1)).mean((2, 3))

    class Early(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wide = x.repeat(1, 10, 1, 1)
            return wide.mean((2, 3))

    image = 4 * 3 * 8 * 8
    assert activations(traced(Early())).forward < 13 * image
    assert activations(traced(Late())).forward > 20 * image


def test_sizes_for_people() -> None:
    assert [memory.say(size) for size in (2.14e9, 5e6)] == ["2.1 GB", "5 MB"]
