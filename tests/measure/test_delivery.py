"""What must hold before a network is delivered: expected loss on held-out images, and time beside the base model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinf.data.images import LabelledImages
from sinf.errors import ConfigError
from sinf.measure.delivery import ExpectedLoss, Limits, describe_times, hold_out, is_faster
from sinf.measure.timing import summary
from tiny import coloured_images

ANSWERS = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=200)


@given(ANSWERS)
def test_the_loss_is_the_difference_of_two_accuracies(rows: list[tuple[int, int, int]]) -> None:
    base, ours, labels = torch.tensor(rows).T
    found = ExpectedLoss.of(base, ours, labels)
    assert found.points == pytest.approx(100 * float((base == labels).float().mean() - (ours == labels).float().mean()))
    assert found.low <= found.points + 1e-9
    assert found.points <= found.high + 1e-9
    assert found.disagreement == pytest.approx(float((base != ours).float().mean()))
    assert found.images == len(rows)


@given(ANSWERS)
def test_without_labels_the_base_model_is_right(rows: list[tuple[int, int, int]]) -> None:
    base, ours, _ = torch.tensor(rows).T
    found = ExpectedLoss.of(base, ours)
    assert found.points == pytest.approx(100 * found.disagreement)
    assert found.base_top1 is None
    assert "agreement" in str(found)


def test_the_interval_holds_as_often_as_it_says() -> None:
    """Of 300 draws of 400 images that lose 6 % and win 2 %, four points of loss lie within for about 95 %."""
    draw = torch.Generator().manual_seed(0)
    within = 0
    for _ in range(300):
        kind = torch.rand(400, generator=draw)
        base = torch.where((kind >= 0.06) & (kind < 0.08), 1, 0)
        ours = torch.where(kind < 0.06, 1, 0)
        found = ExpectedLoss.of(base, ours, torch.zeros(400, dtype=torch.int64))
        within += found.low <= 4 <= found.high
    assert 0.92 <= within / 300 <= 0.98


def test_few_images_of_which_none_changed_are_not_certain() -> None:
    few, many = (ExpectedLoss.of(torch.zeros(n), torch.zeros(n), torch.zeros(n)) for n in (20, 5000))
    assert few.points == many.points == 0
    assert few.high > 2
    assert few.high > 10 * many.high


def test_held_out_images_are_drawn_by_the_seed(tiny_images: LabelledImages) -> None:
    by_class = tiny_images.select(torch.argsort(tiny_images.labels, stable=True))
    fitting, held = hold_out(by_class, 0.3, 1000, seed=0)
    assert len(held) == 36
    assert set(fitting.digests()) | set(held.digests()) == set(tiny_images.digests())
    assert not set(fitting.digests()) & set(held.digests())
    assert len(held.labels.unique()) == len(fitting.labels.unique()) == 6
    assert hold_out(by_class, 0.3, 1000, seed=0)[1].digests() == held.digests()
    assert hold_out(by_class, 0.3, 1000, seed=1)[1].digests() != held.digests()


def test_as_many_are_held_out_as_are_looked_at(tiny_images: LabelledImages) -> None:
    """Where there are more images than decide, those that decide stay as many."""
    fitting, held = hold_out(tiny_images, 0.25, 40, seed=0)
    assert len(held) == 10
    assert len(fitting) == 110


def test_every_class_keeps_an_image(tmp_path: Path) -> None:
    images = coloured_images(tmp_path, 7, 0)
    fitting, held = hold_out(images, 0.9, 100, seed=0)
    assert not fitting.empty_classes()
    assert len(held) == 1
    with pytest.raises(ConfigError, match="held out"):
        hold_out(fitting, 0.5, 100, seed=0)


def latency(saved: float, noise: float = 0.0, batch: int = 1) -> tuple:
    base = torch.full((50,), 10.0).double()
    wave = noise * torch.sin(torch.arange(50).double())
    return (summary(torch.stack([base, base * (1 - saved) + wave]), batch, 1),)


@pytest.mark.parametrize(
    ("times", "faster"),
    [
        (latency(0.2), True),
        (latency(-0.2), False),
        (latency(0.0), False),
        (latency(0.005), False),
        (latency(0.01, noise=5), False),
        (latency(0.2) + latency(-0.2, batch=32), False),
        (latency(0.2) + latency(-0.01, noise=5, batch=32), True),
        (latency(0.0) + latency(0.1, batch=32), True),
    ],
)
def test_faster_is_surely_faster_somewhere_and_surely_slower_nowhere(times: tuple, faster: bool) -> None:
    assert is_faster(times) == faster


def test_times_are_said_with_their_sign() -> None:
    text = describe_times(latency(0.25) + latency(-0.1, batch=32))
    assert "25.0 % faster at batch 1 (25.0 .. 25.0 %)" in text
    assert "10.0 % slower at batch 32 (10.0 .. 10.0 %)" in text


@pytest.mark.parametrize(
    "wrong", [{"max_loss": 2.0}, {"max_loss": -0.1}, {"held_out": 0}, {"held_out": 1}, {"batches": ()}, {"pairs": 1}]
)
def test_limits_out_of_range(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        Limits(**wrong)
