"""The losses against loops written from the formulas, and where they have an edge."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sinf.dynamic import losses


def slow_weights(cross_entropy: Tensor, before: float, c: float) -> list[float]:
    return [max(0.0, 1 - float(ce) / (c * before)) for ce in cross_entropy]


def slow_complexity(saliencies: list[Tensor], weights: list[float]) -> float:
    total = 0.0
    for layer in saliencies:
        images = [w * sum(row.tolist()) / len(row) for w, row in zip(weights, layer, strict=True)]
        total += sum(images) / len(images)
    return total


def cosine(a: Tensor, b: Tensor) -> float:
    length = math.sqrt(float((a * a).sum())) * math.sqrt(float((b * b).sum()))
    return float((a * b).sum()) / length if length else 0.0


def slow_similarity(features: list[Tensor], saliencies: list[Tensor]) -> float:
    total = 0.0
    for f, s in zip(features, saliencies, strict=True):
        images = range(len(f))
        total += sum((cosine(f[i], f[j]) - cosine(s[i], s[j])) ** 2 for i in images for j in images) / len(f) ** 2
    return total


@pytest.fixture(params=[1, 2, 7])
def layers(request: pytest.FixtureRequest) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Features, saliencies (some of them zero) and cross entropies of a batch."""
    batch = request.param
    features = [torch.rand(batch, c) for c in (3, 5)]
    return features, [torch.randn(batch, u).relu() for u in (4, 6)], torch.rand(batch) * 2


def test_instance_weights(layers: tuple) -> None:
    ours = losses.instance_weights(layers[2], 1.3, 0.5)
    assert ours.tolist() == pytest.approx(slow_weights(layers[2], 1.3, 0.5), abs=1e-6)


def test_complexity(layers: tuple) -> None:
    weights = losses.instance_weights(layers[2], 1.3, 0.5)
    expected = slow_complexity(layers[1], weights.tolist())
    assert float(losses.complexity(layers[1], weights)) == pytest.approx(expected, abs=1e-6)


def test_similarity(layers: tuple) -> None:
    assert float(losses.similarity(*layers[:2])) == pytest.approx(slow_similarity(*layers[:2]), abs=1e-5)


def test_boosting_penalty(layers: tuple) -> None:
    expected = sum(float(s.abs().sum()) / len(s) for s in layers[1])
    assert float(losses.boosting_penalty(layers[1])) == pytest.approx(expected, rel=1e-5)


def test_shares_of_a_batch_add_up() -> None:
    saliencies, weights = [torch.rand(6, 3), torch.rand(6, 4)], torch.rand(6)
    parts = [losses.complexity([s[rows] for s in saliencies], weights[rows], 6) for rows in (slice(2), slice(2, 6))]
    assert float(sum(parts)) == pytest.approx(float(losses.complexity(saliencies, weights)), rel=1e-5)


def test_hard_inputs_weigh_nothing_and_known_ones_all() -> None:
    assert losses.instance_weights(torch.tensor([0.0, 0.5, 0.6, 100.0]), 1.0).tolist() == [1, 0, 0, 0]


def test_before_the_first_epoch_every_input_weighs_the_same() -> None:
    assert losses.instance_weights(torch.tensor([0.0, 5.0]), math.inf).tolist() == [1, 1]


def test_a_perfect_epoch_leaves_weights_finite() -> None:
    assert losses.instance_weights(torch.tensor([0.0, 1e-9]), 0.0).tolist() == [1, 0]


def test_weights_carry_the_gradient_that_they_are_given() -> None:
    cross_entropy = torch.tensor([0.1, 0.2, 5.0], requires_grad=True)
    losses.instance_weights(cross_entropy, 1.0).sum().backward()
    assert cross_entropy.grad.tolist() == [-2, -2, 0]
    assert not losses.instance_weights(cross_entropy.detach(), 1.0).requires_grad


def test_zero_saliencies_have_a_finite_loss_and_gradient() -> None:
    features = torch.rand(3, 4, requires_grad=True)
    saliencies = torch.zeros(3, 5, requires_grad=True)
    loss = losses.similarity([features], [saliencies]) + losses.complexity([saliencies], torch.ones(3))
    loss.backward()
    assert torch.isfinite(loss)
    assert bool(torch.isfinite(features.grad).all())
    assert float(saliencies.grad.abs().max()) <= 1


def test_alike_features_and_alike_networks_cost_nothing() -> None:
    rows = torch.rand(5, 8)
    assert float(losses.similarity([rows], [3 * rows])) == pytest.approx(0, abs=1e-10)
