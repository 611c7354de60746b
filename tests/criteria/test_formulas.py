"""Every criterion against its paper's formula, computed the slow and obvious way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from sinf.criteria import (
    CHIP,
    DCS,
    FPGM,
    L2,
    LAMP,
    ActivationMean,
    APoZ,
    BatchNormScale,
    Criterion,
    FisherRatio,
    HRank,
    SquaredTaylor,
    Taylor,
    TVSeparation,
    group_statistics,
    make_criterion,
)
from sinf.errors import ConfigError
from sinf.graph.coupling import couple
from sinf.graph.trace import trace
from sinf.statistics import collect
from tiny import CLASSES, COLOUR, Chain, Mixed, conv, randomise

IMAGES = 24


def images() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    y = torch.arange(IMAGES) % CLASSES
    x = torch.randn(IMAGES, *COLOUR.size, generator=draw) + 0.4 * y[:, None, None, None]
    x[::2, :, :, 3:] = x[::2, :, :, 2:3]  # columns that repeat: maps of a lower rank
    return x, y


def score(criterion: Criterion, net: nn.Module, group: str, **options: object) -> Tensor:
    graph = trace(net, COLOUR)
    coupling = couple(graph)
    x, y = images()
    options = {"classes": CLASSES, "needs": criterion.needs, "pool": criterion.pool} | options
    found = collect(graph, coupling, [(x[:10], y[:10]), (x[10:], y[10:])], **options)
    return criterion.score(group_statistics(graph, coupling, coupling.groups[group], found))


@pytest.fixture
def chain() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Chain())


def maps_of(chain: Chain) -> tuple[np.ndarray, np.ndarray]:
    """(n, 6, 8, 8) after the first ReLU, (n, 5, 8, 8) after the second, which a pooling and a flattening follow."""
    with torch.no_grad():
        first = chain.first(images()[0])
        return first.numpy(), chain.second(first).numpy()


def filters_of(chain: Chain) -> np.ndarray:
    return chain.second[0].weight.detach().numpy().reshape(5, -1).astype(np.float64)


def assert_close(scores: Tensor, expected: object, rtol: float = 1e-4) -> None:
    np.testing.assert_allclose(scores.numpy(), np.asarray(expected), rtol=rtol)


def shares(values: object) -> np.ndarray:
    return np.asarray(values) / np.sum(values)


# ---- of filters


def test_l2(chain: Chain) -> None:
    norms = [math.sqrt(sum(w * w for w in row)) for row in filters_of(chain)]
    assert_close(score(L2(), chain, "second.0"), np.array(norms) / np.mean(norms))


def test_fpgm(chain: Chain) -> None:
    filters = filters_of(chain)
    distances = [sum(math.dist(a, b) for b in filters) for a in filters]
    assert_close(score(FPGM(), chain, "second.0"), np.array(distances) / np.mean(distances))


def test_fpgm_of_twins_is_exact(chain: Chain) -> None:
    """Distances from products would not be zero here."""
    chain.second[0].weight.data[:] = 1000.0
    assert score(FPGM(), chain, "second.0").tolist() == [0.0] * 5


def test_lamp(chain: Chain) -> None:
    energies = (filters_of(chain) ** 2).sum(1)
    expected = np.empty(5)
    order = np.argsort(energies)
    for place, j in enumerate(order):
        expected[j] = energies[j] / energies[order[place:]].sum()
    scores = score(LAMP(), chain, "second.0")
    assert_close(scores, expected)
    assert float(scores.max()) == 1


def test_lamp_of_equal_filters_does_not_tell_them_apart(chain: Chain) -> None:
    chain.second[0].weight.data[:] = 0.5
    chain.second[0].weight.data[2] = 1.0
    assert_close(score(LAMP(), chain, "second.0"), [1 / 8, 1 / 8, 1, 1 / 8, 1 / 8])


def test_bn_scale(chain: Chain) -> None:
    chain.first[1].weight.data[2] *= -1
    assert torch.equal(score(BatchNormScale(), chain, "first.0"), chain.first[1].weight.detach().abs())


def test_filters_and_norms_of_all_layers_that_make_a_unit_count() -> None:
    torch.manual_seed(0)
    net = randomise(Mixed(["residual"]))
    producers = [net.stem[0], net.pieces[0].body[1]]
    expected = 0
    for layer in producers:
        norms = layer.weight.detach().flatten(1).norm(dim=1)
        expected = expected + norms / norms.mean()
    torch.testing.assert_close(score(L2(), net, "stem.0"), expected)
    net.pieces[0].body.append(nn.BatchNorm2d(4))
    randomise(net)
    norms = net.stem[1].weight.detach().abs() + net.pieces[0].body[2].weight.detach().abs()
    torch.testing.assert_close(score(BatchNormScale(), net, "stem.0"), norms)


# ---- of single maps


def test_activation_mean(chain: Chain) -> None:
    first, second = maps_of(chain)
    assert_close(score(ActivationMean(), chain, "first.0"), shares(np.abs(first).mean((0, 2, 3))))
    assert_close(score(ActivationMean(), chain, "second.0"), shares(np.abs(second).mean((0, 2, 3))))


def test_apoz(chain: Chain) -> None:
    for group, maps in zip(("first.0", "second.0"), maps_of(chain), strict=True):
        assert_close(score(APoZ(), chain, group), 1 - (maps == 0).mean((0, 2, 3)))


def test_hrank(chain: Chain) -> None:
    for group, maps in zip(("first.0", "second.0"), maps_of(chain), strict=True):
        ranks = [np.mean([np.linalg.matrix_rank(image[j]) for image in maps]) for j in range(maps.shape[1])]
        assert len(set(ranks)) > 1
        assert_close(score(HRank(), chain, group), shares(ranks))


@pytest.mark.parametrize("width", [5, 80])  # fewer channels than positions, and more
def test_chip(width: int) -> None:
    torch.manual_seed(0)
    net = randomise(nn.Sequential(conv(3, width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)))
    with torch.no_grad():
        maps = net[0](images()[0]).flatten(2).double().numpy()
    expected = np.zeros(width)
    for image in maps:
        whole = np.linalg.norm(image, "nuc")
        for j in range(width):
            masked = image.copy()
            masked[j] = 0
            expected[j] += (whole - np.linalg.norm(masked, "nuc")) / len(maps)
    assert_close(score(CHIP(), net, "0.0"), shares(expected), rtol=1e-3)


# ---- of classes


def features_of(chain: Chain, pool: int = 1) -> np.ndarray:
    """What ``second`` reads, pooled: (n, 6 p^2)."""
    with torch.no_grad():
        return F.adaptive_avg_pool2d(chain.first(images()[0]), pool).flatten(1).double().numpy()


def test_fisher(chain: Chain) -> None:
    """The F statistic of scikit-learn divides both sums by their degrees of freedom."""
    x, y = features_of(chain), images()[1].numpy()
    expected = f_classif(x, y)[0] * (CLASSES - 1) / (IMAGES - CLASSES)
    assert_close(score(FisherRatio(), chain, "first.0"), expected, rtol=1e-3)


@pytest.mark.parametrize("over", ["min", "mean", "max"])
def test_tvs(chain: Chain, over: str) -> None:
    """The Hellinger distance from its definition, by integrating over both densities."""
    x, y = features_of(chain), images()[1].numpy()
    squared = np.empty((CLASSES, 6))
    for c in range(CLASSES):
        for j in range(6):
            (m, a), (n, b) = ((side.mean(), side.std()) for side in (x[y == c, j], x[y != c, j]))

            def both(t: float, m: float = m, a: float = a, n: float = n, b: float = b) -> float:
                p = math.exp(-((t - m) ** 2) / (2 * a * a)) / a
                q = math.exp(-((t - n) ** 2) / (2 * b * b)) / b
                return math.sqrt(p * q / (2 * math.pi))

            low, high = min(m, n) - 9 * max(a, b), max(m, n) + 9 * max(a, b)
            squared[c, j] = 1 - integrate.quad(both, low, high, points=(m, n), limit=200)[0]
    expected = {"min": squared.min(0), "mean": squared.mean(0), "max": squared.max(0)}[over]
    assert_close(score(TVSeparation(over), chain, "first.0"), expected, rtol=2e-3)


@pytest.mark.parametrize("criterion", [TVSeparation(), make_criterion("tvs")])
def test_tvs_takes_the_class_that_a_filter_tells_apart_least(chain: Chain, criterion: Criterion) -> None:
    """As published, where nothing else is asked for."""
    least, mean = (score(TVSeparation(over), chain, "first.0") for over in ("min", "mean"))
    assert torch.equal(score(criterion, chain, "first.0"), least)
    assert (least < mean).all()


@pytest.mark.parametrize("criterion", [FisherRatio(), TVSeparation()])
def test_a_class_of_one_image_is_left_out(chain: Chain, criterion: Criterion) -> None:
    graph = trace(chain, COLOUR)
    coupling = couple(graph)
    x, y = images()
    scores = []
    for extra in (0, 1):
        labels = torch.cat([y, torch.tensor([CLASSES])])[: IMAGES + extra]
        more = torch.cat([x, 5 + x[:1]])[: IMAGES + extra]
        found = collect(graph, coupling, [(more, labels)], classes=CLASSES + 1, needs=criterion.needs)
        scores.append(criterion.score(group_statistics(graph, coupling, coupling.groups["first.0"], found)))
    torch.testing.assert_close(scores[1], scores[0])


def test_tvs_refuses_an_unknown_way_to_take_classes_together() -> None:
    with pytest.raises(ConfigError, match="over must be min, mean or max"):
        TVSeparation("median")


def block_norms(weights: np.ndarray, channels: int = 6) -> np.ndarray:
    return shares(np.sqrt((weights.reshape(len(weights), channels, -1) ** 2).sum((0, 2))))


@pytest.mark.parametrize("pool", [1, 2])
def test_dcs_by_ridge_regression(chain: Chain, pool: int) -> None:
    x = features_of(chain, pool)
    x = (x - x.mean(0)) / x.std(0)
    one_hot = np.eye(CLASSES)[images()[1].numpy()]
    penalty = 0.2 * IMAGES * np.eye(x.shape[1])
    weights = np.linalg.inv(x.T @ x + penalty) @ x.T @ (one_hot - one_hot.mean(0))
    assert_close(score(DCS(0.2, pool=pool), chain, "first.0"), block_norms(weights.T), rtol=1e-3)


@pytest.mark.parametrize("pool", [1, 2])
def test_dcs_by_logistic_regression(chain: Chain, pool: int) -> None:
    x = features_of(chain, pool)
    x = (x - x.mean(0)) / x.std(0)
    fitted = LogisticRegression(C=1 / (0.2 * IMAGES), tol=1e-10, max_iter=10_000).fit(x, images()[1].numpy())
    scores = score(DCS(0.2, "logistic", pool), chain, "first.0")
    assert_close(scores, block_norms(fitted.coef_), rtol=1e-3)
    assert not torch.allclose(scores, score(DCS(0.2, pool=pool), chain, "first.0"), rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "says"), [({"reading": "svm"}, "ridge or logistic"), ({"pool": 0}, "pool must be at least 1")]
)
def test_dcs_refuses_options_out_of_range(options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DCS(**options)


# ---- of the loss


def changes(net: nn.Module, readers: list[nn.Module], answer: list[int] | None = None) -> Tensor:
    """(n, units): derivative of every image's loss by a gate of each unit, one gate for all layers that read it."""
    x, y = images()
    found = []
    for image, label in zip(x, y, strict=True):
        gate = torch.ones(readers[0].weight.shape[1], requires_grad=True)

        def multiply(_: nn.Module, args: tuple[Tensor], gate: Tensor = gate) -> tuple[Tensor]:
            return (args[0] * gate.view(-1, *[1] * (args[0].ndim - 2)),)

        hooks = [reader.register_forward_pre_hook(multiply) for reader in readers]
        logits = net(image[None])
        for hook in hooks:
            hook.remove()
        if answer is not None:
            inside = answer.index(int(label)) if int(label) in answer else 0
            logits, label = logits[:, answer], torch.tensor(inside)
        found.append(torch.autograd.grad(F.cross_entropy(logits, label[None]), gate)[0])
    return torch.stack(found)


