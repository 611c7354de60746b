"""Scores by which a cascade's inputs are deferred, and how many go by each."""

from __future__ import annotations

import numpy as np
import pytest
from deferral import deferred, scores
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.tuples(st.floats(-3, 3), st.booleans()), min_size=1, max_size=40), st.floats(0, 1))
def test_what_stands_differs_as_rarely_as_asked_and_no_fewer_are_deferred(
    images: list[tuple[float, bool]], at_most: float
) -> None:
    score, agree = np.array([s for s, _ in images]), np.array([a for _, a in images])
    order, count = np.argsort(score, kind="stable"), round(deferred(score, agree, at_most) * len(images))
    assert (~agree[order[count:]]).sum() <= at_most * len(images)
    if count:
        assert (~agree[order[count - 1 :]]).sum() > at_most * len(images)


def test_scores_of_sure_answers_are_larger() -> None:
    """Of logits of which one half has a first class far above the others, and the tails agree there."""
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(400, 6))
    sure = np.arange(400) % 2 == 0
    logits[sure, draw.integers(0, 6, 200)] += 8
    found = scores(logits, sure ^ (draw.random(400) < 0.05))
    assert len(found) == 8
    for name, score in found.items():
        assert score.shape == (400,)
        assert np.median(score[sure]) > np.quantile(score[~sure], 0.9), name


def test_the_best_order_defers_what_differs_alone() -> None:
    agree = np.array([True, False, True, False, True])
    assert deferred(agree.astype(float), agree, 0.0) == pytest.approx(0.4)
    assert deferred(-agree.astype(float), agree, 0.0) == 1.0
    assert deferred(agree.astype(float), agree, 0.4) == 0.0
