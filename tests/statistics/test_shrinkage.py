"""Second moments from few rows: how far the estimate moves, and that nothing looks free by chance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sinf.criteria import make_criterion
from sinf.criteria.base import GroupStatistics, Reader
from sinf.graph.coupling import CoupledGroup
from sinf.statistics import SecondMoments, Sensitivity, SiteStatistics
from sinf.statistics.shrinkage import shrunk


def moments(rows: int, mixing: Tensor, seed: int = 0) -> Tensor:
    """Of ``rows`` rows whose true moments are ``mixing mixing'``."""
    x = torch.randn(rows, mixing.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x @ mixing.T
    return x.T @ x / rows


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 20))
def test_the_diagonal_stays_and_no_direction_is_lost(size: int, rows: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    found = moments(rows, torch.randn(size, size, dtype=torch.float64, generator=draw), seed)
    ours = shrunk(found, rows)
    torch.testing.assert_close(torch.diagonal(ours), torch.diagonal(found))
    torch.testing.assert_close(ours, ours.T)
    assert float(torch.linalg.eigvalsh(ours).min()) >= -1e-9


@pytest.mark.parametrize("seed", range(3))
def test_few_rows_come_nearer_to_the_truth(seed: int) -> None:
    """And many rows are left as they are."""
    mixing = torch.eye(30, dtype=torch.float64) + 0.1 * torch.randn(
        30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    truth = mixing @ mixing.T
    few, many = moments(15, mixing, seed), moments(100_000, mixing, seed)
    assert float((shrunk(few, 15) - truth).norm()) < 0.8 * float((few - truth).norm())
    torch.testing.assert_close(shrunk(many, 100_000), many, rtol=0, atol=1e-3)


def test_channels_that_are_zero_stay_zero() -> None:
    found = torch.zeros(4, 4)
    found[0, 0] = 2.0
    torch.testing.assert_close(shrunk(found, 3), found.double())


def test_no_channel_is_free_because_images_are_few() -> None:
    """A linear layer that reads 40 independent channels: from 20 images any channel follows exactly from the others,
    which is chance. What half of them cost is about half of the layer's energy, however few the images."""
    size, images = 40, 20
    x = torch.randn(images, size, generator=torch.Generator().manual_seed(1))
    moments = SecondMoments(x.T @ x, torch.tensor(images))
    weight = torch.randn(5, size, 1, generator=torch.Generator().manual_seed(2))
    site = SiteStatistics("head", weight, images, [moments, Sensitivity(torch.ones(5) * images)])
    group = CoupledGroup("group", torch.arange(size), ("before",), ("head",), None)
    criterion = make_criterion("residual")
    scores = criterion.score(GroupStatistics(group, [Reader(site, torch.arange(size))], []))
    energy = float((site.weight[..., 0].square().sum(0) * torch.diagonal(moments.gram) / images).sum())
    cheaper_half = float(scores.sort().values[: size // 2].sum())
    assert cheaper_half > 0.1 * energy
