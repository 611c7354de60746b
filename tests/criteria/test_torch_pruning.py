"""Criteria in torch-pruning's own pruners."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from sinf.criteria import DCS, NAMES, Criterion, group_statistics, make_criterion
from sinf.criteria.torch_pruning import as_importance
from sinf.errors import ConfigError, CutError, DependencyError
from sinf.graph.coupling import couple
from sinf.graph.trace import trace
from sinf.statistics import collect
from tiny import CLASSES, COLOUR, Depthwise, Mixed, conv, randomise


class Net(nn.Module):
    """A chain with a residual sum, norms everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = conv(3, 8), conv(8, 12), conv(12, 8)
        self.last, self.head = conv(8, 10), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(x + self.outer(self.inner(x))).mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Net())


def batches(count: int = 18) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(count) % CLASSES
    x = torch.randn(count, *COLOUR.size, generator=draw) + 0.4 * y[:, None, None, None]
    return list(zip(x.split(7), y.split(7), strict=True))


def importance_of(criterion: Criterion, net: nn.Module, **options: object) -> tp.importance.Importance:
    return as_importance(criterion, net, batches(), classes=CLASSES, **options)


def pruner_of(net: nn.Module, importance: object, ratio: float = 0.5, **options: object) -> tp.pruner.MagnitudePruner:
    example = torch.zeros(1, *COLOUR.size)
    return tp.pruner.MagnitudePruner(
        net, example, importance, pruning_ratio=ratio, ignored_layers=[net.head], **options
    )


def scores_of(criterion: Criterion, net: nn.Module) -> dict[str, Tensor]:
    graph = trace(copy.deepcopy(net), COLOUR)
    coupling = couple(graph)
    found = collect(graph, coupling, batches(), classes=CLASSES, needs=criterion.needs, pool=criterion.pool)
    return {g.name: criterion.score(group_statistics(graph, coupling, g, found)) for g in coupling.free_groups()}


@pytest.mark.parametrize("name", NAMES)
def test_the_least_important_channels_go(net: nn.Module, name: str) -> None:
    criterion = make_criterion(name)
    before, scores = copy.deepcopy(net), scores_of(criterion, net)
    pruner_of(net, importance_of(criterion, net)).step()
    assert (net.stem[0].out_channels, net.inner[0].out_channels, net.last[0].out_channels) == (4, 6, 5)
    assert net(torch.zeros(2, *COLOUR.size)).shape == (2, CLASSES)
    for key, layer, old in (("inner.0", net.inner, before.inner), ("stem.0", net.stem, before.stem)):
        wide = layer[0].out_channels
        kept = torch.argsort(scores[key], descending=True, stable=True)[:wide].sort().values
        assert torch.equal(layer[1].running_mean, old[1].running_mean[kept])


def test_it_is_an_importance_of_theirs_with_the_scores_of_ours(net: nn.Module) -> None:
    importance = importance_of(DCS(pool=2), net)
    assert isinstance(importance, tp.importance.Importance)
    graph = tp.DependencyGraph().build_dependency(net, torch.zeros(1, *COLOUR.size))
    group = graph.get_pruning_group(net.inner[0], tp.prune_conv_out_channels, [3, 7, 4])
    expected = scores_of(DCS(pool=2), net)["inner.0"][[3, 7, 4]]
    torch.testing.assert_close(importance(group).float(), expected)


def test_the_model_stays_as_it_is_until_it_is_pruned(net: nn.Module) -> None:
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    importance = importance_of(DCS(), net)
    graph = tp.DependencyGraph().build_dependency(net, torch.zeros(2, *COLOUR.size))
    net.train()  # torch-pruning sets eval()
    net.load_state_dict(before)  # and runs the model
    importance(graph.get_pruning_group(net.inner[0], tp.prune_conv_out_channels, [1]))
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_iterative_pruning_measures_the_smaller_model_again(net: nn.Module) -> None:
    importance = importance_of(DCS(), net)
    pruner = pruner_of(net, importance, iterative_steps=2)
    pruner.step()
    assert net.inner[0].out_channels == 9
    scores, means = scores_of(DCS(), net)["inner.0"], net.inner[1].running_mean.clone()
    assert scores.shape == (9,)
    pruner.step()
    kept = torch.argsort(scores, descending=True, stable=True)[:6].sort().values
    assert torch.equal(net.inner[1].running_mean, means[kept])


def test_global_pruning_of_equal_channels_takes_no_more_than_asked_for(net: nn.Module) -> None:
    for layer in (net.stem, net.inner, net.outer, net.last):
        layer[0].weight.data[:] = 0.1
    pruner_of(net, importance_of(make_criterion("l1"), net), ratio=0.5, global_pruning=True).step()
    widths = net.stem[0].out_channels + net.inner[0].out_channels + net.last[0].out_channels
    assert widths == 15  # of 30


def test_depthwise_and_gates() -> None:
    torch.manual_seed(0)
    net = randomise(Depthwise())
    scores = scores_of(DCS(), net)["expand.0"]
    means = net.expand[1].running_mean.clone()
    pruner_of(net, importance_of(DCS(), net)).step()
    kept = torch.argsort(scores, descending=True, stable=True)[:4].sort().values
    assert torch.equal(net.expand[1].running_mean, means[kept])
    assert net(torch.zeros(2, *COLOUR.size)).shape == (2, CLASSES)


def test_one_cluster(net: nn.Module) -> None:
    graph = tp.DependencyGraph().build_dependency(net, torch.zeros(1, *COLOUR.size))
    group = graph.get_pruning_group(net.inner[0], tp.prune_conv_out_channels, list(range(12)))
    taylor = make_criterion("taylor")
    whole, cluster = importance_of(taylor, net)(group), importance_of(taylor, net, answer=[0, 3])(group)
    assert not torch.allclose(whole, cluster, rtol=0.01)


def test_frozen_parameters_are_refused(net: nn.Module) -> None:
    net.stem[0].weight.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"frozen parameters.*stem\.0\.weight.*requires_grad_"):
        importance_of(DCS(), net)


def test_batches_that_can_be_read_only_once_are_refused(net: nn.Module) -> None:
    with pytest.raises(ConfigError, match="more than once"):
        as_importance(DCS(), net, iter(batches()), classes=CLASSES)


def test_classes_are_not_pruned(net: nn.Module) -> None:
    pruner = tp.pruner.MagnitudePruner(net, torch.zeros(1, *COLOUR.size), importance_of(DCS(), net))
    with pytest.raises(CutError, match=r"channels of head must all stay.*ignored_layers"):
        pruner.step()


def test_without_torch_pruning_the_error_says_how_to_install_it(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(DependencyError, match="pip install torch-pruning"):
        importance_of(DCS(), net)


def test_mixed_pieces_are_pruned_to_a_network_that_runs() -> None:
    torch.manual_seed(0)
    net = randomise(Mixed(["residual", "concat", "plain"]))
    pruner_of(net, importance_of(DCS(), net)).step()
    assert net(torch.zeros(2, *COLOUR.size)).shape == (2, CLASSES)
    assert net.stem[0].out_channels == 2
