"""The formulas of risk and deferral, computed the slow and obvious way, and what happens exactly on a boundary."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sinf.errors import ConfigError
from sinf.routing import threshold as risk
from sinf.routing.deferral import Deferral, fit_deferral
from sinf.routing.paired_test import p_value
from sinf.routing.router import FeatureRouter
from sinf.routing.threshold import (
    NEVER,
    Calibration,
    candidate_thresholds,
    choose_early_threshold,
    choose_threshold,
    images_needed,
)

# ---- boundaries


def outcomes(count: int = 40) -> Calibration:
    right = torch.ones(count, dtype=torch.bool)
    return Calibration(torch.linspace(0.1, 0.9, count), right, right, right)


def test_a_confidence_at_the_threshold_is_routed_and_a_p_value_at_its_level_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = replace(outcomes(), early=torch.full((40,), 0.5), early_threshold=0.5)
    assert looks.subgraph_ran(0.7).all()
    assert int(looks.routed(float(looks.confidence[7])).sum()) == 33
    monkeypatch.setattr(risk, "p_value", lambda losses, limit: 0.25)
    assert choose_threshold(outcomes(), [0.5], 0.1, 0.75).value == 0.5
    assert choose_threshold(outcomes(), [0.5], 0.1, 0.5, choices=2).value == 0.5
    for confidence, choices in ((0.76, 1), (0.75, 2)):
        with pytest.raises(ConfigError, match="no threshold"):
            choose_threshold(outcomes(), [0.5], 0.1, confidence, choices=choices)


def test_without_an_early_threshold_every_subgraph_runs() -> None:
    looks = Calibration(*(getattr(outcomes(), name) for name in ("confidence", "routed_right", "fallback_right",
                                                                   "base_right")), early=torch.zeros(40))  # fmt: skip
    assert looks.subgraph_ran(0.5).all()


def test_a_router_takes_every_threshold_that_can_be_chosen() -> None:
    router = FeatureRouter(None, (1, 1, 1), 0.0, 0.0)  # type: ignore[arg-type]
    for threshold in (NEVER, 1.0, 0.0):
        router.threshold = threshold
        assert router.threshold == threshold


def test_limits_and_candidates_at_the_ends_of_their_range() -> None:
    calibration = outcomes()
    assert choose_threshold(calibration, [1.0, 0.0], 0.0).value == 0
    assert choose_threshold(calibration, [1.0], 0.999).value == 1
    with pytest.raises(ConfigError, match="candidate thresholds must fall"):
        choose_threshold(calibration, [1.0, 1.0], 0.1)
    with pytest.raises(ConfigError, match="max_loss"):
        choose_threshold(calibration, [0.5], 1.0)
    assert choose_threshold(calibration, [0.5], 0.5, 0.5).choices == 1


def test_a_hundred_candidates_route_one_percent_more_each() -> None:
    confidence = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    candidates = candidate_thresholds(confidence)
    assert len(candidates) == 102
    shares = [float((confidence >= c).double().mean()) for c in candidates[:-1]]
    assert shares == pytest.approx([i / 100 for i in range(101)], abs=2e-3)
    assert candidate_thresholds(torch.tensor([0.0, 0.0, 0.5]))[-1] == 0


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_the_images_needed_are_the_fewest(lost: int) -> None:
    losses = torch.zeros(40)
    losses[torch.arange(lost) * 7 + 3] = 1
    limit, alpha = 0.15, 0.1
    enough = images_needed(losses, limit, alpha)
    assert enough is not None
    passing = [p_value(losses.repeat(times), limit) <= alpha for times in range(1, enough // 40 + 1)]
    assert passing == [False] * (len(passing) - 1) + [True]


def test_a_limit_that_is_just_met_needs_more_images_than_there_are() -> None:
    assert images_needed(torch.zeros(40), 0.0, 0.1, most=5000) is None


# ---- the early threshold


def looks(count: int = 300) -> Calibration:
    draw = torch.Generator().manual_seed(0)
    late = torch.rand(count, generator=draw)
    early = (late + 0.3 * torch.randn(count, generator=draw)).clamp(0, 1)
    base = torch.ones(count, dtype=torch.bool)
    return Calibration(late, torch.rand(count, generator=draw) < 0.5 + 0.5 * late, base, base, early)


@pytest.mark.parametrize(("subgraph", "full_tail"), [(0.5, 2.0), (2.0, 0.5), (1.0, 10.0), (3.0, 0.0)])
def test_the_early_threshold_is_the_cheapest_of_its_grid(subgraph: float, full_tail: float) -> None:
    """Of twenty-one quantiles, and the first of those that cost the same."""
    calibration, max_loss = looks(), 0.05
    grid = torch.quantile(calibration.early.double(), torch.linspace(0, 1, 21).double()).float().tolist()
    candidates = candidate_thresholds(calibration.confidence)
    costs = []
    for early in grid:
        chosen = choose_threshold(replace(calibration, early_threshold=early), candidates, max_loss)
        costs.append(chosen.subgraph_ran * subgraph + chosen.fallback * full_tail)
    found = choose_early_threshold(calibration, max_loss, subgraph, full_tail)
    assert found == grid[min(range(21), key=costs.__getitem__)]


def test_the_first_of_early_thresholds_that_cost_the_same_is_taken() -> None:
    calibration = replace(outcomes(), early=torch.linspace(0.2, 0.8, 40))
    assert choose_early_threshold(calibration, 0.0, 0.0, 0.0) == pytest.approx(0.2)


def test_a_full_tail_that_is_always_wrong_still_has_an_early_threshold() -> None:
    """Its loss is 1, which no limit may be."""
    calibration = looks()
    worst = replace(calibration, fallback_right=~calibration.base_right, routed_right=calibration.base_right)
    assert 0 <= choose_early_threshold(worst, 0.01, 0.3, 1.0) <= 1


# ---- deferral

FEATURES = ("route", "energy", "within")


def test_confidence_by_hand() -> None:
    log_route, energy, log_within = (torch.tensor(v) for v in ([-0.1, -2.0], [3.0, -5.0], [-0.7, -0.01]))
    found = Deferral(0.25, 2.0, 0.5, 1.5).confidence(log_route, energy, log_within)
    scores = [
        0.25 + 2 * r + 0.5 * e + 1.5 * w for r, e, w in zip([-0.1, -2.0], [3.0, -5.0], [-0.7, -0.01], strict=True)
    ]
    assert found.tolist() == pytest.approx([1 / (1 + math.exp(-score)) for score in scores])


def test_without_a_fit_confidence_is_the_odds_of_the_route() -> None:
    route, other = torch.tensor([1.0, 0.5, 0.01]), torch.tensor([4.0, -9.0, 0.3])
    torch.testing.assert_close(Deferral().confidence(route.log(), other, other), route / (1 + route))


def problem(seed: int, count: int = 300, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    log_route = torch.rand(count, generator=draw).clamp(0.05, 0.99).log()
    energy, log_within = torch.randn(count, generator=draw), torch.rand(count, generator=draw).clamp(0.1, 1).log()
    harmless = torch.rand(count, generator=draw) < (1 + log_route + energy - 0.5 * log_within).sigmoid()
    return log_route, scale * energy, log_within, harmless


@pytest.mark.parametrize(("seed", "scale"), [(0, 1.0), (1, 1.0), (2, 300.0)])
def test_the_fit_has_the_largest_penalised_likelihood(seed: int, scale: float) -> None:
    """Logistic regression with the penalty |w|^2 / 20 on the weights, none on the intercept: no slope is left, also
    where one feature is hundreds of times as large as the others."""
    *features, harmless = problem(seed, 60, scale)
    fit = fit_deferral(*features, harmless)
    wrong = (fit.confidence(*(f.double() for f in features)) - harmless.double()).double()
    size = len(harmless)
    assert float(wrong.mean()) == pytest.approx(0, abs=1e-3)
    for name, feature in zip(FEATURES, features, strict=True):
        slope = float((wrong * feature).sum()) + getattr(fit, name) / 10
        assert slope / size / max(1.0, scale) == pytest.approx(0, abs=2e-4)
    assert fit.route > 0


def test_a_fit_needs_likelier_routes_that_are_more_often_harmless() -> None:
    """On average: one very unlikely harmful route says nothing of the others; and equal is not more."""
    harmless = torch.tensor([True, True, False, False])
    energy = torch.tensor([5.0, 4.0, -4.0, -5.0])  # tells them apart, and does not count here
    for log_route in ([-1.0, -1.0, -0.1, -1.5], [-1.0, -1.0, -1.0, -1.0]):
        assert fit_deferral(torch.tensor(log_route), energy, energy, harmless) == Deferral()
    assert fit_deferral(torch.tensor([-1.0, -1.0, -0.1, -9.0]), -energy, energy, harmless) != Deferral()
