"""Calibration: what is fitted, and what carries the limit, are set on different images; a build does it that way."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from sinf.bundle.semantic import Bundle
from sinf.data.clusters import from_column
from sinf.data.images import LabelledImages
from sinf.engine.torch_engine import Routes, SemanticModel
from sinf.errors import DataError
from sinf.measure.accuracy import Observation, observe_routes, run_shared
from sinf.models import BaseModel, load_model
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.pipelines.calibration import FITTING, LEAST, part_images, set_thresholds, tail_costs
from sinf.routing.deferral import Deferral, fit_deferral
from sinf.routing.predictor import RouterConfig, calibrate
from sinf.routing.threshold import NEVER, candidate_thresholds, choose_threshold

COSTS = (1.0, 3.0)  # of a subgraph and of the full tail


# ---- the parts


@dataclass(frozen=True)
class Labelled:
    """As much of labelled images as their parting may read: how many there are."""

    count: int
    name: str = "test"

    def __len__(self) -> int:
        return self.count


def parts_of(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return part_images(cast(LabelledImages, Labelled(count)), seed)


@settings(max_examples=30)
@given(count=st.integers(LEAST, 200), seed=st.integers(0, 2**31))
def test_every_image_is_in_one_of_two_parts(count: int, seed: int) -> None:
    fitting, rest = parts_of(count, seed)
    assert torch.equal(torch.cat([fitting, rest]).sort().values, torch.arange(count))
    assert len(fitting) == round(FITTING * count) >= 1
    assert len(rest) > len(fitting)
    again = parts_of(count, seed)
    assert torch.equal(fitting, again[0])
    assert torch.equal(rest, again[1])


def test_the_parts_depend_on_the_seed() -> None:
    parts = {tuple(parts_of(40, seed)[0].sort().values.tolist()) for seed in range(5)}
    assert len(parts) == 5


def test_a_rare_class_keeps_its_share() -> None:
    """Drawn equally per class, half of these twenty images would fit, and no more than ten would set the threshold."""
    rare = torch.arange(200) >= 180
    fitted = torch.tensor([float(rare[parts_of(200, seed)[0]].sum()) for seed in range(200)])
    assert float(fitted.mean()) == pytest.approx(FITTING * 20, abs=0.5)
    assert fitted.min() < FITTING * 20 - 2
    assert fitted.max() > FITTING * 20 + 2


def test_rows_come_in_random_order() -> None:
    """Of images that are sorted by class, the first half of either part has as many of a class as the second."""
    for seed in range(3):
        for rows in parts_of(2000, seed):
            halves = [float((half < 1000).float().mean()) for half in rows.tensor_split(2)]
            assert halves == pytest.approx([0.5, 0.5], abs=0.1)


def test_too_few_images_are_refused() -> None:
    assert len(parts_of(LEAST, 0)[1]) == LEAST - round(FITTING * LEAST)
    with pytest.raises(DataError, match=rf"at least {LEAST} images \(got {LEAST - 1} in test\)"):
        parts_of(LEAST - 1, 0)


# ---- thresholds


def observation(seed: int, count: int = 200, skill: float = 0.5, base: float = 0.8) -> Observation:
    """Confident routes are right more often; a quarter of the wrong ones are wrong in the base model too."""
    draw = torch.Generator().manual_seed(seed)
    route = torch.rand(count, generator=draw).clamp(0.02, 0.99)
    energy, within = torch.randn(count, generator=draw), torch.rand(count, generator=draw).clamp(0.1, 1).log()
    base_right = torch.rand(count, generator=draw) < base
    right = torch.rand(count, generator=draw) < skill + (1 - skill) * route
    routes = Routes(torch.zeros(count, dtype=torch.long), route.log(), energy, within, right, -within)
    return Observation(routes, base_right, base_right)


def with_outcome(seen: Observation, right: bool) -> Observation:
    """The same images, the base model always right and every route right, or wrong."""
    outcome = torch.full_like(seen.base_right, right)
    always = torch.ones_like(seen.base_right)
    return Observation(seen.routes._replace(right=outcome), always, always)


@pytest.mark.parametrize("confidence", [None, 0.6])
def test_the_limit_is_kept_on_the_rest_whatever_the_fitting_images_say(confidence: float | None) -> None:
    """Routes that are all right on the fitting images and all wrong on the others are not taken, and the reverse."""
    seen = observation(0)
    good, bad = with_outcome(seen, True), with_outcome(seen, False)
    _, threshold = set_thresholds(good, bad, 0.05, confidence, COSTS)
    assert threshold.loss == pytest.approx(1 - threshold.fallback)
    assert threshold.fallback >= 0.95 - 1e-6
    _, threshold = set_thresholds(bad, good, 0.05, confidence, COSTS)
    assert threshold.fallback < 1
    assert threshold.loss == 0


@settings(max_examples=5)
@given(seed=st.integers(0, 2**16), max_loss=st.sampled_from([0.02, 0.1]))
def test_what_a_threshold_says_it_does_it_does_to_the_rest(seed: int, max_loss: float) -> None:
    fitting, rest = observation(seed), observation(seed + 1, 300)
    deferral, threshold = set_thresholds(fitting, rest, max_loss, None, COSTS)
    calibration = rest.calibration(deferral, threshold.early)
    assert threshold.loss == pytest.approx(float(calibration.losses(threshold.value).mean()))
    assert threshold.loss <= max_loss + 1e-6
    assert threshold.fallback == pytest.approx(1 - float(calibration.routed(threshold.value).float().mean()))
    assert threshold.subgraph_ran == pytest.approx(float(calibration.subgraph_ran(threshold.value).float().mean()))


def test_deferral_and_early_threshold_do_not_see_the_rest() -> None:
    fitting = observation(0)
    found = [set_thresholds(fitting, observation(seed, 300, skill), 0.05, None, COSTS)
             for seed, skill in ((1, 0.1), (2, 0.9), (3, 0.5))]  # fmt: skip
    assert len({deferral for deferral, _ in found}) == 1
    assert len({threshold.early for _, threshold in found}) == 1
    assert len({threshold.value for _, threshold in found}) > 1
    others = [set_thresholds(observation(seed), observation(1, 300), 0.05, None, COSTS) for seed in (4, 5)]
    assert len({deferral for deferral, _ in (found[0], *others)}) == 3


def test_a_route_into_a_wrong_answer_that_the_base_model_gives_too_is_harmless() -> None:
    """Where routes are sure, ours and the base model are both wrong; where they are not, ours alone is: a deferral that
    looked at ours alone would see no difference."""
    seen = observation(0)
    sure = seen.routes.log_route.exp() > 0.5
    nowhere = torch.zeros_like(sure)
    routes = seen.routes._replace(right=nowhere)
    fitting = Observation(routes, ~sure, ~sure)
    deferral, _ = set_thresholds(fitting, observation(1), 0.1, None, COSTS)
    assert deferral == fit_deferral(routes.log_route, routes.energy, routes.log_within, sure) != Deferral()
    confidence = deferral.confidence(routes.log_route, routes.energy, routes.log_within)
    assert float(confidence[sure].mean()) > 0.9 > 0.1 > float(confidence[~sure].mean())


@settings(max_examples=5)
@given(seed=st.integers(0, 2**16))
def test_the_deferral_is_fitted_to_what_loses_nothing(seed: int) -> None:
    fitting = observation(seed)
    routes = fitting.routes
    lost = fitting.base_right & ~routes.right
    expected = fit_deferral(routes.log_route, routes.energy, routes.log_within, ~lost)
    assert set_thresholds(fitting, observation(seed + 1), 0.1, None, COSTS)[0] == expected


def test_confidence_and_limit_are_those_asked_for() -> None:
    fitting, rest = observation(0), observation(1, 600, skill=0.2)
    plain, sure = (set_thresholds(fitting, rest, 0.1, confidence, COSTS)[1] for confidence in (None, 0.9))
    assert (plain.max_loss, plain.confidence) == (0.1, None)
    assert (sure.max_loss, sure.confidence) == (0.1, 0.9)
    assert sure.fallback > plain.fallback


def test_the_candidates_are_those_of_the_fitting_images() -> None:
    """Few of them: a threshold that the rest would choose among its own confidences is nearly never one of them."""
    fitting = observation(0, 40)
    for seed, confidence in ((1, None), (2, 0.6), (3, None)):
        deferral, threshold = set_thresholds(fitting, observation(seed, 400, 0.2), 0.02, confidence, COSTS)
        assert threshold.value in (NEVER, *candidate_thresholds(fitting.calibration(deferral).confidence))


def test_choices_are_passed_on() -> None:
    fitting, rest = observation(0), observation(1, 600, skill=0.2)
    found = {}
    for choices in (1, 9):
        deferral, threshold = set_thresholds(fitting, rest, 0.1, 0.9, COSTS, choices=choices)
        candidates = candidate_thresholds(fitting.calibration(deferral).confidence)
        again = rest.calibration(deferral, threshold.early)
        assert threshold == choose_threshold(again, candidates, 0.1, 0.9, choices=choices)
        found[choices] = threshold
    assert found[9].fallback > found[1].fallback
    assert found[9].choices == 9


def test_dear_subgraphs_are_run_less() -> None:
    """The costs of a subgraph and of the full tail are not exchanged."""
    fitting, rest = observation(0, 400), observation(1, 400)
    cheap, dear = (set_thresholds(fitting, rest, 0.02, None, costs)[1] for costs in ((0.0, 1.0), (5.0, 1.0)))
    assert dear.early > cheap.early
    assert dear.subgraph_ran < cheap.subgraph_ran


# ---- a build


@pytest.fixture(scope="module")
def calibration_images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return tiny.coloured_images(tmp_path_factory.mktemp("calibration"), 60, seed=1)


def base_model() -> BaseModel:
    torch.manual_seed(0)
    return load_model("vgg11", classes=6, options={"width": 0.125})


CONFIG = BuildConfig(
    keep_anyway=True,
    cut_at=0.5, max_loss=0.8, confidence=0.6, choices=2, seed=3, macs=0.4, criterion="l1",
    reconstruct=False, route_draws=120, router=RouterConfig(epochs=1, hidden=16),
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(
    tiny_images: LabelledImages, calibration_images: LabelledImages, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    images = Images(tiny_images, tiny_images, calibration_images)
    return build(base_model(), images, from_column(tiny_images), CONFIG, folder)


def test_a_build_fits_on_one_part_and_sets_the_threshold_on_the_other(
    bundle: Bundle, calibration_images: LabelledImages
) -> None:
    """Temperature, deferral and thresholds again, from the parts."""
    model = SemanticModel(bundle)
    shared = run_shared(model, calibration_images)
    fitting, rest = part_images(calibration_images, CONFIG.seed)
    of_class = bundle.clusters.of_class()
    temperatures = {}
    for name, rows in (("fitting", fitting), ("rest", rest), ("both", torch.cat([fitting, rest]))):
        router = copy.deepcopy(bundle.router)
        temperatures[name] = calibrate(router, shared.features[rows], of_class[calibration_images.labels[rows]])
    assert len(set(temperatures.values())) == 3
    assert float(bundle.router.temperature) == pytest.approx(temperatures["fitting"])
    observed = observe_routes(model, shared)
    costs = tail_costs(model, CONFIG.price)
    parts = observed.select(fitting), observed.select(rest)
    deferral, threshold = set_thresholds(*parts, CONFIG.max_loss, CONFIG.confidence, costs, choices=CONFIG.choices)
    assert bundle.deferral == deferral
    assert bundle.threshold == threshold


def test_a_build_keeps_what_it_is_given(bundle: Bundle, calibration_images: LabelledImages) -> None:
    for name in ("max_loss", "confidence", "choices"):
        assert getattr(bundle.threshold, name) == getattr(CONFIG, name)
    assert bundle.threshold.images == len(part_images(calibration_images, CONFIG.seed)[1])


@pytest.mark.parametrize("purpose", ["scoring", "routing"])
def test_images_that_were_used_before_do_not_calibrate(
    purpose: str, tiny_images: LabelledImages, calibration_images: LabelledImages, tmp_path: Path
) -> None:
    """A few of them are enough to be refused, whatever they were used for."""
    few = calibration_images.select(list(range(6)))
    images = replace(Images(tiny_images, tiny_images, calibration_images), **{purpose: few})
    with pytest.raises(DataError, match=f"must not be among the {purpose} images .got 6 shared"):
        build(base_model(), images, from_column(tiny_images), CONFIG, tmp_path / "bundle")
    assert not any(tmp_path.iterdir())
