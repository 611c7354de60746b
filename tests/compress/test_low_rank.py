"""Low rank: what two layers keep of one, which ranks a budget buys, and what solving in sequence makes up for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from sinf.compress import low_rank
from sinf.compress.low_rank import Rank, choose
from sinf.compress.low_rank import metric as metric_module
from sinf.compress.prices import Prices
from sinf.compress.select import Budget
from sinf.data.images import LabelledImages
from sinf.errors import ConfigError
from sinf.graph.coupling import Slot
from sinf.graph.delta import Factors, LayerDeltas, can_factor, groups_of
from sinf.graph.network import Part, PartedNetwork
from sinf.models import BaseModel, load_model
from sinf.pipelines.comparison import Size
from sinf.pipelines.prune import Amount, PruneConfig, prune
from sinf.statistics import Fisher, OutputMoments, SiteStatistics, Statistics, collect
from sinf.statistics.kernel_rows import has_kernel_rows, kernel_rows_of
from sinf.statistics.need import metric_bytes
from times import like_macs
from tiny import CLASSES, COLOUR, Chain, Depthwise, Grouped, Mixed, randomise, traced


def seen(make: Callable[[], nn.Module], images: int = 40) -> tuple[PartedNetwork, Statistics, Tensor]:
    torch.manual_seed(0)
    network = PartedNetwork(traced(make()))
    x = torch.randn(images, *COLOUR.size)
    y = torch.arange(images) % CLASSES
    sites = network.coupling.with_grouped()
    found = collect(network.graph, sites, [(x, y)], classes=CLASSES, needs=low_rank.LowRank.needs)
    return network, found, x


def metrics_of(network: PartedNetwork, found: Statistics) -> dict[str, low_rank.Metric]:
    return low_rank.metrics(found, {target: groups_of(network.graph.get_submodule(target)) for target in found})


def full_ranks(network: PartedNetwork, separable: bool) -> dict[str, Rank]:
    """Of all layers that can be of the form."""
    sites = network.coupling.with_grouped().mixers.values()
    modules = {target: network.graph.get_submodule(target) for target in sites}
    if separable:
        return {t: Rank(m.in_channels * m.kernel_size[1], True) for t, m in modules.items() if has_kernel_rows(m)}
    return {target: Rank(len(m.weight)) for target, m in modules.items() if can_factor(m)}


class Strided(nn.Module):
    """Kernels, strides, paddings and dilations that differ by direction."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(0, 1))
        self.second = nn.Conv2d(6, 8, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1), bias=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


NETWORKS = {
    "Chain": Chain, "Depthwise": Depthwise, "Grouped": Grouped, "Mixed": lambda: Mixed(["plain", "residual"]),
    "Strided": Strided,
}  # fmt: skip
# Where both forms are to be there; what a budget buys depends on the draw of the network.
MIXED_FORMS = {
    "Chain": {"first.0": Rank(4), "second.0": Rank(4, True)},
    "Strided": {"first": Rank(3, True), "second": Rank(6, True)},
}
FORMS = pytest.mark.parametrize("separable", [False, True], ids=["channels", "separable"])


def with_layers(network: PartedNetwork, layers: LayerDeltas) -> fx.GraphModule:
    return network.whole(Part(network.coupling.keep_all(), layers))


@FORMS
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_at_full_rank_nothing_changes(name: str, separable: bool) -> None:
    """Each layer alone, and then one after the other."""
    network, found, x = seen(NETWORKS[name])
    ranks = full_ranks(network, separable)
    solved = low_rank.factor(network.graph, ranks, metrics_of(network, found))
    two = with_layers(network, solved)
    torch.testing.assert_close(two(x.clone()), network.graph(x.clone()), rtol=1e-3, atol=1e-3)
    sites = network.coupling.with_grouped()
    again = low_rank.reconstruct_ranks(network.graph, sites, solved, ranks, metrics_of(network, found), x)
    solved_again = with_layers(network, again)
    torch.testing.assert_close(solved_again(x.clone()), network.graph(x.clone()), rtol=1e-3, atol=1e-3)
    called = {str(node.target) for node in two.graph.nodes if node.op == "call_module"}
    assert ranks or name == "Depthwise"  # whose full convolutions see one position
    for target in ranks:
        assert {f"{target}.reduce", f"{target}.expand"} <= called
        assert target not in called


def separable_site(layer: nn.Conv2d, x: Tensor) -> Statistics:
    """Statistics of a layer alone, of which every output counts the same."""
    kernel_rows, y = kernel_rows_of(layer, x), layer(x).movedim(1, -1).flatten(0, -2).double()
    outputs = OutputMoments(y.sum(0), y.T @ y, torch.tensor(len(y)))
    moments = [outputs, Fisher(torch.eye(len(layer.weight))), kernel_rows]
    return Statistics({"layer": SiteStatistics("layer", layer.weight.flatten(2), 1, moments)})


