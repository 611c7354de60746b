"""One pass over the images: the sums are what a direct computation gives, whatever the batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from sinf.errors import ConfigError
from sinf.graph.coupling import couple
from sinf.graph.cut import find_cut, partition
from sinf.statistics import (
    DEFAULT,
    TEMPERATURE,
    Active,
    Change,
    Fisher,
    Independence,
    KernelRows,
    Magnitude,
    MapRanks,
    MomentsByClass,
    OutputMoments,
    PooledGram,
    Sample,
    SecondMoments,
    SiteStatistics,
    SquaredChange,
    Statistic,
    SumsByClass,
    collect,
)
from sinf.statistics.maps import map_source
from sinf.statistics.need import need_of, patch_bytes
from sinf.statistics.of_maps import LOOKED_AT
from sinf.statistics.statistic import OfReads, OfUnits, Place, Visit
from tiny import CLASSES, COLOUR, Chain, ChannelsLast, Concat, Depthwise, Grouped, Scaled, Windows, conv, traced

ADDED = (SecondMoments, PooledGram, SumsByClass)
ALL = (
    *DEFAULT, Active, Change, Fisher, Independence, KernelRows, Magnitude, MapRanks, MomentsByClass, OutputMoments,
    Sample, SquaredChange,
)  # fmt: skip


def images(count: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, *COLOUR.size, generator=draw), torch.randint(CLASSES, (count,), generator=draw)


def sites_of(graph: fx.GraphModule, *batches: tuple[Tensor, Tensor], **options: object) -> dict[str, SiteStatistics]:
    return collect(graph, couple(graph, free_output=True), batches, classes=CLASSES, **options)


def assert_same_sums(one: dict[str, SiteStatistics], other: dict[str, SiteStatistics]) -> None:
    assert list(one) == list(other)
    for target in one:
        assert one[target][SecondMoments].positions == other[target][SecondMoments].positions
        for kind in ADDED:
            assert_same(one[target][kind], other[target][kind], rtol=1e-4, atol=1e-3)


def assert_same(one: Statistic, other: Statistic, **near: float) -> None:
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(tensor, other.tensors()[name], **near)


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
        gram = torch.einsum("nchw,ndhw->cd", value, value)
        torch.testing.assert_close(site[SecondMoments].gram, gram, rtol=1e-4, atol=1e-3)
        assert site[SecondMoments].positions == 10 * value.shape[2] * value.shape[3]
        side = 1 if target == "head" else pool  # channels of a flattened map are pooled to their mean
        features = F.adaptive_avg_pool2d(value, side).flatten(1)
        torch.testing.assert_close(site[PooledGram].gram, features.double().T @ features.double(), rtol=1e-4, atol=1e-4)
        by_class = torch.stack([features[y == c].sum(0) for c in range(CLASSES)])
        torch.testing.assert_close(site[SumsByClass].sums, by_class.double(), rtol=1e-4, atol=1e-4)
        assert site[SumsByClass].counts.tolist() == [int((y == c).sum()) for c in range(CLASSES)]


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
    gram = torch.einsum("nhwc,nhwd->cd", value, value)
    torch.testing.assert_close(site[SecondMoments].gram, gram, rtol=1e-4, atol=1e-3)
    assert site[SecondMoments].positions == 6 * 64
    means = value.mean((1, 2))
    torch.testing.assert_close(site[PooledGram].gram, means.double().T @ means.double(), rtol=1e-4, atol=1e-4)


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
        assert torch.equal(plain[target][SecondMoments].gram, inplace[target][SecondMoments].gram)
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
    torch.testing.assert_close(sites["body"][SecondMoments].gram, read.T @ read, rtol=1e-4, atol=1e-3)


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


# ---- what was asked for


def test_only_what_was_asked_for_is_there() -> None:
    graph = traced(Chain())
    site = sites_of(graph, images(4), needs=(SecondMoments, Magnitude))["second.0"]
    assert {type(each) for each in site} == {SecondMoments, Magnitude}
    assert SecondMoments in site
    with pytest.raises(ConfigError, match=r"must have been collected.*PooledGram"):
        _ = site[PooledGram]
    everything = sites_of(graph, images(4), needs=ALL)
    assert {type(each) for each in everything["second.0"]} | set(everything.units) == set(ALL)


def test_statistics_are_the_same_in_company() -> None:
    graph = traced(Depthwise())
    x, y = images(9)
    batches = (x[:4], y[:4]), (x[4:], y[4:])
    everything = sites_of(graph, *batches, needs=ALL)
    for kind in ALL:
        alone = sites_of(graph, *batches, needs=(kind,))
        for target, site in alone.items():
            for each in site:
                assert_same(each, everything[target][kind])
        for each in alone.units.values():
            assert_same(each, everything.units[kind])


def test_a_statistic_of_ones_own() -> None:
    """One class: it is collected, added up over batches, and counted."""

    @dataclass(eq=False)
    class Largest(OfReads):
        total: Tensor

        @classmethod
        def of(cls, visit: Visit) -> Largest:
            return cls(visit.x.flatten(1).amax(1).sum())

        @classmethod
        def bytes_at(cls, place: Place) -> int:
            return 4

    graph = traced(Chain())
    x, y = images(9)
    site = sites_of(graph, (x[:4], y[:4]), (x[4:], y[4:]), needs=(Largest,))["first.0"]
    torch.testing.assert_close(site[Largest].total, x.flatten(1).amax(1).sum())
    assert need_of(graph, couple(graph, free_output=True), (Largest,), CLASSES).sums == 4 * 3


@pytest.mark.parametrize(
    ("options", "says"), [({"needs": (SecondMoments, "gram")}, "by their type .*gram.*take"), ({"pool": 0}, "pool")]
)
def test_unknown_requests_are_refused(options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sites_of(traced(Chain()), images(2), **options)


def test_a_sample_keeps_its_size_and_does_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinf.statistics.of_reads.SAMPLE", 7)
    graph = traced(Chain())
    x, y = images(20)
    whole = sites_of(graph, (x, y), needs=(Sample,))["second.0"][Sample]
    parts = zip(x.split([1, 12, 7]), y.split([1, 12, 7]), strict=True)
    split = sites_of(graph, *parts, needs=(Sample,))["second.0"][Sample]
    assert len(whole.features) == len(split.features) == 7
    assert torch.equal(whole.labels, split.labels)
    torch.testing.assert_close(whole.features, split.features)
    assert len({tuple(row) for row in whole.features.tolist()}) == 7
    kept = [int(torch.nonzero((recorded_features(graph, x) - row).abs().sum(1) < 1e-4)) for row in whole.features]
    assert kept == sorted(kept)  # in the order of the images, with their labels, and not just the first
    assert kept != list(range(7))
    assert y[kept].tolist() == whole.labels.tolist()


def recorded_features(graph: fx.GraphModule, x: Tensor) -> Tensor:
    return recorded_inputs(graph, ["second.0"], x)["second.0"].mean((2, 3))


def test_costly_sums_look_at_the_first_images_of_every_class() -> None:
    graph = traced(Chain())
    x, _ = images(3 * LOOKED_AT)
    y = torch.tensor([0] * (2 * LOOKED_AT) + [4] * LOOKED_AT)  # one class after the other
    looked = torch.cat([x[:LOOKED_AT], x[2 * LOOKED_AT :]])
    needs = (MapRanks, Independence)
    sizes = [3, LOOKED_AT, 2 * LOOKED_AT - 3]
    found = sites_of(graph, *zip(x.split(sizes), y.split(sizes), strict=True), needs=needs)
    expected = sites_of(graph, (looked, torch.arange(2 * LOOKED_AT) % CLASSES), needs=needs)
    for target in found:
        for kind in needs:
            assert_same(found[target][kind], expected[target][kind])


# ---- feature maps


class Pooled(nn.Module):
    """Maps that are read after a pooling, a dropout and a flattening; the second after a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = conv(3, 6), nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6)
        self.second, self.drop, self.head = nn.Conv2d(6, 4, 1), nn.Dropout(0.5), nn.Linear(4 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.deep(self.first(x)))
        return self.head(self.drop(torch.flatten(F.max_pool2d(F.relu(x), 2), 1)))


