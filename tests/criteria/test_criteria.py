"""The registry, what a group is made of, and what DCS, the energies, L1 and chance say (see also tests/criteria)."""

from __future__ import annotations

import functools
from copy import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from sinf.criteria import (
    DCS,
    L1,
    NAMES,
    Criterion,
    Energy,
    GroupStatistics,
    Random,
    ResidualEnergy,
    group_statistics,
    kind_of,
    make_criterion,
    register,
    registry,
)
from sinf.criteria.base import Reader, Writer
from sinf.errors import ConfigError
from sinf.graph.coupling import CoupledGroup, Coupling, couple
from sinf.statistics import PooledGram, SecondMoments, Sensitivity, SiteStatistics, SumsByClass, collect
from tiny import CLASSES, COLOUR, COUPLED, Concat, traced


def site_of(x: Tensor, y: Tensor, weight: Tensor, sensitivity: Tensor) -> SiteStatistics:
    """Statistics of a 1x1 layer that reads ``x`` (n, C) from images of classes ``y``; ``weight`` is (O, C, K)."""
    x = x.double()
    gram, classes = x.T @ x, int(y.max()) + 1
    sums = torch.zeros(classes, x.shape[1], dtype=torch.float64).index_add_(0, y, x)
    counts = torch.bincount(y, minlength=classes).float()
    return SiteStatistics(
        "site",
        weight,
        len(x),
        [
            SecondMoments(gram, torch.tensor(len(x))),
            Sensitivity(sensitivity * len(x)),
            PooledGram(gram),
            SumsByClass(sums, counts),
        ],
    )


def group_of(site: SiteStatistics, writer: Tensor) -> GroupStatistics:
    """A group that one layer writes and one site reads."""
    channels = torch.arange(site.channels)
    group = CoupledGroup("group", channels, ("writer",), ("site",), None)
    return GroupStatistics(group, [Reader(site, channels)], [Writer(writer, channels)])


def random_case(seed: int, channels: int = 7, images: int = 60) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Correlated features, classes, weights of the reader (O, C, K), sensitivities, weights of the writer."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.eye(channels) + 0.3 * torch.randn(channels, channels, generator=draw)
    y = torch.arange(images) % 3
    x = torch.randn(images, channels, generator=draw) @ mixing + 0.5 * y[:, None]
    weight = torch.randn(5, channels, 2, generator=draw)
    return x, y, weight, torch.rand(5, generator=draw) + 0.1, torch.randn(channels, 3, 3, 3, generator=draw)


@functools.cache
def net_statistics(name: str) -> tuple[fx.GraphModule, Coupling, dict[str, SiteStatistics]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        graph = traced(COUPLED[name]())
        coupling = couple(graph)
        batch = torch.randn(24, *COLOUR.size), torch.arange(24) % CLASSES
        return graph, coupling, collect(graph, coupling, [batch], classes=CLASSES)


# ---- the registry


def test_unknown_criterion_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no such criterion.*magic.*residual.*dcs"):
        make_criterion("magic")
    for name in NAMES:
        assert kind_of(name).name == name
        assert type(make_criterion(name)) is kind_of(name)
        assert issubclass(kind_of(name), Criterion)


def test_a_criterion_of_ones_own_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(L1):
        """Another criterion with the name of one."""

    class Own(L1):
        name = "own"

    monkeypatch.setattr("sinf.criteria.registry._TABLE", copy(registry._TABLE))
    register(L1)
    register(Own)
    assert type(make_criterion("own")) is Own
    with pytest.raises(ConfigError, match="name of its own"):
        register(Second)


# ---- what a group is made of


def test_group_statistics_gathers_all_who_read_and_write() -> None:
    graph, coupling, sites = net_statistics("depthwise")
    group = coupling.groups["expand.0"]
    statistics = group_statistics(graph, coupling, group, sites)
    assert [r.site.target for r in statistics.readers] == ["squeeze", "project.0"]
    assert len(statistics.writers) == len(group.producers) == 3  # expand, the depthwise convolution, the gate
    for each in [*statistics.readers, *statistics.writers]:
        assert each.unit.tolist() == list(range(8))


def test_a_channel_that_is_read_twice_counts_twice() -> None:
    graph, coupling, sites = net_statistics("concat")
    statistics = group_statistics(graph, coupling, coupling.groups["left.0"], sites)
    (reader,) = statistics.readers
    assert reader.unit.tolist() == [0, 1, 2, 3, -1, -1, -1, 0, 1, 2, 3]
    each = Energy().score_channels(reader.site)
    torch.testing.assert_close(Energy().score(statistics), each[:4] + each[7:])


# ---- DCS


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16), scales=st.lists(st.floats(0.01, 100), min_size=7, max_size=7), pool=st.booleans())
def test_dcs_does_not_depend_on_the_scale_of_a_channel(seed: int, scales: list[float], pool: bool) -> None:
    x, y, weight, sensitivity, _ = random_case(seed, channels=14 if pool else 7)
    plain, scaled = (
        DCS().score_channels(site_of(z, y, weight[:, :7], sensitivity))
        for z in (x, x * torch.tensor(scales).repeat_interleave(2 if pool else 1))
    )
    assert plain.shape == (7,)
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-6)
    assert float(plain.sum()) == pytest.approx(1)