class TwoReaders(nn.Module):
    """``stem`` is read by two layers, with effects that cancel in part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 5), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))


def test_taylor_of_a_unit_that_several_layers_read() -> None:
    torch.manual_seed(0)
    net = randomise(TwoReaders())
    each = changes(net, [net.body, net.head])
    scores = score(Taylor(), net, "stem.0")
    torch.testing.assert_close(scores, each.abs().mean(0), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(score(SquaredTaylor(), net, "stem.0"), each.square().mean(0), rtol=1e-3, atol=1e-7)
    apart = changes(net, [net.body]).abs().mean(0) + changes(net, [net.head]).abs().mean(0)
    assert not torch.allclose(scores, apart, rtol=0.05)


def test_taylor_of_a_cluster_is_of_the_loss_among_its_classes(chain: Chain) -> None:
    """Images of other classes have no such loss."""
    answer = [5, 1, 3]
    mine = torch.isin(images()[1], torch.tensor(answer))
    each = changes(chain, [chain.second[0]], answer)
    scores = score(Taylor(), chain, "first.0", answer=answer)
    torch.testing.assert_close(scores, each[mine].abs().sum(0) / IMAGES, rtol=1e-3, atol=1e-7)


def test_gates_on_activations_and_on_weights_are_the_same(chain: Chain) -> None:
    """A flattened map: every channel is 16 inputs of the head."""
    scores = score(Taylor(), chain, "second.0")
    x, y = images()
    weight, total = chain.head.weight, torch.zeros(5)
    for image, label in zip(x, y, strict=True):
        gradient = torch.autograd.grad(F.cross_entropy(chain(image[None]), label[None]), weight)[0]
        total += (gradient * weight).detach().view(CLASSES, 5, 16).sum((0, 2)).abs()
    torch.testing.assert_close(scores, total / IMAGES, rtol=1e-3, atol=1e-7)
