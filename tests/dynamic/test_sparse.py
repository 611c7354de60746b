"""What is skipped changes nothing: sparse execution answers as masking does, within rounding."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gated import DEEP, cut, gated, stir
from sinf.dynamic.gates import Gate
from sinf.dynamic.network import GatedNetwork, attach
from sinf.dynamic.sparse import SparseNetwork
from sinf.errors import ConfigError, CutError
from sinf.models import BaseModel, load_model
from tiny import CLASSES, COLOUR, PIECES, Chain, Concat, Depthwise, HalfShuffled, Mixed, Residual, conv, randomise

PATHS = [{"batches": "each"}, {"batches": "mask"}, {"batches": "each", "round_to": 1}]


@torch.no_grad()
def assert_same(network: GatedNetwork, x: Tensor, **options: object) -> None:
    expected = network(x)
    ours = SparseNetwork(network, **options)(x)
    assert float((ours - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("options", PATHS, ids=str)
@pytest.mark.parametrize("module", [Chain, Residual, Depthwise, Concat, HalfShuffled])
def test_tiny_networks(module: type[nn.Module], options: dict) -> None:
    assert_same(cut(gated(module())), torch.randn(5, *COLOUR.size), **options)


class Reused(nn.Module):
    """Two residual branches, and their shortcut is read again after both sums."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.stem = conv(3, 6)
        self.one = nn.Sequential(conv(6, 4), nn.Conv2d(4, 6, 1))
        self.two = nn.Sequential(conv(6, 4), nn.Conv2d(4, 6, 1))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.add_(self.one(x)) if self.inplace else x + self.one(x)
        y = self.two(y) + y
        return self.head((F.relu(y) * x).mean((2, 3)))


@pytest.mark.parametrize("options", PATHS, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_shortcut_read_after_the_sum(inplace: bool, options: dict) -> None:
    network = cut(gated(Reused(inplace)))
    assert sum(bool(site.branch) for site in network.sites) == 2
    assert_same(network, torch.randn(5, *COLOUR.size), **options)


@settings(max_examples=25)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5),
    width=st.sampled_from([2, 4, 6]),
    flat=st.booleans(),
    kind=st.sampled_from(["manidp", "fbs", "static"]),
    block=st.sampled_from([1, 2, 4]),
    binary=st.booleans(),
    rate=st.sampled_from([0.1, 0.5, 0.9]),
    seed=st.integers(0, 1000),
)
def test_any_network_any_gates(
    pieces: list[str], width: int, flat: bool, kind: str, block: int, binary: bool, rate: float, seed: int
) -> None:
    torch.manual_seed(seed)
    try:
        network = gated(Mixed(pieces, width, flat), kind=kind, block=block, mask="binary" if binary else "scaled")
    except CutError:
        return
    cut(network, rate, seed)
    x = torch.randn(3, *COLOUR.size)
    for options in PATHS:
        assert_same(network, x, **options)


@pytest.mark.parametrize("what", ["all gone", "all there", "one"])
def test_the_ends_of_what_a_gate_may_keep(what: str) -> None:
    network = cut(gated(Mixed(DEEP)))
    for index in range(len(network.sites)):
        gate = network.gate(index)
        gate.threshold.fill_({"all gone": 1e9, "all there": 0.0}.get(what, 0.0))
        if what == "one":
            gate.excite.weight.data.zero_()
            gate.excite.bias.data.fill_(-1.0)
            gate.excite.bias.data[-1] = 1.0
    assert_same(network, torch.randn(2, *COLOUR.size))


@pytest.mark.parametrize(
    "name", ["vgg11", "resnet20", "torchvision:mobilenet_v2", "timm:mobilenetv3_small_050", "timm:resnet18"]
)
def test_published_networks(name: str) -> None:
    small = {"options": {"width": 0.25}} if ":" not in name else {"size": (3, 64, 64)}
    base = load_model(name, pretrained=False, classes=5, **small)
    network = stir(attach(BaseModel(randomise(base.module), base.spec)).eval())
    x = torch.randn(3, *base.spec.preprocessing.size)
    for index, saliency in enumerate(network.observe(x)[1].saliencies):
        network.gate(index).set_remaining(0.5, saliency.mean(0).detach())
    assert_same(network, x)
    assert_same(network, x, batches="mask")


@pytest.mark.parametrize("faster", ["each", "mask"])
def test_batches_of_a_size_run_the_way_that_was_faster(monkeypatch: pytest.MonkeyPatch, faster: str) -> None:
    network = cut(gated(Chain()))
    sparse, x = SparseNetwork(network), torch.randn(3, *COLOUR.size)
    clock, ways = [0.0], []
    run = sparse._run

    def timed(way: str, images: Tensor) -> Tensor:
        ways.append(way)
        clock[0] += 1.0 if way == faster else 2.0
        return run(way, images)

    monkeypatch.setattr(sparse, "_run", timed)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    for _ in range(7):
        assert torch.allclose(sparse(x), network(x), atol=1e-4)
    assert sorted(ways[:4]) == ["each", "each", "mask", "mask"]
    assert ways[4:] == [faster] * 3
    sparse(x[:2])
    assert len(ways) == 8
    sparse(x[:1])
    assert len(ways) == 8  # there is nothing to choose


def test_what_is_skipped_is_not_computed() -> None:
    """The convolutions see as many channels as stay, rounded up."""
    network = cut(gated(Mixed(["plain", "plain"], width=32)))
    sparse = SparseNetwork(network, round_to=4)
    x = torch.randn(1, *COLOUR.size)
    _, seen = network.observe(x)
    index = next(i for i, site in enumerate(network.sites) if site.size == 32)
    kept = int((seen.masks[index] > 0).sum())
    widths: dict[str, int] = {}
    for name, module in sparse.graph.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: widths.update({name: args[0].shape[1]}))
    sparse(x)
    consumer = network.sites[index].consumers[0]
    assert 0 < kept < 32
    assert widths[consumer] == (kept + 3) // 4 * 4


def test_training_afterwards_does_not_change_it() -> None:
    network = cut(gated(Mixed(DEEP)))
    x = torch.randn(1, *COLOUR.size)
    sparse = SparseNetwork(network)
    before = sparse(x)
    for parameter in network.gates.parameters():
        parameter.data.zero_()
    assert torch.equal(sparse(x), before)
    assert all(isinstance(network.gate(i), Gate) for i in range(len(network.sites)))


@pytest.mark.parametrize("wrong", [{"batches": "group"}, {"round_to": 0}], ids=str)
def test_options_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        SparseNetwork(gated(Mixed(["plain"])), **wrong)
