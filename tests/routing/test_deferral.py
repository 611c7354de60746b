"""Deferral: the probability that routing loses nothing, known when the subgraph has run."""

from __future__ import annotations

import pytest
import torch

from sinf.routing.deferral import Deferral, fit_deferral, fit_margin, margin_of


def draws(count: int = 2000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Routes that are harmless where the subgraph's energy is high, whatever the route predictor says."""
    draw = torch.Generator().manual_seed(0)
    log_route = torch.rand(count, generator=draw).clamp(0.05, 0.99).log()
    log_within = torch.rand(count, generator=draw).clamp(0.2, 0.99).log()
    energy = 3 * torch.randn(count, generator=draw)
    harmless = torch.rand(count, generator=draw) < (energy + 0.5 * log_route + 0.4).sigmoid()
    return log_route, energy, log_within, harmless


def test_without_a_fit_it_grows_with_the_route_predictors_probability() -> None:
    log_route = torch.tensor([0.001, 0.3, 0.9, 1.0]).log()
    known = Deferral().confidence(log_route, torch.full((4,), 50.0), torch.full((4,), -2.0))
    assert (known.diff() > 0).all()
    assert torch.equal(known, Deferral().confidence(log_route, torch.zeros(4), torch.zeros(4)))


def test_certainty_stays_finite() -> None:
    certain = torch.tensor([0.0, -1e-12, -200.0])
    assert torch.isfinite(Deferral(0.3, 9.0, 1.0, 1.0).confidence(certain, certain, certain)).all()


def test_the_fit_finds_what_tells_harmless_routes() -> None:
    log_route, energy, log_within, harmless = draws()
    fit = fit_deferral(log_route, energy, log_within, harmless)
    assert fit.energy == pytest.approx(1.0, abs=0.15)
    assert fit.route == pytest.approx(0.5, abs=0.15)
    assert fit.within == pytest.approx(0.0, abs=0.15)
    assert fit.intercept == pytest.approx(0.4, abs=0.15)
    confidence = fit.confidence(log_route, energy, log_within)

    def mean_gap(value: torch.Tensor) -> float:
        return float(value[harmless].mean() - value[~harmless].mean())

    assert mean_gap(confidence) > 2 * mean_gap(log_route.exp()) > 0
    assert float(confidence.mean()) == pytest.approx(float(harmless.float().mean()), abs=0.02)  # calibrated on average


def test_arguments_are_left_as_they_were() -> None:
    log_route, energy, log_within, harmless = draws(50)
    before = [t.clone() for t in (log_route, energy, log_within)]
    fit_deferral(log_route, energy, log_within, harmless).confidence(log_route, energy, log_within)
    assert all(torch.equal(a, b) for a, b in zip(before, (log_route, energy, log_within), strict=True))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_answers_that_are_no_numbers_tell_nothing(wrong: float) -> None:
    """Of a network whose values overflow for some images: the others are fitted to, and these are never sure."""
    log_route, energy, log_within, harmless = draws(200)
    broken = energy.clone()
    broken[::10] = wrong
    kept = torch.arange(200) % 10 != 0
    found = fit_deferral(log_route, broken, log_within, harmless)
    assert found == fit_deferral(log_route[kept], energy[kept], log_within[kept], harmless[kept])
    assert fit_margin(broken, harmless) == fit_margin(energy[kept], harmless[kept])
    nothing = torch.full((200,), wrong)
    assert fit_deferral(log_route, nothing, log_within, harmless) == Deferral()


@pytest.mark.parametrize("value", [True, False])
def test_images_that_cannot_tell_leave_no_fit(value: bool) -> None:
    log_route, energy, log_within, harmless = draws(30)
    assert fit_deferral(log_route, energy, log_within, torch.full_like(harmless, value)) == Deferral()


def test_likelier_routes_that_look_worse_are_not_followed() -> None:
    log_route, energy, log_within, _ = draws(200)
    assert fit_deferral(log_route, energy, log_within, log_route < -0.7) == Deferral()


def test_the_confidence_of_a_cascade_comes_of_its_margin() -> None:
    logits = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    margin = margin_of(logits)
    ordered = logits.sort(1, descending=True).values
    torch.testing.assert_close(margin, ordered[:, 0] - ordered[:, 1])
    harmless = torch.rand(500, generator=torch.Generator().manual_seed(1)) < (3 * margin - 1).sigmoid()
    fit = fit_margin(margin, harmless)
    assert (fit.route, fit.energy, fit.within) == (0.0, 0.0, 0.0)
    assert fit.margin == pytest.approx(3, abs=0.8)
    nothing = torch.zeros(500)
    confidence = fit.confidence(nothing, nothing, nothing, margin)
    assert float(confidence.mean()) == pytest.approx(float(harmless.float().mean()), abs=0.02)
    assert torch.equal(confidence.argsort(), margin.argsort())
    for useless in (torch.ones_like(harmless), torch.zeros_like(harmless), margin < margin.median()):
        unfit = fit_margin(margin, useless)
        assert unfit == Deferral(route=0.0, margin=1.0)


def test_one_class_has_no_margin() -> None:
    assert torch.equal(margin_of(torch.randn(4, 1)), torch.zeros(4))
