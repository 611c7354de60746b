"""The falling share of channels and the thresholds that it sets."""

from __future__ import annotations

import math
from copy import copy

import pytest
import torch

from sinf.dynamic.gates import BoostingGate, Gate, SaliencyGate, StaticGate
from sinf.dynamic.methods import METHODS, Method, Static, make_gate, method_of, register
from sinf.dynamic.schedule import remaining_rate, remaining_units, threshold_at
from sinf.dynamic.targets import Target
from sinf.errors import ConfigError


def test_the_rate_is_a_cosine_from_one_to_the_target() -> None:
    rates = [remaining_rate(i / 10, 0.4) for i in range(11)]
    assert rates == pytest.approx([0.4 + 0.6 * (1 + math.cos(math.pi * i / 10)) / 2 for i in range(11)])
    assert (rates[0], rates[-1]) == (1, pytest.approx(0.4))


def test_the_target_is_reached_at_the_ramp_and_kept() -> None:
    assert [remaining_rate(p, 0.3, 0.5) for p in (0, 0.25, 0.5, 0.9)] == pytest.approx([1, 0.65, 0.3, 0.3])
    assert remaining_rate(0.0, 0.3, 0.0) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("units", "rate", "expected"), [(10, 0.5, 5), (10, 0.51, 6), (10, 0.3, 3), (3, 1e-9, 1), (4, 1.0, 4), (30, 0.1, 3)]
)
def test_remaining_units(units: int, rate: float, expected: int) -> None:
    assert remaining_units(units, rate) == expected


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.95])
def test_the_threshold_leaves_the_channels_of_largest_mean(rate: float) -> None:
    mean = torch.rand(20)
    kept = mean >= threshold_at(mean, rate)
    assert int(kept.sum()) == remaining_units(20, rate)
    assert float(mean[kept].min()) > float(mean[~kept].max())


def test_at_a_rate_of_one_nothing_goes() -> None:
    assert float(threshold_at(torch.tensor([0.5, 2.0]), 1.0)) == 0


def test_thresholds_of_nan_are_refused() -> None:
    with pytest.raises(ConfigError, match="finite"):
        threshold_at(torch.tensor([1.0, float("nan")]), 0.5)


@torch.no_grad()
def test_gates_follow_their_formulas() -> None:
    gate, x = SaliencyGate(6, 4, squeeze=2), torch.randn(3, 6, 5, 5)
    gate.threshold.fill_(1.0)
    for image, saliency, mask in zip(x, gate(x), gate.mask(gate(x)), strict=True):
        hidden = [max(0.0, float(row @ image.mean((1, 2)))) for row in gate.squeeze.weight]
        for unit in range(4):
            value = float(gate.excite.weight[unit] @ torch.tensor(hidden) + gate.excite.bias[unit])
            assert float(saliency[unit]) == pytest.approx(max(0.0, value), abs=1e-5)
            assert float(mask[unit]) == pytest.approx(value if value >= 1 else 0, abs=1e-5)


def test_gates_begin_as_published() -> None:
    wide, narrow = SaliencyGate(80, 7), SaliencyGate(79, 7)
    assert (wide.squeeze.out_features, narrow.squeeze.out_features) == (40, 79)
    assert wide.squeeze.bias is None
    assert wide.excite.bias.tolist() == [1] * 7


def test_a_channel_of_no_saliency_never_stays() -> None:
    gate = SaliencyGate(2, 3)
    assert gate.keep(torch.tensor([[0.0, 1e-6, 1.0]])).tolist() == [[False, True, True]]


def test_a_binary_mask_passes_its_gradient_straight_through() -> None:
    gate, saliency = SaliencyGate(2, 3, binary=True), torch.tensor([[0.2, 0.8, 1.5]], requires_grad=True)
    gate.threshold.fill_(0.5)
    mask = gate.mask(saliency)
    mask.sum().backward()
    assert mask.tolist() == [[0, 1, 1]]
    assert saliency.grad.tolist() == [[1, 1, 1]]


def test_boosting_keeps_as_many_for_every_input() -> None:
    gate = BoostingGate(6, 10)
    gate.set_remaining(0.3, torch.rand(10))
    assert gate.keep(torch.rand(5, 10) + 0.1).sum(1).tolist() == [3] * 5


def test_a_static_gate_keeps_the_same_for_every_input() -> None:
    gate = StaticGate(torch.tensor([3.0, 1.0, 2.0, 4.0]))
    gate.set_remaining(0.5, torch.rand(4))
    assert gate.mask(gate(torch.randn(2, 5, 3, 3))).tolist() == [[1, 0, 0, 1]] * 2


@pytest.mark.parametrize(
    "wrong", [{"name": "other"}, {"mask": "soft"}, {"squeeze": 0}], ids=lambda wrong: next(iter(wrong))
)
def test_gates_that_there_are_not_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        make_gate(**{"name": "manidp", "channels": 4, "importance": torch.ones(3)} | wrong)


def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alternating(Method):
        """Every second channel, for every input."""

        name = "alternating"

        def gate(self, channels: int, importance: torch.Tensor, squeeze: float | None, binary: bool) -> Gate:
            return StaticGate(torch.arange(len(importance)) % 2)

    monkeypatch.setattr("sinf.dynamic.methods.METHODS", copy(METHODS))
    register(Alternating())
    assert method_of("alternating").name == "alternating"
    assert make_gate("alternating", 4, torch.ones(4))(torch.ones(1, 4, 2, 2)).round().tolist() == [[0, 1, 0, 1]]

    class Second(Static):
        """Another method with the name of one."""

    with pytest.raises(ConfigError, match="name of its own"):
        register(Second())


@pytest.mark.parametrize("wrong", [{"channels": 0.0}, {"macs": 1.5}, {"channels": 0.5, "latency": 0.5}], ids=str)
def test_targets_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        Target(**wrong)


def test_without_a_target_it_is_half_of_the_macs() -> None:
    assert Target() == Target(macs=0.5)
    assert Target(channels=0.3).macs is None
