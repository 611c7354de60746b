"""One pass over the images: the sums are what a direct computation gives, whatever the batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from sinf.partition import find_cut, partition
from sinf.statistics import TEMPERATURE, SiteStatistics, collect
from sinf.subgraph.coupling import couple
from tiny import CLASSES, COLOUR, Chain, ChannelsLast, Concat, Depthwise, Grouped, Scaled, conv, traced

SUMS = ("gram", "pooled_gram", "class_sums", "class_counts")


def images(count: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, *COLOUR.size, generator=draw), torch.randint(CLASSES, (count,), generator=draw)


def sites_of(graph: fx.GraphModule, *batches: tuple[Tensor, Tensor], **options: object) -> dict[str, SiteStatistics]:
    return collect(graph, couple(graph, free_output=True), batches, classes=CLASSES, **options)


def assert_same_sums(one: dict[str, SiteStatistics], other: dict[str, SiteStatistics]) -> None:
    assert list(one) == list(other)
    for target in one:
        assert one[target].positions == other[target].positions
        for name in SUMS:
            torch.testing.assert_close(getattr(one[target], name), getattr(other[target], name), rtol=1e-4, atol=1e-3)


@settings(max_examples=12)
@given(
    cls=st.sampled_from([Chain, Depthwise, Concat, Grouped, ChannelsLast]),
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    pool=st.integers(1, 2),
)
def test_sums_do_not_depend_on_the_batches(cls: type[nn.Module], sizes: list[int], pool: int) -> None:
    torch.manual_seed(0)
    graph = traced(cls())
    x, y = images(sum(sizes))
    split = sites_of(graph, *zip(x.split(sizes), y.split(sizes), strict=True), pool=pool)
    assert_same_sums(split, sites_of(graph, (x, y), pool=pool))
    for site in split.values():
        assert site.sensitivity.shape == (len(site.weight),)
        assert bool((site.sensitivity >= 0).all())
        assert bool(site.sensitivity.isfinite().all())
        assert float(site.sensitivity.sum()) > 0


def test_statistics_of_two_sets_add_up_to_those_of_all_images() -> None:
    graph = traced(Chain())
    x, y = images(20)
    one, other = sites_of(graph, (x[:7], y[:7])), sites_of(graph, (x[7:], y[7:]), seed=1)
    both = {target: one[target] + other[target] for target in one}
    assert_same_sums(both, sites_of(graph, (x, y)))
    for target, site in both.items():
        mean = (7 * one[target].sensitivity + 13 * other[target].sensitivity) / 20
        torch.testing.assert_close(site.sensitivity, mean)
        assert torch.equal(site.weight, one[target].weight)


def recorded_inputs(module: nn.Module, targets: list[str], x: Tensor) -> dict[str, Tensor]:
    """What layers read, seen by hooks of torch's own."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.get_submodule(t).register_forward_pre_hook(lambda _, args, t=t: seen.__setitem__(t, args[0].clone()))
        for t in targets
    ]
    with torch.no_grad():
        module(x.clone())
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("pool", [1, 2])
def test_sums_equal_a_direct_computation(pool: int) -> None:
    net = Chain()
    graph = traced(net)
    x, y = images(10)
    sites = sites_of(graph, (x[:4], y[:4]), (x[4:], y[4:]), pool=pool)
    assert list(sites) == ["first.0", "second.0", "head"]
    seen = recorded_inputs(net, list(sites), x)
    maps = {t: value if value.ndim == 4 else value.view(10, 5, 4, 4) for t, value in seen.items()}
    for target, site in sites.items():
        value = maps[target]
        torch.testing.assert_close(site.gram, torch.einsum("nchw,ndhw->cd", value, value), rtol=1e-4, atol=1e-3)
        assert site.positions == 10 * value.shape[2] * value.shape[3]
        side = 1 if target == "head" else pool  # channels of a flattened map are pooled to their mean
        features = F.adaptive_avg_pool2d(value, side).flatten(1)
        torch.testing.assert_close(site.pooled_gram, features.T @ features, rtol=1e-4, atol=1e-4)
        by_class = torch.stack([features[y == c].sum(0) for c in range(CLASSES)])
        torch.testing.assert_close(site.class_sums, by_class, rtol=1e-4, atol=1e-4)
        assert site.class_counts.tolist() == [int((y == c).sum()) for c in range(CLASSES)]


def test_weight_of_a_flattened_linear_layer_is_taken_apart_by_channel() -> None:
    graph = traced(Chain())
    sites = sites_of(graph, images(4))
    head = graph.get_submodule("head").weight
    assert sites["head"].weight.shape == (CLASSES, 5, 16)
    assert torch.equal(sites["head"].weight[:, 3], head[:, 3 * 16 : 4 * 16])
    assert torch.equal(sites["second.0"].weight, graph.get_submodule("second.0").weight.flatten(2))


