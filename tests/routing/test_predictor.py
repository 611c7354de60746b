"""The route predictor: it learns, it is calibrated, and its folded form is the same function."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinf.errors import ConfigError
from sinf.routing.predictor import RoutePredictor, RouterConfig, calibrate, train_router

CONFIG = RouterConfig(side=2, channels=8, hidden=16, epochs=8, batch=32, learning_rate=1e-2)


def problem(count: int = 240, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (N, 5, 4, 4) of three clusters, each with a pattern of its own, and the clusters."""
    patterns = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(99))
    draw = torch.Generator().manual_seed(seed)
    clusters = torch.randint(3, (count,), generator=draw)
    return 3 + patterns[clusters] + noise * torch.randn(count, 5, 4, 4, generator=draw), clusters


def targets_of(clusters: Tensor) -> Tensor:
    return 0.9 * F.one_hot(clusters, 3) + 0.1 / 3


@pytest.fixture(scope="module")
def trained() -> RoutePredictor:
    features, clusters = problem()
    return train_router(features, targets_of(clusters), CONFIG)


def test_an_easy_problem_is_learned(trained: RoutePredictor) -> None:
    features, clusters = problem(seed=1)
    assert float((trained(features).argmax(1) == clusters).float().mean()) > 0.95
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_it_learns_the_probabilities_that_it_is_given() -> None:
    """Where the base model doubts, the predictor does: all features the same, the targets one half and one half."""
    features = torch.randn(256, 5, 4, 4)
    soft = torch.tensor([0.5, 0.5, 0.0]).expand(256, 3)
    probabilities = train_router(features, soft, CONFIG)(features).softmax(1).mean(0)
    torch.testing.assert_close(probabilities, soft[0], atol=0.1, rtol=0)


def test_training_is_repeatable_for_a_seed(trained: RoutePredictor) -> None:
    features, clusters = problem()
    torch.rand(7)  # whatever was drawn before does not matter
    again = train_router(features, targets_of(clusters), CONFIG)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), trained.state_dict().values(), strict=True)
    )
    other = train_router(features, targets_of(clusters), RouterConfig(**{**vars(CONFIG), "seed": 1}))
    assert not torch.equal(other.head.weight, trained.head.weight)


def test_features_may_be_stored_in_half_precision() -> None:
    features, clusters = problem()
    router = train_router(features.half(), targets_of(clusters), CONFIG)
    assert router.head.weight.dtype == torch.float32
    assert float((router(features).argmax(1) == clusters).float().mean()) > 0.95


def test_the_units_of_channels_do_not_matter(trained: RoutePredictor) -> None:
    features, clusters = problem()
    units = torch.tensor([1 / 2, 1, 1024, 4, 8])[:, None, None]
    other = train_router(units * features, targets_of(clusters), CONFIG)
    assert float((other(units * features) - trained(features)).abs().mean()) < 0.05


def test_channels_that_say_nothing_do_no_harm() -> None:
    features, clusters = problem()
    features[:, 1] = 0
    router = train_router(features, targets_of(clusters), CONFIG)
    assert router(features).isfinite().all()
    assert float((router(features).argmax(1) == clusters).float().mean()) > 0.95


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    features, clusters = problem(10)
    steps: list[tuple[int, int]] = []
    train_router(features, targets_of(clusters), CONFIG, lambda done, total: steps.append((done, total)))
    assert steps == [(i, 8) for i in range(1, 9)]


def test_progress_counts_all_steps() -> None:
    features, clusters = problem(70)
    steps: list[tuple[int, int]] = []
    train_router(features, targets_of(clusters), CONFIG, lambda done, total: steps.append((done, total)))
    assert steps == [(i, 16) for i in range(1, 17)]  # two batches of 32 an epoch


@settings(max_examples=10)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    side=st.integers(1, 4),
    kernel=st.sampled_from([1, 3]),
    temperature=st.floats(0.1, 10),
    seed=st.integers(0, 2**16),
)
def test_folded_is_the_same_function(
    shape: tuple[int, int, int], side: int, kernel: int, temperature: float, seed: int
) -> None:
    torch.manual_seed(seed)
    router = RoutePredictor(shape, 4, RouterConfig(side=side, kernel=kernel, channels=3, hidden=7))
    router.eval().requires_grad_(False)
    for name, tensor in router.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif "norm" in name and tensor.ndim:
            tensor.normal_(1, 0.5)
    router.temperature.fill_(temperature)
    features = torch.randn(6, *shape) + 1
    with torch.no_grad():
        expected = router(features)
        folded = copy.deepcopy(router).folded()
        torch.testing.assert_close(folded(features), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(router(features), expected, rtol=0, atol=0)
    assert float(folded.temperature) == 1


# ---- calibration


def nll(router: RoutePredictor, features: Tensor, clusters: Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(router(features), clusters))


@pytest.mark.parametrize("noise", [0.5, 2.0, 5.0])
def test_calibration_lowers_the_loss_and_changes_no_route(trained: RoutePredictor, noise: float) -> None:
    features, clusters = problem(600, noise, seed=2)
    router = copy.deepcopy(trained)
    before, routes = nll(router, features, clusters), router(features).argmax(1)
    temperature = calibrate(router, features, clusters)
    assert temperature == float(router.temperature)
    assert nll(router, features, clusters) <= before + 1e-6
    assert torch.equal(router(features).argmax(1), routes)
    for t in (0.8 * temperature, 1.25 * temperature):  # and no other temperature is better
        other = copy.deepcopy(router)
        other.temperature.fill_(t)
        assert nll(other, features, clusters) >= nll(router, features, clusters) - 1e-4


def test_calibration_undoes_a_scale_of_the_logits(trained: RoutePredictor) -> None:
    features, clusters = problem(600, 2.0, seed=2)
    plain, louder = copy.deepcopy(trained), copy.deepcopy(trained)
    for tensor in (louder.head.weight, louder.head.bias):
        tensor.mul_(2)
    assert calibrate(louder, features, clusters) == pytest.approx(2 * calibrate(plain, features, clusters), rel=0.03)


def test_calibrating_twice_is_calibrating_once(trained: RoutePredictor) -> None:
    features, clusters = problem(300, 3.0, seed=3)
    router = copy.deepcopy(trained)
    assert calibrate(router, features, clusters) == calibrate(router, features, clusters)


# ---- options


@pytest.mark.parametrize("name", ["side", "channels", "hidden", "epochs", "batch"])
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"router's {name} must be in.*{value}"):
        RouterConfig(**{name: value})


def test_the_predictor_is_no_wider_than_its_features() -> None:
    router = RoutePredictor((3, 2, 5), 4, RouterConfig(side=4, channels=128, hidden=8))
    assert router.reduce.out_channels == 3
    assert router.head.in_features == 8 * 1 * 2
    assert router.macs == (2 * 4) * 3 * 27 + (1 * 2) * 8 * 27 + 16 * 4
    assert router(torch.randn(2, 3, 2, 5)).shape == (2, 4)
