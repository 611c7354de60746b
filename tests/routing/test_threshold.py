"""The threshold: as much routing as the limit allows, and a guarantee that holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promise import LIMIT, SHAPES, broken_promises
from sinf.errors import ConfigError
from sinf.routing import threshold as risk
from sinf.routing.paired_test import p_value
from sinf.routing.threshold import (
    NEVER,
    Calibration,
    Threshold,
    candidate_thresholds,
    choose_early_threshold,
    images_needed,
)


def random_calibration(seed: int, count: int = 101, skill: float = 0.7) -> Calibration:
    """Confident routes are right more often; base and full tail agree mostly."""
    draw = torch.Generator().manual_seed(seed)
    confidence = torch.rand(count, generator=draw)
    base = torch.rand(count, generator=draw) < 0.8
    fallback = torch.where(torch.rand(count, generator=draw) < 0.02, ~base, base)
    routed = torch.rand(count, generator=draw) < skill + (1 - skill) * confidence
    return Calibration(confidence, routed, fallback, base)


def choose_threshold(calibration: Calibration, max_loss: float, *rest: Any, **options: Any) -> Threshold:
    """Every threshold that routes other images is a candidate."""
    candidates = calibration.confidence.unique().flip(0).tolist()
    return risk.choose_threshold(calibration, candidates, max_loss, *rest, **options)


# ---- losses


def test_losses_by_hand() -> None:
    yes, no = True, False
    calibration = Calibration(
        torch.tensor([0.9, 0.9, 0.9, 0.9, 0.2, 0.2, 0.5]),
        torch.tensor([yes, no, yes, no, no, yes, no]),
        torch.tensor([no, yes, no, yes, yes, no, yes]),
        torch.tensor([yes, yes, no, no, yes, yes, yes]),
    )
    assert calibration.losses(0.5).tolist() == [0, 1, -1, 0, 0, 1, 1]  # a confidence at the threshold is routed
    assert calibration.losses(0.0).tolist() == [0, 1, -1, 0, 1, 0, 1]
    assert calibration.losses(NEVER).tolist() == [1, 0, 0, -1, 0, 1, 0]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), threshold=st.floats(0, 2))
def test_losses_are_minus_one_zero_or_one(seed: int, threshold: float) -> None:
    calibration = random_calibration(seed, 40)
    losses = calibration.losses(threshold)
    assert set(losses.tolist()) <= {-1.0, 0.0, 1.0}
    ours = torch.where(calibration.confidence >= threshold, calibration.routed_right, calibration.fallback_right)
    difference = calibration.base_right.float().mean() - ours.float().mean()
    assert float(losses.mean()) == pytest.approx(float(difference), abs=1e-6)


# ---- without a guarantee


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), allowed=st.integers(4, 30))
def test_the_lowest_threshold_within_the_limit_is_taken(seed: int, allowed: int) -> None:
    """Against every threshold that routes other images, tried one by one."""
    calibration = random_calibration(seed)
    max_loss = (allowed + 0.5) / 101
    chosen = choose_threshold(calibration, max_loss)
    assert chosen.loss == pytest.approx(float(calibration.losses(chosen.value).mean()))
    assert chosen.loss <= max_loss
    assert (chosen.max_loss, chosen.confidence) == (max_loss, None)
    routed = calibration.confidence >= chosen.value
    assert chosen.fallback == pytest.approx(1 - float(routed.float().mean()))
    for lower in calibration.confidence[~routed].tolist():
        assert float(calibration.losses(lower).mean()) > max_loss


def test_the_loss_need_not_grow_evenly() -> None:
    """The most confident route fails, the others are right: all are taken, though one alone would be too much."""
    right = torch.tensor([False, True, True, True])
    base = torch.tensor([True, True, False, False])
    chosen = choose_threshold(Calibration(torch.tensor([0.9, 0.8, 0.7, 0.6]), right, base, base), 0.0)
    assert chosen.value == pytest.approx(0.6)
    assert (chosen.loss, chosen.fallback) == (-0.25, 0)


def test_a_calibration_where_every_route_is_right_routes_everything() -> None:
    right = torch.ones(50, dtype=torch.bool)
    chosen = choose_threshold(Calibration(torch.rand(50), right, right, right), 0.0)
    assert (chosen.fallback, chosen.loss) == (0, 0)


def test_nothing_is_routed_when_nothing_may_be_lost_and_every_route_loses() -> None:
    right = torch.ones(50, dtype=torch.bool)
    chosen = choose_threshold(Calibration(torch.rand(50), ~right, right, right), 0.0)
    assert (chosen.value, chosen.fallback, chosen.loss) == (NEVER, 1, 0)


def test_a_loss_of_exactly_the_limit_is_within_it() -> None:
    base = torch.ones(100, dtype=torch.bool)
    ours = torch.arange(100) >= 7
    assert choose_threshold(Calibration(torch.full((100,), 0.5), ours, ours, base), 0.07).loss == pytest.approx(0.07)


# ---- options


@pytest.mark.parametrize("max_loss", [-0.01, 1, 1.5, float("nan")])
def test_max_loss_out_of_range_is_refused(max_loss: float) -> None:
    with pytest.raises(ConfigError, match=r"max_loss must be in \[0, 1\).*0\.01 for one point"):
        choose_threshold(random_calibration(0), max_loss)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, float("nan")])
def test_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(ConfigError, match=r"confidence must be in \(0, 1\)"):
        choose_threshold(random_calibration(0), 0.1, confidence)


def test_a_limit_out_of_reach_says_what_falling_back_loses() -> None:
    """The full tail, pruned too, loses more than is allowed, and so does every route."""
    base = torch.ones(40, dtype=torch.bool)
    fallback = torch.arange(40) >= 4
    with pytest.raises(ConfigError, match=r"within 5 points \(got 10\.00 points with every input in the full tail\)"):
        choose_threshold(Calibration(torch.rand(40), ~base, fallback, base), 0.05)


def test_a_guarantee_from_a_handful_of_images_is_refused() -> None:
    right = torch.ones(5, dtype=torch.bool)
    calibration = Calibration(torch.rand(5), right, right, right)
    assert choose_threshold(calibration, 0.01).fallback == 0
    with pytest.raises(ConfigError, match=r"with confidence 0\.95 .*on 5 images.*some \d+ such images would do"):
        choose_threshold(calibration, 0.01, 0.95)


# ---- with a guarantee


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16), confidence=st.sampled_from([0.6, 0.9]))
def test_a_guarantee_routes_no_more_than_the_calibration_allows(seed: int, confidence: float) -> None:
    calibration = random_calibration(seed, 900, skill=0.5)
    plain, sure = choose_threshold(calibration, 0.04), choose_threshold(calibration, 0.04, confidence)
    assert sure.value >= plain.value
    assert sure.fallback >= plain.fallback
    assert sure.confidence == confidence
    assert p_value(calibration.losses(sure.value), 0.04) <= 1 - confidence


def test_testing_stops_at_the_first_threshold_that_fails() -> None:
    """Routes fail where the predictor is sure and are right below: what lies below is never reached."""
    draw = torch.Generator().manual_seed(0)
    confidence = torch.rand(2000, generator=draw)
    base = torch.ones(2000, dtype=torch.bool)
    base[::2] = False
    routed = torch.where(confidence > 0.7, torch.zeros_like(base), torch.ones_like(base))
    calibration = Calibration(confidence, routed, base, base)
    assert choose_threshold(calibration, 0.05).fallback == 0  # on the whole, routing everything gains
    assert choose_threshold(calibration, 0.05, 0.9).value > 0.7


def test_more_confidence_routes_less() -> None:
    calibration = random_calibration(0, 1500, skill=0.5)
    fallbacks = [choose_threshold(calibration, 0.04, confidence).fallback for confidence in (0.5, 0.8, 0.99)]
    assert fallbacks == sorted(fallbacks)
    assert fallbacks[0] < fallbacks[-1]


# ---- what the guarantee assumes: candidates that the tested images did not choose


def test_candidates_come_from_other_images_and_fall() -> None:
    fitting = torch.rand(500, generator=torch.Generator().manual_seed(0))
    candidates = candidate_thresholds(fitting, 10)
    assert len(candidates) == 12
    assert candidates[0] == pytest.approx(float(fitting.max()))
    assert candidates[-1] == 0
    assert list(candidates) == sorted(set(candidates), reverse=True)
    shares = [float((fitting >= c).float().mean()) for c in candidates[:-1]]
    assert shares == pytest.approx([i / 10 for i in range(11)], abs=0.01)
    assert candidate_thresholds(torch.full((7,), 0.25)) == (0.25, 0.0)


def test_nothing_but_the_candidates_is_chosen() -> None:
    calibration = random_calibration(0, 900)
    for confidence in (None, 0.9):
        chosen = risk.choose_threshold(calibration, [0.9, 0.55, 0.5], 0.06, confidence)
        assert chosen.value in (NEVER, 0.9, 0.55, 0.5)


@pytest.mark.parametrize("candidates", [[0.5, 0.6], [0.5, 0.5], [1.5, 0.5], [0.5, -0.1], [float("nan")]])
def test_candidates_that_do_not_fall_are_refused(candidates: list[float]) -> None:
    with pytest.raises(ConfigError, match="candidate thresholds must fall"):
        risk.choose_threshold(random_calibration(0), candidates, 0.1, 0.9)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("trials", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_promise_breaks_no_more_often_than_stated(name: str, trials: int) -> None:
    """At most the stated share, and a standard error of a thousand trials; of few, three."""
    errors = 1 if trials >= 1000 else 3
    for confidence, broken in broken_promises(SHAPES[name], trials).items():
        stated = 1 - confidence
        assert broken <= trials * stated + errors * (trials * stated * confidence) ** 0.5


def test_the_simulation_has_thresholds_that_break_the_promise() -> None:
    assert SHAPES["on the limit"].expected(0.0) > LIMIT  # and at every threshold above it, until too little is routed
    assert SHAPES["cliff"].expected(0.0) > LIMIT > SHAPES["cliff"].expected(0.6)


# ---- choosing among several, and too few images


def test_choosing_among_several_is_tested_more_strictly() -> None:
    calibration = random_calibration(0, 1500, skill=0.5)
    one, five = (choose_threshold(calibration, 0.04, 0.9, choices=n) for n in (1, 5))
    assert one.value < five.value
    assert five == replace(choose_threshold(calibration, 0.04, 0.98), confidence=0.9, choices=5)


def test_the_best_of_many_keeps_the_limit_only_when_corrected() -> None:
    """Twenty bundles whose expected loss is just above the limit; who takes the one that passes breaks the promise."""
    limit, trials, broken = 0.02, 40, {1: 0, 20: 0}
    base = torch.ones(800, dtype=torch.bool)
    for seed in range(trials):
        for choices in broken:
            passed = []
            for bundle in range(20):
                draw = torch.Generator().manual_seed(1000 * seed + bundle)
                lost = torch.rand(800, generator=draw) < 0.0205
                calibration = Calibration(torch.full((800,), 0.5), ~lost, base, base)
                chosen = risk.choose_threshold(calibration, [0.5], limit, 0.8, choices=choices)
                passed.append(chosen.value == 0.5)
            broken[choices] += any(passed)
    assert broken[1] > 0.5 * trials
    assert broken[20] <= 0.2 * trials + 3 * (trials * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize("choices", [0, -1])
def test_choices_out_of_range_are_refused(choices: int) -> None:
    with pytest.raises(ConfigError, match="choices must be at least 1"):
        choose_threshold(random_calibration(0), 0.1, 0.9, choices=choices)


def test_the_number_of_images_that_would_do_does() -> None:
    nothing_lost = torch.zeros(10)
    enough = images_needed(nothing_lost, 0.01, 0.05)
    assert enough is not None
    assert p_value(torch.zeros(enough), 0.01) <= 0.05 < p_value(torch.zeros(enough - 10), 0.01)
    right = torch.ones(enough, dtype=torch.bool)
    assert choose_threshold(Calibration(torch.rand(enough), right, right, right), 0.01, 0.95).fallback == 0


def test_of_five_choices_more_images_are_needed_and_the_error_says_how_many() -> None:
    right = torch.ones(50, dtype=torch.bool)
    calibration = Calibration(torch.rand(50), right, right, right)
    for choices in (1, 5):
        enough = images_needed(calibration.losses(NEVER), 0.01, 0.05 / choices)
        with pytest.raises(ConfigError, match=f"some {enough:,} such images would do"):
            choose_threshold(calibration, 0.01, 0.95, choices=choices)


def test_the_number_that_would_do_is_found_up_to_the_most() -> None:
    nothing_lost = torch.zeros(100)
    enough = images_needed(nothing_lost, 0.01, 0.05)
    assert enough is not None
    assert enough > 300
    assert images_needed(nothing_lost, 0.01, 0.05, most=enough) == enough
    assert images_needed(nothing_lost, 0.01, 0.05, most=enough - 1) is None


def test_no_number_of_images_keeps_a_limit_that_the_full_tail_breaks() -> None:
    base = torch.ones(100, dtype=torch.bool)
    calibration = Calibration(torch.rand(100), base, torch.arange(100) >= 5, base)
    assert images_needed(calibration.losses(NEVER), 0.04, 0.05) is None
    with pytest.raises(ConfigError, match="no number of such images would do"):
        choose_threshold(calibration, 0.04, 0.95)


# ---- what is promised


def test_a_promise_says_all_that_it_depends_on() -> None:
    sure = choose_threshold(random_calibration(0, 1500, skill=0.5), 0.04, 0.9, choices=3)
    said = sure.promise()
    for part in ("confidence 0.9", "expected loss", "at most 4 points", "this bundle", "one of 3 bundles or limits",
                 "torch f32", "image by image", "1,500", "exact test of paired answers"):  # fmt: skip
        assert part in said
    assert sure.promise(sure.value) == said


@pytest.mark.parametrize(("choices", "said"), [(1, False), (2, True)])
def test_a_promise_that_is_corrected_says_so(choices: int, said: bool) -> None:
    sure = choose_threshold(random_calibration(0, 1500, skill=0.5), 0.04, 0.9, choices=choices)
    assert (f"one of {choices} bundles or limits" in sure.promise()) is said


def test_without_confidence_nothing_is_promised_of_new_images() -> None:
    plain = choose_threshold(random_calibration(0), 0.04)
    assert plain.promise().startswith("No promise for new images: on the 101 images that set the threshold")


def test_images_that_only_tested_a_threshold_did_not_set_it() -> None:
    """Of what optimize() delivers: nothing says that the loss on them is within the limit."""
    sure = choose_threshold(random_calibration(0, 1500, skill=0.5), 0.04, 0.9)
    said = replace(sure, only_tested=True).promise()
    assert "as the 1,500 were that tested it (" in said
    plain = replace(sure, only_tested=True, confidence=None, loss=0.0423).promise()
    assert "4 points were asked for, and on the 1,500 images that tested it 4.23 points of top-1 were lost" in plain


def test_another_threshold_engine_or_precision_has_no_promise() -> None:
    sure = choose_threshold(random_calibration(0, 1500, skill=0.5), 0.04, 0.9)
    assert sure.promise(sure.value - 0.01).startswith("No promise: the threshold is")
    assert sure.promise(None, "onnxruntime", "f32").startswith("No promise in onnxruntime f32")
    assert sure.promise(None, "torch", "int8").startswith("No promise in torch int8")


# ---- an early threshold


def two_looks(seed: int = 0, count: int = 400, early_threshold: float = 0.0) -> Calibration:
    """The second look is the truth and some noise, the first one a noisier copy of it."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.ones(count, dtype=torch.bool)
    late = torch.rand(count, generator=draw)
    early = (late + 0.3 * torch.randn(count, generator=draw)).clamp(0, 1)
    routed = torch.rand(count, generator=draw) < 0.5 + 0.5 * late
    return Calibration(late, routed, base, base, early, early_threshold)