def separated(layer: nn.Conv2d, found: Statistics, rank: int) -> nn.Sequential:
    graph = fx.symbolic_trace(nn.Sequential(OrderedDict(layer=layer)))
    deltas = low_rank.factor(graph, {"layer": Rank(rank, True)}, low_rank.metrics(found))
    two = deltas["layer"].apply(layer, layer, torch.arange(7), Slot(1, torch.arange(3)))
    assert isinstance(two, nn.Sequential)
    return two


RAISED = 1 + metric_module._FLOOR  # the Fisher information of one for all, and its floor


@torch.no_grad()
def test_what_separable_layers_lose_is_what_was_said() -> None:
    """Where rows of a patch are independent and none is outside, the covariance is the Kronecker product: losses are
    exact."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 7, 3, padding=(0, 1))
    x = torch.randn(3000, 3, 3, 5)
    found = separable_site(layer, x)
    metric = low_rank.metrics(found)["layer"]
    for rank in (2, 4, 8):
        lost = separated(layer, found, rank)(x) - layer(x)
        said = float(metric.kernel_rows[rank:].sum())
        assert float(lost.square().sum(1).mean()) * RAISED == pytest.approx(said, rel=0.05)


@pytest.mark.parametrize("least", [0.5, 1e-3, 0.0, -1e-5])
def test_a_covariance_has_a_triangular_root(least: float) -> None:
    """Also where it has directions without variance, or rounded sums have made theirs negative."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q
    values = torch.cat([torch.full((10,), least), torch.linspace(0.5, 1.5, 30)]).double()
    covariance = basis @ torch.diag(values) @ basis.T
    root = low_rank.metric.triangular_root(covariance)
    assert torch.equal(root, root.tril())
    assert (root @ root.T - covariance).abs().max() < 2e-5
    assert torch.linalg.inv(root).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("similar", [0.0, 0.99])
def test_what_rounding_between_separable_layers_costs_is_what_was_said(similar: float) -> None:
    """Also where rows are similar: then a kernel that tells differences hears the noise and not the image."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 7, 3, padding=(0, 1))
    layer.weight -= layer.weight.mean(2, keepdim=True)  # differences between rows
    x = similar * torch.randn(3000, 3, 1, 5) + (1 - similar**2) ** 0.5 * torch.randn(3000, 3, 3, 5)
    found = separable_site(layer, x)
    metric, share = low_rank.metrics(found)["layer"], 1e-3
    two = separated(layer, found, 8)
    passes = two[0](x)
    noise = torch.randn_like(passes) * (share * passes.var(dim=(0, 2, 3), keepdim=True)).sqrt()
    heard = float((two[1](passes + noise) - two[1](passes)).square().sum(1).mean())
    assert heard * RAISED == pytest.approx(share * float(metric.kernel_row_noise[:8].sum()), rel=0.1)
    many = float(metric.kernel_row_noise.sum() / metric.kernel_rows.sum())
    assert many == pytest.approx(1, rel=0.1) if similar == 0 else many > 20


@torch.no_grad()
def test_with_one_metric_for_all_outputs_it_is_principal_components() -> None:
    """The error of a layer's outputs is the sum of the variances that were dropped, and their mean stays."""
    network, found, x = seen(Chain)
    found["second.0"] = found["second.0"].but(Fisher(torch.eye(5) * found["second.0"].images))
    known = low_rank.metrics(found)
    solved = low_rank.factor(network.graph, {"second.0": Rank(2)}, known)
    wrote: dict[str, Tensor] = {}
    for name, graph, target in (("base", network.graph, "second.0"), ("two", None, "second.0.expand")):
        graph = graph or with_layers(network, solved)
        layer = graph.get_submodule(target)
        handle = layer.register_forward_hook(
            lambda m, a, out, name=name: wrote.update({name: out.clone().movedim(1, -1)})
        )
        graph(x.clone())
        handle.remove()
    base, two = (wrote[name].flatten(0, -2).double() for name in ("base", "two"))
    variances = torch.linalg.eigvalsh(base.T.cov(correction=0)).flip(0)
    assert float((base - two).square().sum(1).mean()) == pytest.approx(float(variances[2:].sum()), rel=1e-3)
    torch.testing.assert_close(two.mean(0), base.mean(0), rtol=1e-3, atol=1e-3)