def test_dcs_is_the_share_of_a_ridge_classifier_of_standardised_features() -> None:
    x, y, weight, sensitivity, _ = random_case(5, images=61)
    ridge = 0.2
    f = x.double()
    f = (f - f.mean(0)) / f.std(0, correction=0)
    one_hot = nn.functional.one_hot(y, 3).double()
    penalty = (ridge * len(f)) ** 0.5 * torch.eye(7, dtype=torch.float64)
    augmented = torch.cat([f, penalty]), torch.cat([one_hot - one_hot.mean(0), torch.zeros(7, 3, dtype=torch.float64)])
    norms = torch.linalg.lstsq(*augmented).solution.norm(dim=1)
    scores = DCS(ridge).score_channels(site_of(x, y, weight, sensitivity))
    torch.testing.assert_close(scores, norms / norms.sum())


def test_dcs_prefers_the_channel_that_tells_the_classes_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = torch.randn(200, 6, generator=draw)
    x[:, 2] += 2 * y
    x[:, 4] *= 50  # loud, and says nothing
    scores = DCS().score_channels(site_of(x, y, torch.ones(1, 6, 1), torch.ones(1)))
    assert int(scores.argmax()) == 2
    assert float(scores[2]) > 5 * float(scores[[0, 1, 3, 4, 5]].max())


def test_dcs_ignores_classes_without_images() -> None:
    x, y, weight, sensitivity, _ = random_case(6)
    plain = DCS().score_channels(site_of(x, y, weight, sensitivity))
    spread = DCS().score_channels(site_of(x, torch.tensor([1, 4, 9])[y], weight, sensitivity))
    torch.testing.assert_close(spread, plain)


def test_dcs_of_a_channel_that_never_changes_is_nearly_nothing() -> None:
    """In single precision, as the sums are added up: what is left of a constant is rounding, not a feature."""
    x, y, weight, sensitivity, _ = random_case(7, images=600)
    x[:, 3] = 3.7
    site = site_of(x, y, weight, sensitivity)
    gram = sum(part.T @ part for part in x.split(50))
    sums = sum(torch.zeros(3, 7).index_add_(0, c, part) for part, c in zip(x.split(50), y.split(50), strict=True))
    others = PooledGram(gram), SumsByClass(sums, site[SumsByClass].counts)
    scores = DCS().score_channels(site.but(*others))
    assert float(scores[3]) < 0.01


@pytest.mark.parametrize("ridge", [0, -1, float("nan")])
def test_dcs_refuses_a_ridge_that_is_not_positive(ridge: float) -> None:
    with pytest.raises(ConfigError, match="ridge must be positive"):
        DCS(ridge)


# ---- energy, L1 and chance


def test_energy_is_what_a_channel_alone_sends_to_the_layer() -> None:
    x, y, weight, sensitivity, _ = random_case(8)
    alone = torch.stack([torch.einsum("n,ok->nok", x[:, j], weight[:, j]).square().sum() for j in range(7)])
    scores = Energy().score_channels(site_of(x, y, weight, sensitivity))
    torch.testing.assert_close(scores.float(), alone / alone.sum())


def test_l1_is_the_norm_of_the_filters_relative_to_the_layer() -> None:
    *case, writer = random_case(9)
    statistics = group_of(site_of(*case), writer)
    norms = writer.abs().sum((1, 2, 3))
    torch.testing.assert_close(L1().score(statistics), norms / norms.mean())
    louder = replace(statistics, writers=[replace(statistics.writers[0], weight=10 * writer)])
    torch.testing.assert_close(L1().score(louder), norms / norms.mean())


def test_random_differs_by_seed_and_by_group() -> None:
    *case, writer = random_case(10)
    statistics = group_of(site_of(*case), writer)
    other = replace(statistics, group=replace(statistics.group, units=torch.arange(7, 14)))
    draws = [Random(0).score(statistics), Random(1).score(statistics), Random(0).score(other)]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# ---- residual energy


