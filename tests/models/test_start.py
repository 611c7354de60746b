"""Weights to start from: every layer of a file has one place in the network, or all are refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sinf.errors import ModelError
from sinf.models import BaseModel, ModelSpec, load_model
from sinf.models.start import start_from
from tiny import COLOUR

WIDTH = {"width": 0.125}
Weights = dict[str, Tensor]


def made(name: str, classes: int = 6, **options: float) -> BaseModel:
    return load_model(name, classes=classes, options=options or WIDTH)


def weights_of(name: str, classes: int = 6, **options: float) -> Weights:
    """Every value is of its own, so that none can be taken for another."""
    state = made(name, classes, **options).module.state_dict()
    return {key: torch.randn(value.shape) if value.is_floating_point() else value + 7 for key, value in state.items()}


@pytest.mark.parametrize("half", [False, True])
def test_the_same_network(half: bool) -> None:
    given = weights_of("vgg11")
    given = {key: value.half() if half and value.is_floating_point() else value for key, value in given.items()}
    start = start_from(made("vgg11"), given, 0)
    assert (start.random, start.heads) == ((), ())
    for key, value in given.items():
        if value.is_floating_point():
            assert start.state[key].dtype is torch.float32
            assert torch.equal(start.state[key], value.float())
    assert "every layer" in str(start)


def test_a_deeper_vgg_gets_every_layer_in_its_block() -> None:
    """VGG16 has three convolutions less than VGG19, the last of as many blocks; what follows has other numbers."""
    given = weights_of("vgg16")
    start = start_from(made("vgg19"), given, 0)
    assert start.random == (
        "features.23", "features.24", "features.36", "features.37", "features.49", "features.50",
    )  # fmt: skip
    positions = {0: 0, 14: 14, 20: 20, 24: 27, 30: 33, 34: 40, 40: 46}
    for old, new in positions.items():
        for shift in (0, 1):  # the convolution, and its norm
            key = f"features.{{}}.{'weight' if shift == 0 else 'running_var'}"
            assert torch.equal(start.state[key.format(new + shift)], given[key.format(old + shift)])
    assert torch.equal(start.state["classifier.weight"], given["classifier.weight"])
    assert "features.49" in str(start)


def test_other_networks_go_by_name() -> None:
    given = weights_of("resnet32", width=0.5)
    fewer = {key: value for key, value in given.items() if "layer1.1" not in key}
    start = start_from(made("resnet32", width=0.5), fewer, 0)
    assert start.random == ("layer1.1.conv1", "layer1.1.bn1", "layer1.1.conv2", "layer1.1.bn2")
    assert torch.equal(start.state["layer1.2.conv1.weight"], given["layer1.2.conv1.weight"])


def test_what_is_random_is_that_of_a_training_from_scratch_with_the_seed() -> None:
    given = weights_of("vgg11")
    one, again, other = (start_from(made("vgg13"), given, seed) for seed in (1, 1, 2))
    torch.manual_seed(1)
    scratch = made("vgg13").module.state_dict()
    for name in one.random:
        key = f"{name}.weight"
        assert torch.equal(one.state[key], again.state[key])
        assert torch.equal(one.state[key], scratch[key])
    convolution = f"{one.random[0]}.weight"
    assert not torch.equal(one.state[convolution], other.state[convolution])


def test_other_draws_of_the_process_stay_as_they_were() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    given = weights_of("vgg11")
    base = made("vgg13")
    torch.manual_seed(5)
    start_from(base, given, 0)
    assert torch.equal(torch.rand(1), expected)


def test_a_head_for_other_classes_starts_at_random() -> None:
    start = start_from(made("vgg13", classes=6), weights_of("vgg13", classes=10), 0)
    assert start.random == start.heads == ("classifier",)
    assert start.state["classifier.weight"].shape[0] == 6
    assert "for other classes: classifier" in str(start)


def test_a_factory_is_not_called_again() -> None:
    """What weights lack is as the user's code made it."""
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 6))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    given = {"0.weight": torch.ones(6, 3, 1, 1), "0.bias": torch.ones(6)}
    start = start_from(BaseModel(module, ModelSpec("nowhere:make", 6, COLOUR)), given, 0)
    assert start.random == ("3",)
    assert torch.equal(start.state["3.weight"], before["3.weight"])
    assert torch.equal(start.state["0.weight"], given["0.weight"])
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("given", "network", "word"),
    [
        (lambda: weights_of("vgg11", width=0.25), "vgg13", "of 17 do not, the first features.0"),
        (lambda: weights_of("vgg13"), "vgg11", r"the first features.3 \(weight 8x8x3x3, bias 8\)"),
        (lambda: weights_of("resnet20"), "vgg11", "must have a place in vgg11"),
        (dict, "vgg11", "none"),
        (lambda: {k: v for k, v in weights_of("vgg11", classes=10).items() if "classifier" in k}, "vgg11", "none"),
        (lambda: weights_of("vgg11") | {"features.0.bias": torch.full((8,), math.nan)}, "vgg11", "NaN"),
        (lambda: weights_of("vgg11") | {"more.weight": torch.ones(3)}, "vgg11", "more"),
    ],
    ids=["another width", "deeper", "another family", "empty", "a head alone", "not finite", "one layer too many"],
)
def test_what_does_not_fit_is_refused(given, network: str, word: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=word):
        start_from(made(network), given(), 0)