def test_feature_maps_are_found_before_pooling_and_flattening() -> None:
    graph = traced(Pooled())
    coupling = couple(graph)
    sites = {str(node.target): node for node in graph.graph.nodes if node.name in coupling.mixers}
    found = {target: map_source(graph, coupling, node) for target, node in sites.items()}
    assert {t: s.node.name for t, s in found.items()} == {"first.0": "x", "second": "deep", "head": "relu"}
    assert found["head"].node.meta["shape"] == (1, 4, 4, 4)
    assert (found["head"].dim, found["head"].repeat) == (1, 1)


@pytest.mark.parametrize(
    "last", [nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(3, 1, 1), lambda x: F.adaptive_avg_pool2d(x, 1)]
)
def test_a_pooling_that_keeps_the_shape_is_passed_too(last: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pool, self.head = conv(3, 6), nn.MaxPool2d(8), nn.Linear(6, CLASSES)
            self.last = last

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.flatten(self.last(self.pool(self.first(x))), 1))

    graph = traced(Net())
    coupling = couple(graph)
    (site,) = (node for node in graph.graph.nodes if node.target == "head")
    assert map_source(graph, coupling, site).node.meta["shape"] == (1, 6, 8, 8)


def test_feature_maps_are_of_the_channels_that_are_read() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.join, self.head = conv(3, 4), nn.Conv2d(8, 5, 1), nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.join(torch.cat([x, x], 1)).mean((2, 3)))

    site = sites_of(traced(Twice()), images(5), needs=(Magnitude,))["join"]
    assert site[Magnitude].total.shape == (8,)
    assert torch.equal(site[Magnitude].total[:4], site[Magnitude].total[4:])