def true_loss(x: Tensor, weight: Tensor, sensitivity: Tensor, gone: list[int]) -> float:
    """What removing channels costs when least squares makes up for them: by brute force, from the outputs."""
    x = x.double()
    kept = [j for j in range(x.shape[1]) if j not in gone]
    out = torch.einsum("nc,ock->nok", x, weight.double()).flatten(1)
    left = out - x[:, kept] @ torch.linalg.lstsq(x[:, kept], out).solution if kept else out
    return float((left.square().sum(0) * sensitivity.double().repeat_interleave(weight.shape[2])).sum() / len(x))


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16))
def test_residual_energy_is_the_loss_of_reconstruction_in_the_order_of_removal(seed: int) -> None:
    """Against a search that tries every channel at every step and solves for the others."""
    x, y, weight, sensitivity, writer = random_case(seed)
    scores = ResidualEnergy(damping=1e-9).score(group_of(site_of(x, y, weight, sensitivity), writer))
    gone: list[int] = []
    expected, lost, floor = torch.zeros(7), 0.0, 0.0
    while len(gone) < 7:
        after = {j: true_loss(x, weight, sensitivity, [*gone, j]) for j in range(7) if j not in gone}
        going = min(after, key=lambda j: after[j])
        floor = max(floor, after[going] - lost)
        expected[going], lost = floor, after[going]
        gone.append(going)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-5)
    assert float(scores.sum()) >= 0.999 * lost  # never promises less than what is lost


def test_residual_energy_never_falls_in_the_order_of_removal() -> None:
    """The reader subtracts two channels that share loud noise: one is needed only because of the other."""
    draw = torch.Generator().manual_seed(0)
    signal, noise, rest = torch.randn(3, 5000, generator=draw)
    x, y = torch.stack([signal + 10 * noise, 10 * noise, rest], 1), torch.arange(5000) % 2
    weight, sensitivity = torch.tensor([[1.0, -1, 0], [0, 0, 2]])[:, :, None], torch.ones(2)
    scores = ResidualEnergy(damping=1e-9).score(group_of(site_of(x, y, weight, sensitivity), torch.ones(3, 1)))
    alone = true_loss(x, weight, sensitivity, [0])
    assert true_loss(x, weight, sensitivity, [0, 1]) < 1.1 * alone  # the second of the two costs next to nothing
    torch.testing.assert_close(scores, torch.tensor([alone, alone, 4.0]), rtol=0.05, atol=0)


def test_residual_energy_of_one_step_is_the_loss_of_each_channel_alone() -> None:
    x, y, weight, sensitivity, writer = random_case(11)
    scores = ResidualEnergy(damping=1e-9, steps=1).score(group_of(site_of(x, y, weight, sensitivity), writer))
    alone = torch.tensor([true_loss(x, weight, sensitivity, [j]) for j in range(7)])
    torch.testing.assert_close(scores, alone, rtol=1e-3, atol=1e-5)


def test_residual_energy_of_a_duplicate_is_nearly_nothing_once() -> None:
    x, y, weight, sensitivity, writer = random_case(12)
    x[:, 5] = x[:, 2]
    scores = ResidualEnergy().score(group_of(site_of(x, y, weight, sensitivity), writer))
    others = scores[[0, 1, 3, 4, 6]]
    twins = scores[[2, 5]].sort().values
    assert float(twins[0]) < 0.02 * float(others.min())
    assert float(twins[1]) > 0.1 * float(others.min())


def test_residual_energy_spares_what_the_answer_depends_on() -> None:
    """Two layers of independent channels: the outputs that do not matter make their channel cheap."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(4000, 3, generator=draw), torch.arange(4000) % 2
    weight = torch.eye(3)[:, :, None]
    scores = ResidualEnergy().score(group_of(site_of(x, y, weight, torch.tensor([1.0, 0.01, 0.0])), torch.ones(3, 1)))
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.01, 0.0]), rtol=0.1, atol=1e-4)


@pytest.mark.parametrize("options", [{"damping": 0}, {"damping": -1}, {"damping": float("nan")}, {"steps": 0}])
def test_residual_energy_refuses_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="damping must be positive and steps at least 1"):
        ResidualEnergy(**options)


def test_a_site_that_several_groups_read_is_inverted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in densely connected networks, where every layer reads what all layers before it made."""
    graph = traced(Concat())
    coupling = couple(graph)
    draw = torch.Generator().manual_seed(0)
    batch = torch.randn(20, *COLOUR.size, generator=draw), torch.randint(CLASSES, (20,), generator=draw)
    sites = collect(graph, coupling, [batch], classes=CLASSES, needs=ResidualEnergy.needs)
    groups = coupling.free_groups()
    assert sum("join.0" in group.consumers for group in groups) == 2
    inverted: list[int] = []
    inverse = torch.cholesky_inverse
    monkeypatch.setattr(torch, "cholesky_inverse", lambda matrix: inverted.append(len(matrix)) or inverse(matrix))
    scores = {g.name: ResidualEnergy().score(group_statistics(graph, coupling, g, sites)) for g in groups}
    assert inverted.count(11) == 1
    more = {name: site + site for name, site in sites.items()}  # other sums are other matrices, and scale as they do
    for group in groups:
        again = ResidualEnergy().score(group_statistics(graph, coupling, group, more))
        assert torch.allclose(again, scores[group.name], rtol=1e-5)
    assert inverted.count(11) == 2
