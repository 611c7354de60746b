"""After the training: budgets are met as nearly as layers allow, and norms have seen the thresholds that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gated import mean_macs, stir
from sinf.data.images import LabelledImages
from sinf.dynamic import calibrate as calibrating
from sinf.dynamic.calibrate import calibrate, finish
from sinf.dynamic.methods import METHODS
from sinf.dynamic.network import GateConfig, GatedNetwork, attach
from sinf.dynamic.start import start_by_importance
from sinf.dynamic.targets import Target, expected_macs
from sinf.errors import ConfigError
from sinf.models import load_model
from tiny import COLOUR, tiny_data


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    return tiny_data(tmp_path / "data")


def gated(kind: str = "manidp") -> GatedNetwork:
    torch.manual_seed(0)
    return attach(load_model("resnet20", classes=6, size=COLOUR.size, options={"width": 0.5}), GateConfig(kind)).eval()


@torch.no_grad()
def two_kinds_of_channels(network: GatedNetwork) -> None:
    """Half of the channels of every layer have a saliency of 1, the threshold, whatever the input; the others of 2. So
    no common factor leaves anything between all channels and half of them."""
    for index in range(len(network.sites)):
        gate = network.gate(index)
        bias = gate.excite.bias
        gate.excite.weight.zero_()
        bias.copy_(1 + (torch.arange(len(bias)) % 2))
        gate.threshold.fill_(1)


@pytest.mark.parametrize("goal", [0.5, 0.7, 0.9])
def test_between_two_factors_layers_choose(images: LabelledImages, goal: float) -> None:
    network = gated()
    two_kinds_of_channels(network)
    macs = calibrate(network, COLOUR, images, Target(macs=goal))
    assert macs == pytest.approx(mean_macs(network, images))
    _, seen = network.observe(next(images.batches(COLOUR))[0])
    kept = [float(keep.float().mean()) for keep in (mask > 0 for mask in seen.masks)]
    dear = kept.index(0.5)
    assert kept == [1.0] * dear + [0.5] * (len(kept) - dear)
    assert macs <= goal
    network.gate(dear).threshold.fill_(1)
    assert mean_macs(network, images) > goal  # with one layer more it would be missed


@pytest.mark.parametrize("kind", METHODS)
def test_a_budget_is_met_from_below(images: LabelledImages, kind: str) -> None:
    network = gated(kind)
    if kind == "manidp":
        start_by_importance(network)
    least = expected_macs(network, 0.0)
    goal = (1 + least) / 2
    finish(network, COLOUR, images, Target(macs=goal))
    assert goal - 0.08 < mean_macs(network, images) <= goal


@pytest.mark.parametrize("target", [Target(channels=0.5), Target(macs=0.7)], ids=str)
def test_norms_have_seen_the_thresholds_that_stay(images: LabelledImages, target: Target) -> None:
    """What statistics the training left does not matter; their variance is that of what comes in."""
    networks = [gated(), gated()]
    for network, left in zip(networks, (1.0, 30.0), strict=True):
        two_kinds_of_channels(network)
        for name, buffer in network.model.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(left)
        finish(network, COLOUR, images, target)
    one, other = (network.model.state_dict() for network in networks)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert not any((one[key] == 1).all() for key in one if key.endswith("running_var"))


def test_channels_stay_as_training_left_them(images: LabelledImages) -> None:
    network = gated()
    two_kinds_of_channels(network)
    finish(network, COLOUR, images, Target(channels=0.5))
    assert all(float(network.gate(index).threshold) == 1 for index in range(len(network.sites)))


def test_a_budget_out_of_reach_is_refused(images: LabelledImages) -> None:
    network = gated()
    with pytest.raises(ConfigError, match="must reach the target"):
        calibrate(network, COLOUR, images, Target(macs=0.01))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("goal", [0.5, 0.7])
def test_few_settings_are_tried(
    images: LabelledImages, kind: str, goal: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a setting costs is predicted from saliencies that are known: a bisection would try 13."""
    network = gated(kind)
    if kind == "manidp":
        start_by_importance(stir(network))
        for index, saliency in enumerate(network.observe(next(images.batches(COLOUR))[0])[1].saliencies):
            network.gate(index).set_remaining(0.6, saliency.mean(0).detach())
    runs: list[int] = []
    observe = network.observe
    monkeypatch.setattr(network, "observe", lambda x: runs.append(len(x)) or observe(x))
    macs = calibrate(network, COLOUR, images, Target(macs=goal))
    assert goal - 0.1 < macs <= goal
    assert sum(runs) <= 8 * len(images)


def test_what_is_far_from_the_goal_is_known_by_few_images(
    images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few settings run all images: the one that stays, and those beside it; and the result is as if all had."""
    found, runs = [], []
    for few in (len(images), 8):
        network = gated()
        start_by_importance_of(stir(network))
        monkeypatch.setattr(calibrating, "_FEW", few)
        tried: list[int] = []
        run(monkeypatch, network, tried)
        macs = calibrate(network, COLOUR, images, Target(macs=0.6), at_once=8)
        assert macs == pytest.approx(mean_macs(network, images))
        found.append(macs)
        runs.append(sum(tried))
    assert all(0.55 < macs <= 0.6 for macs in found)
    assert runs[1] < 0.8 * runs[0]


def run(monkeypatch: pytest.MonkeyPatch, network: GatedNetwork, tried: list[int]) -> None:
    observe = network.observe
    monkeypatch.setattr(network, "observe", lambda x: tried.append(len(x)) or observe(x))


def test_a_setting_that_meets_the_goal_with_some_images_alone_does_not_stay(
    images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However wrongly a few images decide, what stays was measured with all."""
    network = gated()
    start_by_importance_of(stir(network))
    monkeypatch.setattr(calibrating, "_FEW", 4)
    monkeypatch.setattr(calibrating, "_SURE", 0.0)
    macs = calibrate(network, COLOUR, images, Target(macs=0.6), at_once=4)
    assert macs == pytest.approx(mean_macs(network, images))
    assert macs <= 0.6


def test_the_end_of_a_training_tells_how_far_it_is(images: LabelledImages) -> None:
    network = start_by_importance_of(gated())
    told: list[tuple[int, int]] = []
    finish(network, COLOUR, images, Target(macs=0.7), progress=lambda done, total: told.append((done, total)))
    done, (total,) = [each for each, _ in told], {total for _, total in told}
    assert done == sorted(done)
    assert done[-1] == total
    assert len(images) in done  # after a setting, and not only at the end
    assert len(told) >= 4


def start_by_importance_of(network: GatedNetwork) -> GatedNetwork:
    start_by_importance(network)
    return network
