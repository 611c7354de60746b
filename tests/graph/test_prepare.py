"""Prepared networks answer as before, have no batch norm left that could be folded, and leave the original alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sinf.data.preprocessing import Preprocessing
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.models import load_model
from tiny import COLOUR, NETWORKS, Shared, randomise, traced


def norms(graph: torch.fx.GraphModule) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in graph.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_answers_are_the_same(name: str) -> None:
    graph = traced(NETWORKS[name]())
    before = copy.deepcopy(graph.state_dict())
    x = torch.randn(4, *COLOUR.size)
    with torch.no_grad():
        expected = graph(x)
        torch.testing.assert_close(prepare(graph)(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(graph(x), expected, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), graph.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["vgg11", "resnet20"])
def test_no_batch_norm_is_left_in_the_reference_nets(name: str) -> None:
    base = load_model(name)
    graph = trace(randomise(base.module), base.spec.preprocessing)
    ready = prepare(graph)
    assert norms(graph) > 0
    assert norms(ready) == 0
    convs = [m for m in ready.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convs)
    x = torch.randn(2, *base.spec.preprocessing.size)
    with torch.no_grad():
        torch.testing.assert_close(ready(x.to(memory_format=torch.channels_last)), graph(x), rtol=1e-3, atol=1e-3)


def test_a_convolution_that_is_called_twice_keeps_its_norms() -> None:
    graph = traced(Shared())
    shared = [n.target for n in graph.graph.nodes if n.op == "call_module"]
    twice = {t for t in shared if shared.count(t) > 1 and isinstance(graph.get_submodule(t), nn.Conv2d)}
    assert twice
    ready = prepare(graph)
    for target in twice:
        assert torch.equal(ready.get_submodule(target).weight, graph.get_submodule(target).weight)


class NormAct(nn.BatchNorm2d):
    """A batch norm with its activation, as in timm: it is traced into a function and its tensors."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.running_mean, self.running_var
        return self.act(nn.functional.batch_norm(x, mean, var, self.weight, self.bias, self.training, 0.1, self.eps))


class Opened(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=bias), NormAct(8)
        self.depthwise, self.second = nn.Conv2d(8, 8, 3, groups=8, bias=bias), NormAct(8)
        self.head = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.depthwise(self.norm(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize("bias", [False, True])
def test_norms_that_are_functions_are_folded(bias: bool) -> None:
    graph = traced(Opened(bias))
    before = copy.deepcopy(graph.state_dict())
    ready = prepare(graph)
    left = [node.target for node in ready.graph.nodes if node.op in ("call_function", "get_attr")]
    assert nn.functional.batch_norm in [node.target for node in graph.graph.nodes]
    assert left == []
    x = torch.randn(4, *COLOUR.size)
    with torch.no_grad():
        torch.testing.assert_close(ready(x), graph(x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), graph.state_dict().values(), strict=True))


class Checked(NormAct):
    """With a check of what it reads and a drop that does nothing, as in timm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        torch._assert(x.shape[1] == self.num_features, "channels")
        return super().forward(self.drop(x))


def test_checks_of_shapes_keep_no_norm_from_folding() -> None:
    network = Opened(False)
    network.norm, network.second = Checked(8), Checked(8)
    graph = traced(network)
    assert torch._assert in [node.target for node in graph.graph.nodes]
    ready = prepare(graph)
    assert [node.name for node in ready.graph.nodes if node.op in ("call_function", "get_attr")] == []
    assert not any(isinstance(layer, nn.Identity) for layer in ready.modules())
    x = torch.randn(4, *COLOUR.size)
    with torch.no_grad():
        torch.testing.assert_close(ready(x), graph(x), rtol=1e-4, atol=1e-4)


def test_a_check_of_values_stays() -> None:
    class Positive(Opened):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._assert(x.sum() >= 0, "positive")
            return super().forward(x)

    ready = prepare(traced(Positive(True)))
    x = torch.rand(4, *COLOUR.size)
    ready(x)
    with pytest.raises(AssertionError, match="positive"):
        ready(-x)


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_100", "efficientnet_b0", "mobilenetv2_100", "resnet10t", "densenet121"]
)
def test_norms_of_timm_are_folded(name: str) -> None:
    """Those that follow a convolution: a DenseNet's others do not."""
    timm = pytest.importorskip("timm")
    graph = trace(
        randomise(timm.create_model(name, num_classes=6)), Preprocessing((3, 32, 32), (0.5,) * 3, (0.25,) * 3)
    )
    ready = prepare(graph)
    functions = [node for node in ready.graph.nodes if node.target is nn.functional.batch_norm]
    after = [node.args[0] for node in functions]
    convolutions = [
        node for node in after if node.op == "call_module" and isinstance(ready.get_submodule(node.target), nn.Conv2d)
    ]
    assert [node.name for node in convolutions if len(node.users) == 1] == []
    assert bool(functions) == name.startswith("densenet")
    assert not [node for node in ready.graph.nodes if node.target is torch._assert]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ready(x), graph(x), rtol=1e-3, atol=1e-3)


def test_a_function_with_statistics_of_the_batch_stays() -> None:
    class OfBatch(Opened):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.batch_norm(self.conv(x), None, None, training=True)
            return self.head(x.mean((2, 3)))

    graph = traced(OfBatch(True))
    x = torch.randn(4, *COLOUR.size)
    with torch.no_grad():
        torch.testing.assert_close(prepare(graph)(x), graph(x))
