"""Convolutions in groups by rank: what groups lose together, what is bought, and that it goes everywhere."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from scopes import WHOLE, scope_of
from sinf.compress import low_rank
from sinf.compress.compressor import Compression, Run
from sinf.compress.low_rank import LowRank, Rank
from sinf.compress.low_rank import metric as metric_module
from sinf.compress.select import Budget
from sinf.data.clusters import from_column
from sinf.data.images import LabelledImages, load_images
from sinf.engine.engines import native, open_engine
from sinf.engine.torch_engine import SemanticModel
from sinf.graph.apply import apply
from sinf.graph.cost import MacCount
from sinf.graph.coupling import Slot, couple
from sinf.graph.delta import Factors, Mix, Weights, from_tensors, to_tensors
from sinf.models import BaseModel, load_model
from sinf.models.to_plain import make_plain, to_plain
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.pipelines.prune import Amount, PruneConfig, prune
from sinf.routing.predictor import RouterConfig
from sinf.statistics import Fisher, OutputMoments, SiteStatistics, Statistics
from sinf.statistics.kernel_rows import kernel_rows_of
from sinf.storage.steps import StepStore
from tiny import COLOUR, ENGINES, WideGroups

GROUPS = 2


def site(layer: nn.Conv2d, x: Tensor, fisher: Tensor) -> Statistics:
    y = layer(x).movedim(1, -1).flatten(0, -2).double()
    moments = [OutputMoments(y.sum(0), y.T @ y, torch.tensor(len(y))), Fisher(fisher), kernel_rows_of(layer, x)]
    return Statistics({"layer": SiteStatistics("layer", layer.weight.flatten(2), 1, moments)})


@torch.no_grad()
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_what_groups_lose_together_is_what_was_said(rank: int) -> None:
    """Also where the answer feels channels of two groups together, and these vary together."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 3, groups=GROUPS)
    x = torch.randn(200, 8, 6, 6)
    x[:, 4:] += x[:, :4]
    root = torch.randn(12, 12, dtype=torch.float64)
    fisher = root @ root.T
    found = site(layer, x, fisher)
    metric = low_rank.metrics(found, {"layer": GROUPS})
    graph = fx.symbolic_trace(nn.Sequential(OrderedDict(layer=layer)))
    delta = low_rank.factor(graph, {"layer": Rank(GROUPS * rank)}, metric)["layer"]
    two = delta.apply(layer, layer, torch.arange(12), Slot(1, torch.arange(8)))
    lost = (two(x) - layer(x)).movedim(1, -1).flatten(0, -2).double()
    raised = fisher + metric_module._FLOOR * torch.diagonal(fisher).mean() * torch.eye(12)
    heard = float(torch.einsum("no,op,np->n", lost, raised, lost).mean())
    assert heard == pytest.approx(float(metric["layer"].values[rank:].sum()), rel=1e-3)


