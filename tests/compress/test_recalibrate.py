"""Batch-norm statistics taken anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sinf.compress.recalibrate import recalibrate
from tiny import Chain, Residual, randomise


def test_statistics_are_those_of_the_images() -> None:
    network = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3)))
    batches = [3 * torch.randn(6, 3, 8, 8) + mean for mean in range(4)]
    assert recalibrate(network, [batches[0], torch.cat(batches[1:])]) == 1
    with torch.no_grad():
        whole = network[0](torch.cat(batches)).mean((0, 2, 3))
    torch.testing.assert_close(network[1].running_mean, whole)  # however they come in batches
    assert recalibrate(network, batches) == 1
    with torch.no_grad():
        seen = [network[0](x) for x in batches]
    torch.testing.assert_close(network[1].running_mean, torch.cat(seen).mean((0, 2, 3)))
    within = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
    torch.testing.assert_close(network[1].running_var, within)
    assert network[1].momentum == 0.3
    assert not any(module.training for module in network.modules())


def test_a_later_layer_sees_what_earlier_ones_now_make() -> None:
    network = randomise(Residual())
    x = torch.randn(12, 3, 8, 8)
    recalibrate(network, [x])
    outputs = []
    norm = network.inner[0][1]
    norm.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    with torch.no_grad():
        network(x)
    centred = (outputs[0] - norm.bias.detach().view(1, -1, 1, 1)) / norm.weight.detach().view(1, -1, 1, 1)
    # Not exactly: a batch is normalised by its own variance while statistics are taken, by the unbiased one later.
    assert float(centred.mean((0, 2, 3)).abs().max()) < 0.02
    assert float((centred.var((0, 2, 3)) - 1).abs().max()) < 0.02


def test_a_batch_of_one_is_left_out_and_weights_stay() -> None:
    one, other = randomise(Chain()), Chain()
    other.load_state_dict(one.state_dict())
    other.eval()
    x = torch.randn(8, 3, 8, 8)
    recalibrate(one, [x, 100 * x[:1]])
    recalibrate(other, [x])
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_statistics_and_modes_are_left_in_order_when_a_batch_fails() -> None:
    network = randomise(Chain())
    with pytest.raises(RuntimeError):
        recalibrate(network, [torch.randn(2, 5, 8, 8)])
    assert not any(module.training for module in network.modules())
    assert network.first[1].momentum == 0.1


def test_a_network_without_norms() -> None:
    assert recalibrate(nn.Conv2d(3, 4, 3), [torch.randn(2, 3, 8, 8)]) == 0
