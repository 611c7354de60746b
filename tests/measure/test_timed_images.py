"""Images on which times are taken are as hard as all are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sinf.data.images import LabelledImages
from sinf.data.preprocessing import Preprocessing
from sinf.measure import timed_images as module
from sinf.measure.delivery import answers_with_margins
from sinf.measure.timed_images import spread, timed_images


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=200).map(lambda values: torch.tensor(values).float()),
    st.integers(1, 250), st.integers(0, 5), st.integers(0, 20),
)  # fmt: skip
def test_as_many_are_below_any_threshold_as_of_all(values: Tensor, count: int, seed: int, threshold: int) -> None:
    rows = spread(values, count, seed)
    assert len(rows) == min(count, len(values))
    assert len(rows.unique()) == len(rows)
    expected = len(rows) * float((values < threshold).double().mean())
    assert abs(float((values[rows] < threshold).sum()) - expected) <= 1


def test_their_order_is_drawn_by_the_seed() -> None:
    values = torch.arange(300.0)
    rows = spread(values, 100, 0)
    assert rows.tolist() == spread(values, 100, 0).tolist() != spread(values, 100, 1).tolist()
    assert rows.tolist() != rows.sort().values.tolist()


def test_images_are_spread_by_the_margin_of_the_model(tiny_images: LabelledImages) -> None:
    fed = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3)

    def brightness(x: Tensor) -> Tensor:
        """Logits whose margin is the mean of an image."""
        return torch.stack([torch.zeros(len(x)), x.mean((1, 2, 3)) + 10], 1)

    told: list[tuple[int, int]] = []
    answers, margins = answers_with_margins(brightness, tiny_images, fed, lambda *done: told.append(done))
    assert (answers == 1).all()
    found = timed_images(tiny_images, margins, fed, batch=2, pairs=3)
    assert found.shape == (6, 3, 8, 8)
    means = tiny_images.inputs(fed)[:].mean((1, 2, 3)).sort().values
    parts = torch.bucketize(found.mean((1, 2, 3)), means) * 6 // len(means)
    assert sorted(parts.tolist()) == [0, 1, 2, 3, 4, 5]
    assert told[-1] == (len(tiny_images), len(tiny_images))


@pytest.mark.parametrize(
    ("batch", "pairs", "most", "found"), [(1, 1, 9, 1), (4, 5, 9, 9), (12, 5, 9, 12), (9, 999, 9999, 0)]
)
def test_no_more_than_there_are_and_memory_holds(
    tiny_images: LabelledImages, monkeypatch: pytest.MonkeyPatch, batch: int, pairs: int, most: int, found: int
) -> None:
    monkeypatch.setattr(module, "_MOST", most)
    fed = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3)
    timed = timed_images(tiny_images, torch.arange(len(tiny_images)).float(), fed, batch=batch, pairs=pairs)
    assert len(timed) == (found or len(tiny_images))