def test_an_input_that_stops_early_is_not_routed() -> None:
    looks = two_looks(early_threshold=0.5)
    assert torch.equal(looks.subgraph_ran(0.8), looks.early >= 0.5)
    assert torch.equal(looks.routed(0.8), (looks.early >= 0.5) & (looks.confidence >= 0.8))
    assert torch.equal(looks.subgraph_ran(0.2), looks.early >= 0.2)  # less is asked for at the end, so before too
    assert looks.routed(0.0).all()
    assert not looks.subgraph_ran(NEVER).any()


def test_the_chosen_threshold_says_how_often_a_subgraph_runs() -> None:
    looks = two_looks(early_threshold=0.4)
    chosen = choose_threshold(looks, 0.05)
    assert chosen.early == 0.4
    assert chosen.subgraph_ran == pytest.approx(float(looks.subgraph_ran(chosen.value).float().mean()))
    assert chosen.fallback == pytest.approx(1 - float(looks.routed(chosen.value).float().mean()))
    assert 1 - chosen.fallback < chosen.subgraph_ran < 1


@pytest.mark.parametrize("subgraph", [0.0, 0.3, 5.0])
def test_the_early_threshold_costs_least_of_all_tried(subgraph: float) -> None:
    looks = two_looks()

    def cost(early: float) -> float:
        chosen = choose_threshold(replace(looks, early_threshold=early), 0.05)
        return chosen.subgraph_ran * subgraph + chosen.fallback

    found = choose_early_threshold(looks, 0.05, subgraph, 1.0)
    assert cost(found) == pytest.approx(min(cost(float(e)) for e in looks.early.quantile(torch.linspace(0, 1, 21))))


def test_a_dear_subgraph_is_tried_less() -> None:
    """The first look knows nothing here: stopping early saves subgraphs and gives routes away."""
    looks = replace(two_looks(), early=torch.rand(400, generator=torch.Generator().manual_seed(5)))
    found = [choose_early_threshold(looks, 0.05, cost, 1.0) for cost in (0.0, 0.3, 5.0)]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_without_a_first_look_there_is_no_early_threshold() -> None:
    assert choose_early_threshold(random_calibration(0), 0.05, 0.3, 1.0) == 0


def test_a_limit_out_of_reach_still_has_an_early_threshold() -> None:
    """Whether the limit can be kept is said where it is set, not here."""
    looks = two_looks()
    worse = replace(looks, fallback_right=torch.rand(400) < 0.8, routed_right=torch.zeros(400, dtype=torch.bool))
    assert 0 <= choose_early_threshold(worse, 0.0, 0.3, 1.0) <= 1