def test_feature_maps_of_channels_that_come_last() -> None:
    net = ChannelsLast()
    graph = traced(net)
    x, y = images(5)
    sites = sites_of(graph, (x, y), needs=(Magnitude, Active))
    value = recorded_inputs(net, ["down"], x)["down"]
    torch.testing.assert_close(sites["down"][Magnitude].total.float(), value.abs().sum((0, 1, 2)), rtol=1e-4, atol=1e-3)
    assert int(sites["down"][Active].count) == 5 * 64


def test_what_is_read_and_then_changed_in_place_is_measured_before() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = conv(3, 4), nn.Conv2d(4, 4, 1), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x.add_(self.body(x))
            return self.head(x.mean((2, 3)))

    net = Adds()
    graph = traced(net)
    x, y = images(5)
    value = recorded_inputs(net, ["body"], x)["body"]
    site = sites_of(graph, (x, y), needs=(SecondMoments,))["body"]
    gram = torch.einsum("nchw,ndhw->cd", value, value)
    torch.testing.assert_close(site[SecondMoments].gram, gram, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("cls", [Chain, Concat, Depthwise])
@given(at_once=st.integers(1, 9))
@settings(max_examples=8, deadline=None)
def test_sums_do_not_depend_on_how_many_images_run_at_once(cls: type[nn.Module], at_once: int) -> None:
    """Random directions are drawn for a batch, whatever its parts are."""
    graph, batches = traced(cls()), [images(7, 0), images(6, 1)]
    needs = (*DEFAULT, Fisher, OutputMoments, MapRanks, Change)
    whole = sites_of(graph, *batches, needs=needs)
    parts = sites_of(graph, *batches, needs=needs, at_once=at_once)
    assert_same_sums(parts, whole)
    for target, site in whole.items():
        for kind in (Fisher, OutputMoments, MapRanks):
            assert_same(parts[target][kind], site[kind], rtol=1e-3, atol=1e-5)
    for each, total in whole.units.items():
        assert_same(parts.units[each], total, rtol=1e-3, atol=1e-5)


BY_IMAGE = (SumsByClass, MomentsByClass, PooledGram, Sample, Magnitude, Active, Independence)


@pytest.mark.parametrize("pool", [1, 2])
def test_windows_are_summed_as_parts_of_their_image(pool: int) -> None:
    """Of one image all windows are its own, so these sums cannot be wrong."""
    graph = traced(Windows())
    x, y = images(5)
    needs = (*BY_IMAGE, Change, SquaredChange)
    whole = sites_of(graph, (x, y), needs=needs, pool=pool)
    one_by_one = sites_of(graph, *zip(x.split(1), y.split(1), strict=True), needs=needs, pool=pool)
    for target, site in whole.items():
        for kind in BY_IMAGE:
            assert_same(site[kind], one_by_one[target][kind], rtol=1e-3, atol=1e-4)
    assert len(whole["hidden"][Sample].features) == 5
    for kind, total in whole.units.items():
        assert_same(total, one_by_one.units[kind], rtol=1e-3, atol=1e-6)


def test_feature_maps_of_windows_stand_side_by_side() -> None:
    graph = traced(Windows())
    node = next(node for node in graph.graph.nodes if node.target == "local.1")
    source = map_source(graph, couple(graph, free_output=True), node)
    windows = torch.randn(2 * 4, 8, 4, 4)
    maps = source.maps(windows, 2)
    assert maps.shape == (2, 8, 4, 4 * 4)
    torch.testing.assert_close(maps.unflatten(3, (4, 4))[1, :, :, :, 2], windows[4 + 2])


def test_what_is_made_of_weights_alone_is_the_same_for_every_image() -> None:
    class Biased(Chain):
        """With a position bias: a table of three positions through two layers."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 2))
            self.inner, self.outer = nn.Linear(2, 4), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.outer(F.relu(self.inner(self.table))).mean(0)

    graph = traced(Biased())
    x, y = images(5)
    sites = sites_of(graph, (x, y), needs=(*BY_IMAGE, SecondMoments, Change))
    features = F.relu(graph.inner(graph.table)).detach().mean(0)
    torch.testing.assert_close(sites["outer"][Sample].features, features.expand(5, -1))
    assert sites["outer"][SecondMoments].positions == 5 * 3
    alone = torch.nn.functional.one_hot(y, CLASSES).float()
    logits = graph(x).requires_grad_()
    (by_bias,) = torch.autograd.grad((logits.log_softmax(1) * alone).sum(), logits)
    expected = (features * (by_bias.sum(0) @ graph.outer.weight)).abs()
    units = couple(graph, free_output=True).reads["outer"].units
    torch.testing.assert_close(sites.units[Change].total[units], expected.detach(), rtol=1e-4, atol=1e-5)


def test_patches_of_all_windows_of_an_image_are_counted() -> None:
    graph = traced(Windows())
    assert patch_bytes(graph, couple(graph, free_output=True)) == 4 * (6 * 9) * (4 * 16)


def test_every_matrix_is_counted() -> None:
    """What a pass says that its statistics take is what they take."""
    graph = traced(Chain())
    coupling = couple(graph, free_output=True)
    for pool in (1, 2):
        found = sites_of(graph, images(20), needs=ALL, pool=pool)
        for kind in ALL:
            if issubclass(kind, OfUnits):
                continue
            counted = need_of(graph, coupling, (kind,), CLASSES, pool).sums
            held = sum(tensor.nbytes for site in found.values() for tensor in site[kind].tensors().values())
            assert held <= counted + 200 * len(found), kind
