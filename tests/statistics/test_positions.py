"""Sums over some positions of a large map: the same ones of every image, scaled to all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sinf.graph.coupling import couple
from sinf.statistics import Fisher, KernelRows, OutputMoments, SecondMoments, Sensitivity, collect
from sinf.statistics.kernel_rows import kernel_rows_of
from sinf.statistics.positions import outer, outer_of_maps, some_positions
from tiny import COLOUR, traced


@given(st.integers(1, 600), st.integers(1, 300))
def test_positions_are_drawn_evenly_and_without_repetition(count: int, most: int) -> None:
    found = some_positions(count, most)
    if count <= most:
        assert found is None
        return
    assert found is not None
    assert len(set(found.tolist())) == most
    assert 0 <= int(found.min()) <= int(found.max()) < count
    again = some_positions(count, most)
    assert again is not None
    assert torch.equal(found, again)


@pytest.mark.parametrize("size", [1, 100, 128, 129, 300])
def test_products_stop_at_the_diagonal(size: int) -> None:
    rows = torch.randn(50, size, dtype=torch.float64)
    torch.testing.assert_close(outer(rows), rows.T @ rows)


@pytest.mark.parametrize("shape", [(4, 3, 20), (4, 20, 3)])
def test_second_moments_of_maps(shape: tuple[int, int, int]) -> None:
    maps = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(outer_of_maps(maps), torch.einsum("bop,bqp->oq", maps, maps))


class Large(nn.Module):
    """Maps of 30 x 30 that a 3 x 3 and a 1 x 1 kernel read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.second = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.norm(self.first(x)).relu()).mean((2, 3)))


def test_sums_over_some_positions_are_near_those_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    graph = traced(Large(), replace(COLOUR, size=(3, 30, 30)))
    batch = torch.randn(40, 3, 30, 30), torch.randint(6, (40,))
    needs = (SecondMoments, OutputMoments, Fisher, Sensitivity, KernelRows)

    def sums() -> dict:
        return collect(graph, couple(graph, free_output=True), [batch], classes=6, needs=needs)

    some = sums()
    for module in ("statistic", "one_pass"):
        monkeypatch.setattr(f"sinf.statistics.{module}.some_positions", lambda count: None)
    monkeypatch.setattr("sinf.statistics.kernel_rows.some_positions", lambda count, most: None)
    every = sums()
    for target in ("first", "second"):
        one, other = some[target], every[target]
        for kind in (SecondMoments, OutputMoments):
            assert int(one[kind].count) == int(other[kind].count) == 40 * 900
            assert not torch.equal(one[kind].gram, other[kind].gram)
            assert float((one[kind].gram - other[kind].gram).norm() / other[kind].gram.norm()) < 0.1
        for kind in (Fisher, Sensitivity):  # sums of gradients are over all positions
            torch.testing.assert_close(one[kind].total, other[kind].total)
    one, other = some["first"][KernelRows], every["first"][KernelRows]
    assert torch.allclose(one.counts, other.counts)
    assert float((one.gram - other.gram).norm() / other.gram.norm()) < 0.1
    assert float((one.products - other.products).norm() / other.products.norm()) < 0.1


def test_kernel_rows_of_some_columns_by_hand() -> None:
    layer = nn.Conv2d(2, 3, (3, 3), stride=(1, 2), padding=(0, 1), dilation=(1, 2))
    x = torch.randn(5, 2, 60, 41)
    found = kernel_rows_of(layer, x)
    padded = nn.functional.pad(x, (1, 1))
    width = (41 + 2 - 5) // 2 + 1
    at = some_positions(width, 4)
    assert at is not None
    kernel_rows = torch.stack([padded[..., 2 * at + 2 * column] for column in range(3)], 2)  # (5, C, kw, 60, columns)
    flat = kernel_rows.transpose(0, 1).transpose(1, 2).flatten(0, 1).flatten(1).double()
    scale = width / len(at)
    torch.testing.assert_close(found.gram, scale * flat @ flat.T, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.total, scale * flat.sum(1), rtol=1e-4, atol=1e-3)
    product = scale * (kernel_rows[..., 1:, :] * kernel_rows[..., :-1, :]).sum().double()
    torch.testing.assert_close(found.products[1], product, rtol=1e-3, atol=1e-2)
    assert found.count == pytest.approx(5 * 60 * width)
