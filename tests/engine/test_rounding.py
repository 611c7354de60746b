"""Weights on the steps of 8 bits: none leaves its grid, what a layer writes changes less than by the nearest step, and
the engine's quantiser finds every weight where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from sinf.engine import rounding
from sinf.engine.onnx_parts import network_to_onnx
from sinf.engine.quantise import quantise_graph
from sinf.engine.rounding import _layers, _second_moments, _together, round_weights, rounded_to_steps, rounding_bytes
from sinf.graph.trace import trace
from tiny import CLASSES, COLOUR

STEPS = 127


def correlated(groups: int, inputs: int, rows: int = 400) -> Tensor:
    """``(groups, rows, inputs)`` of which neighbours are similar, and the last hardly vary."""
    x = torch.randn(groups, rows, inputs, generator=torch.Generator().manual_seed(1)).cumsum(2)
    return x * torch.logspace(0, -2, inputs)


def nearest(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(-1, keepdim=True) / STEPS
    return (weight / scale).round() * scale


@pytest.mark.parametrize(("groups", "outputs", "inputs"), [(1, 6, 40), (3, 2, 9), (1, 4, 300), (1, 2, 1)])
def test_less_changes_than_by_the_nearest_step(groups: int, outputs: int, inputs: int) -> None:
    """And every weight is on a step of its output's largest, which stays; also over several blocks of inputs."""
    weight = torch.randn(groups, outputs, inputs, generator=torch.Generator().manual_seed(0))
    rows = correlated(groups, inputs)
    found = rounded_to_steps(weight, rows.transpose(1, 2) @ rows, STEPS)
    scale = weight.abs().amax(2, keepdim=True) / STEPS
    torch.testing.assert_close(found / scale, (found / scale).round(), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.abs().amax(2), weight.abs().amax(2))
    ours, plain = ((rows @ (each - weight).transpose(1, 2)).square().sum() for each in (found, nearest(weight)))
    assert ours <= 0.5 * plain if inputs > 1 else ours <= plain


def test_an_output_without_weights_and_inputs_that_never_vary() -> None:
    weight = torch.zeros(1, 2, 3)
    weight[0, 0] = torch.tensor([1.0, -0.3, 0.2])
    found = rounded_to_steps(weight, torch.zeros(1, 3, 3), STEPS)
    torch.testing.assert_close(found, nearest(weight).nan_to_num())


class Convolutions(nn.Module):
    """Of all forms, and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.uneven = nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, padding=1)
        self.hidden = nn.Linear(12, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.uneven(x).relu()).relu().mean((2, 3))
        return self.head(self.hidden(x).relu())  # type: ignore[no-any-return]


def exported() -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    torch.manual_seed(0)
    x = torch.randn(32, 3, 8, 8).cumsum(3)
    model = network_to_onnx(trace(Convolutions(), COLOUR), (3, 8, 8))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node{number}"
    return model, [{model.graph.input[0].name: each.numpy()} for each in x.split(8)]


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def test_patches_are_what_a_convolution_reads() -> None:
    model, _ = exported()
    first = next(each for each in _layers(model, ()) if each.reads == model.graph.input[0].name)
    x, module = torch.randn(2, 3, 8, 8), Convolutions().uneven
    positions, step = first.positions(x), 3  # over two images
    rows = torch.cat([first.rows(each[None], number * positions, step) for number, each in enumerate(x)], 1)
    written = rows[0] @ module.weight.flatten(1).T + module.bias
    expected = module(x).flatten(2).transpose(1, 2).flatten(0, 1)
    assert len(expected) == 2 * positions
    torch.testing.assert_close(written, expected[::step], rtol=1e-4, atol=1e-4)


def test_layers_of_all_forms_are_rounded_but_those_that_are_kept() -> None:
    model, feeds = exported()
    found = _layers(model, ())
    assert sorted((each.groups, each.window.kernel, each.inputs) for each in found) == [
        (1, (1, 1), 12), (1, (1, 1), 16), (1, (3, 2), 18), (4, (3, 3), 18)
    ]  # fmt: skip
    kept = [node.name for node in model.graph.node if node.op_type == "Gemm"]
    before, after = weights(model), weights(round_weights(model, feeds, kept, STEPS))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {each.weight for each in found if each.window.kernel != (1, 1)}


@pytest.mark.parametrize("rows", [50, 30_000])
def test_second_moments_are_of_every_few_rows_of_all_images(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sums as those of all patches at once, of which every n-th is taken, feed by feed."""
    monkeypatch.setattr(rounding, "_ROWS", rows)
    model, feeds = exported()
    layers = _layers(model, ())
    first = next(each for each in layers if each.window.kernel == (3, 2))
    found, expected = _second_moments(model, layers, feeds)[first.weight][0], torch.zeros(18, 18)
    for feed in feeds:
        x = nn.functional.pad(torch.as_tensor(next(iter(feed.values()))), (2, 2, 1, 1))
        patches = nn.functional.unfold(x, (3, 2), (1, 2), 0, (2, 1)).transpose(1, 2).flatten(0, 1)
        taken = patches[:: max(1, len(patches) * len(feeds) // rows)]
        expected += taken.T @ taken
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-2)


def test_layers_are_looked_at_in_groups_and_the_largest_keep_the_nearest_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are rounded as all together are; what a network takes is known without looking at an image."""
    model, feeds = exported()
    layers = _layers(model, ())
    whole = weights(round_weights(model, feeds, (), STEPS))
    monkeypatch.setattr(rounding, "_SUMS", 8 * 18**2)
    assert [len(each) for each in _together(layers)] == [1, 1, 1, 1]
    for name, value in weights(round_weights(model, feeds, (), STEPS)).items():
        np.testing.assert_array_equal(value, whole[name])
    network = Convolutions()
    assert rounding_bytes(network) == 8 * 18**2 + 4 * 56 * 18**2
    monkeypatch.setattr(rounding, "_EQUATIONS", 56 * 17**2)
    assert [each.inputs for each in _layers(model, ())] == [12, 16]
    assert rounding_bytes(network) == 8 * 18**2 + 56 * 16**2


def test_the_quantiser_finds_weights_on_its_steps() -> None:
    """What the engine runs is what was rounded: no second rounding."""
    model, feeds = exported()
    rounded = weights(round_weights(model, feeds, [model.graph.node[-1].name], STEPS))
    quantised = weights(quantise_graph(model, feeds, "network"))
    layers = [each for each in _layers(model, ()) if each.window.kernel != (1, 1)]
    for layer in layers:
        stored = quantised[f"{layer.weight}_quantized"].astype(np.float64)
        scale = quantised[f"{layer.weight}_scale"].reshape(-1, *[1] * (stored.ndim - 1))
        np.testing.assert_allclose(stored * scale, rounded[layer.weight], rtol=1e-4, atol=1e-6)