def test_no_other_ranks_within_the_budget_lose_less() -> None:
    network, found, _ = seen(Chain)
    known, count = low_rank.metrics(found), network.macs
    prices = Prices(Budget(1.0), count)
    choices = {t: choose._options(t, prices, known, 1) for t in ("first.0", "second.0", "head")}
    whole = sum(options[0].cost for options in choices.values())
    for share in (0.9, 0.6, 0.4):
        ranks = low_rank.choose_ranks(Budget(share), count, known, 1)
        ours = [next(o for o in options if o.rank == ranks.get(t)) for t, options in choices.items()]
        cost, loss = sum(o.cost for o in ours), sum(o.loss for o in ours)
        assert cost <= share * whole
        for other in product(*choices.values()):
            within = sum(o.cost for o in other) <= share * whole * (1 - 1e-3)  # costs are rounded up
            assert not within or sum(o.loss for o in other) >= loss - 1e-12


def test_what_is_decomposed_takes_what_is_planned() -> None:
    """Of a network so deep that work on one layer is little beside."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(20)]
    deep = nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    network, found, _ = seen(lambda: deep, 8)
    kept = sum(tensor.nbytes for tensor in metric_module.to_tensors(metrics_of(network, found)).values())
    assert kept <= metric_bytes(network.graph, network.coupling) < 2 * kept


def test_ranks_are_multiples() -> None:
    network, found, _ = seen(Chain)
    ranks = low_rank.choose_ranks(Budget(0.6), network.macs, low_rank.metrics(found), 2)
    assert ranks
    assert all(rank.channels % 2 == 0 for rank in ranks.values())
    for wrong, match in (((Budget(0.01), 1), "within reach"), ((Budget(0.6), 0), "round_to")):
        with pytest.raises(ConfigError, match=match):
            low_rank.choose_ranks(wrong[0], network.macs, low_rank.metrics(found), wrong[1])


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU()])
def test_layers_that_cannot_be_two(layer: nn.Module) -> None:
    assert not can_factor(layer)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_solving_in_sequence_comes_nearer(name: str) -> None:
    network, found, x = seen(NETWORKS[name], 200)
    known = metrics_of(network, found)
    ranks = MIXED_FORMS.get(name) or low_rank.choose_ranks(Budget(0.75), network.macs, known, 1)
    start = low_rank.factor(network.graph, ranks, known)
    solved = low_rank.reconstruct_ranks(network.graph, network.coupling.with_grouped(), start, ranks, known, x)
    assert {target for target, layer in solved.items() if isinstance(layer, Factors)} == set(ranks)
    wanted = network.graph(x.clone())
    gaps = [(with_layers(network, s)(x.clone()) - wanted).square().mean() for s in (start, solved)]
    assert float(gaps[1]) < float(gaps[0])


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.manual_seed(0)
    made = load_model("resnet20", classes=6, options={"width": 0.5})
    return BaseModel(randomise(made.module), made.spec)


CONFIG = PruneConfig(Amount(macs=0.75), "ranks", limits=None, images=36, round_to=1)


def test_a_plain_model_within_the_budget(base: BaseModel, tiny_images: LabelledImages, tmp_path: Path) -> None:
    plain = prune(base, tiny_images, CONFIG, tmp_path)
    assert 0.6 < Size.of(plain).macs / Size.of(base).macs <= 0.75
    assert "layer3.2.conv1.reduce.weight" in plain.module.state_dict()
    again = prune(base, tiny_images, CONFIG, tmp_path)  # what was stored
    assert all(torch.equal(value, again.module.state_dict()[name]) for name, value in plain.module.state_dict().items())


def test_a_budget_of_time(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is played by parameters, so that the test does not depend on the machine."""

    class Times:
        def __init__(self, median: float, base_median: float) -> None:
            self.median, self.base_median = median, base_median

    def fake(theirs: nn.Module, ours: nn.Module, x: Tensor, **options: object) -> Times:
        return Times(*(sum(p.numel() for p in m.parameters()) for m in (ours, theirs)))

    monkeypatch.setattr("sinf.pipelines.latency_budget.latency", fake)
    monkeypatch.setattr("sinf.pipelines.latency_budget.layer_times", lambda graph, *_, **__: like_macs(graph))
    monkeypatch.setattr("sinf.pipelines.latency_budget.open_network", lambda network, *_, **__: network)
    plain = prune(base, tiny_images, replace(CONFIG, amount=Amount(latency=0.8), reconstruct=False), tmp_path)
    assert 0.5 < Size.of(plain).parameters / Size.of(base).parameters < 0.85


@pytest.mark.parametrize("wrong", [{"amount": Amount(ratio=0.5)}, {"criterion": "l1"}], ids=str)
def test_it_removes_no_channels(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="removes no channels"):
        replace(CONFIG, **wrong)