def test_linear_layer_over_the_last_dimension_has_all_positions() -> None:
    net = ChannelsLast()
    graph = traced(net)
    x, y = images(6)
    site = sites_of(graph, (x, y))["up"]
    value = recorded_inputs(net, ["up"], x)["up"]
    torch.testing.assert_close(site.gram, torch.einsum("nhwc,nhwd->cd", value, value), rtol=1e-4, atol=1e-3)
    assert site.positions == 6 * 64
    means = value.mean((1, 2))
    torch.testing.assert_close(site.pooled_gram, means.T @ means, rtol=1e-4, atol=1e-4)


class InPlace(nn.Module):
    """What convolutions write is changed by activations and by a sum, in place or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace))
        self.one = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Hardswish(inplace))
        self.other = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.LeakyReLU(0.1, inplace)
        self.head = nn.Linear(6, CLASSES)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.other(x)
        if self.inplace:
            y += self.one(x)
        else:
            y = y + self.one(x)
        return self.head(self.act(y).mean((2, 3)))


def test_activations_in_place_do_not_change_what_is_recorded() -> None:
    nets = [InPlace(False), InPlace(True)]
    nets[1].load_state_dict(nets[0].state_dict())
    batch = images(8)
    plain, inplace = (sites_of(traced(net), batch) for net in nets)
    assert list(plain) == list(inplace)
    for target in plain:
        assert torch.equal(plain[target].gram, inplace[target].gram)
        torch.testing.assert_close(plain[target].sensitivity, inplace[target].sensitivity)


def test_tail_that_begins_in_place() -> None:
    class Preactivated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
            self.act, self.body, self.head = nn.ReLU(inplace=True), nn.Conv2d(6, 6, 1), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.left(x) + self.right(x)
            y = self.body(self.act(x))
            return self.head((x + y).mean((2, 3)))

    graph = traced(Preactivated())
    parts = partition(graph, find_cut(graph, "add"))
    x, y = images(8)
    with torch.no_grad():
        features = parts.extractor(x)
    copy = features.clone()
    sites = sites_of(parts.tail, (features, y))
    assert torch.equal(features, copy)
    read = features.relu().movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(sites["body"].gram, read.T @ read, rtol=1e-4, atol=1e-3)


def test_sensitivity_of_the_head_is_the_variance_of_the_softened_answer() -> None:
    """At the logits the Fisher information is diag(p) - p p'; many random directions average to its diagonal."""
    graph = traced(Chain())
    graph.get_submodule("head").weight.data *= 3
    one = images(1)[0]
    with torch.no_grad():
        p = (graph(one)[0] / TEMPERATURE).softmax(0)
    repeated = one.expand(500, -1, -1, -1), torch.zeros(500, dtype=torch.int64)
    site = sites_of(graph, *[repeated] * 8)["head"]
    torch.testing.assert_close(site.sensitivity, p * (1 - p), rtol=0.1, atol=0)


def test_sensitivity_is_of_the_answer_asked_for() -> None:
    graph = traced(Chain())
    site = sites_of(graph, images(8), answer=[1, 4])["head"]
    assert (site.sensitivity > 0).tolist() == [c in (1, 4) for c in range(CLASSES)]


def test_sensitivity_is_drawn_by_the_seed() -> None:
    graph = traced(Chain())
    first, again, other = (sites_of(graph, images(8), seed=seed)["second.0"] for seed in (0, 0, 1))
    assert torch.equal(first.sensitivity, again.sensitivity)
    assert not torch.equal(first.sensitivity, other.sensitivity)


def test_layer_that_the_answer_does_not_depend_on_has_no_sensitivity() -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate, self.head = conv(3, 4), nn.Conv2d(4, 4, 1), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head((x + 0 * self.gate(x)).mean((2, 3)))

    sites = sites_of(traced(Loose()), images(4))
    assert sites["gate"].sensitivity.tolist() == [0, 0, 0, 0]
    assert float(sites["stem.0"].sensitivity.sum()) > 0


def test_readout_is_the_sum_over_outputs_and_kernel_positions() -> None:
    site = sites_of(traced(Chain()), images(4))["second.0"]
    by_hand = sum(
        site.sensitivity[o] * torch.outer(site.weight[o, :, k], site.weight[o, :, k])
        for o in range(5)
        for k in range(9)
    )
    torch.testing.assert_close(site.readout, by_hand)


def test_model_and_images_stay_as_they_were() -> None:
    graph = traced(Scaled())
    x, y = images(4)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    copy = x.clone()
    sites_of(graph, (x, y))
    assert torch.equal(x, copy)
    assert not x.requires_grad
    assert all(torch.equal(before[name], value) for name, value in graph.state_dict().items())
    assert all(parameter.grad is None for parameter in graph.parameters())