@torch.no_grad()
def test_groups_that_nobody_mixes_are_layers_of_their_own() -> None:
    """Where F and C have no entries between groups, each group keeps what it would alone."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 3, groups=GROUPS)
    x = torch.randn(200, 8, 6, 6)
    found = site(layer, x, torch.eye(12, dtype=torch.float64))
    outputs = found["layer"][OutputMoments]
    between = torch.block_diag(torch.ones(6, 6), torch.ones(6, 6))
    centred = outputs.covariance() * between + torch.outer(outputs.mean, outputs.mean)
    found["layer"] = found["layer"].but(OutputMoments(outputs.total, centred * outputs.count, outputs.count))
    together = low_rank.metrics(found, {"layer": GROUPS})["layer"].values
    alone = [torch.linalg.eigvalsh(outputs.covariance()[rows, rows]).flip(0) for rows in (slice(0, 6), slice(6, 12))]
    torch.testing.assert_close(together, sum(alone) * (1 + metric_module._FLOOR), rtol=1e-6, atol=1e-9)


def made(scope_budget: float, tmp_path: Path, network: nn.Module, notice: list[str], round_to: int = 2) -> tuple:
    scope, _ = scope_of(network)
    run = Run(StepStore(tmp_path), notice=notice.append)
    work = Compression(LowRank(round_to), [scope], [(Budget(scope_budget), WHOLE)], run)
    return scope, work.part(0), work.plans[0]


@torch.no_grad()
def test_a_budget_buys_ranks_in_groups(tmp_path: Path) -> None:
    torch.manual_seed(0)
    notices: list[str] = []
    scope, part, plan = made(0.45, tmp_path, WideGroups(), notices)
    rank, delta = plan["grouped.0"], part.layers["grouped.0"]
    assert isinstance(delta, Factors)
    assert rank.channels % GROUPS == 0
    assert not rank.separable
    assert delta.reduce.shape == (rank.channels, 8, 3, 3)
    assert delta.expand.shape == (16, rank.channels // GROUPS, 1, 1)
    smaller = apply(scope.graph, scope.coupling, part.keep, part.layers)
    macs = [MacCount(graph, couple(graph)).total() for graph in (smaller, scope.graph)]
    assert macs[0] <= 0.45 * macs[1]
    x = torch.randn(3, *COLOUR.size)
    description, state = to_plain(smaller)
    plain = make_plain(description, COLOUR.size)
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(x.clone()), smaller(x.clone()), rtol=1e-4, atol=1e-5)
    again = from_tensors(to_tensors(part.layers))
    twin = apply(scope.graph, scope.coupling, part.keep, again)
    assert torch.equal(twin(x.clone()), smaller(x.clone()))
    assert notices == []


def test_layers_that_no_budget_makes_smaller_are_said_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    notices: list[str] = []
    _, part, plan = made(0.85, tmp_path, WideGroups(16), notices, round_to=4)
    assert "grouped.0" not in plan
    assert not isinstance(part.layers.get("grouped.0"), Factors)
    assert len(notices) == len(set(notices))
    assert [text for text in notices if "one output a group: grouped.0" in text]
    narrow = [text for text in notices if "two cost more" in text]
    assert narrow
    assert all("grouped.0" not in text for text in narrow)


def test_ranks_in_groups_of_what_channels_left(tmp_path: Path) -> None:
    """Whole groups go, and the layer that is left is in fewer groups: so are its two."""
    base, read = nn.Conv2d(16, 16, 3, groups=4), Slot(1, torch.arange(4).repeat_interleave(4))
    two = Factors(torch.zeros(6, 4, 3, 3), torch.zeros(8, 3, 1, 1), torch.zeros(8))
    assert two.fits(base, (8, 4, 3, 3), read)
    wrong = [
        Factors(torch.zeros(5, 4, 3, 3), torch.zeros(8, 2, 1, 1), torch.zeros(8)),  # not as many of every group
        Factors(torch.zeros(6, 8, 3, 3), torch.zeros(8, 3, 1, 1), torch.zeros(8)),  # that reads all channels
        Factors(torch.zeros(6, 4, 1, 3), torch.zeros(8, 3, 3, 1), torch.zeros(8)),  # separable
        Mix(torch.zeros(16, 8)),
    ]
    assert not any(delta.fits(base, (8, 4, 3, 3), read) for delta in wrong)
    assert Weights(torch.zeros(8, 4, 3, 3)).fits(base, (8, 4, 3, 3), read)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.manual_seed(0)
    return load_model("tiny:WideGroups", size=(3, 32, 32))


def in_two(network: nn.Module) -> list[nn.Module]:
    layers = dict(network.named_modules())
    return [next(m for name, m in layers.items() if name.endswith(f"grouped.0.{end}")) for end in ("reduce", "expand")]


def test_a_plain_model(base: BaseModel, tiny_images: LabelledImages, tmp_path: Path) -> None:
    plain = prune(
        base, tiny_images, PruneConfig(Amount(macs=0.45), "ranks", limits=None, images=36, round_to=2), tmp_path
    )
    assert [layer.groups for layer in in_two(plain.module)] == [GROUPS, GROUPS]


@torch.no_grad()
@pytest.mark.parametrize("engine", ENGINES)
def test_a_bundle_in_every_engine(bundle: Path, engine: str) -> None:
    model = SemanticModel.from_pretrained(bundle, allow_factory=True)
    model.threshold = 0.0
    opened = open_engine(SemanticModel(model.bundle), engine, threads=1)
    opened.threshold = 0.0
    x = torch.randn(8, 3, 32, 32)
    expected, routed = model.route(x), opened.route(native(engine, x))
    torch.testing.assert_close(torch.as_tensor(routed.logits), expected.logits, rtol=1e-4, atol=1e-4)
    opened.close()


@pytest.fixture(scope="module")
def bundle(base: BaseModel, tiny_images: LabelledImages, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups") / "bundle"
    images = Images(tiny_images, tiny_images, load_images(data, "test"))
    config = BuildConfig(
        keep_anyway=True, cut="stem", max_loss=0.9, route_draws=240, router=RouterConfig(epochs=2, hidden=16),
        method="ranks", macs=0.45, round_to=2,
    )  # fmt: skip
    made = build(base, images, from_column(tiny_images), config, folder)
    factored = [part.layers.get("grouped.0") for name, part in made.parts.items() if name.startswith("cluster")]
    assert any(isinstance(delta, Factors) for delta in factored)
    return folder
