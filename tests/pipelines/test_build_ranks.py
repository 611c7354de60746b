"""Bundles whose parts are in low rank, and cascades: what is built, stored and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from program import Program
from sinf.bundle.semantic import Bundle
from sinf.compress.low_rank import LowRank, Rank, choose_ranks, choose_ranks_together, factor, metrics
from sinf.compress.select import Budget
from sinf.data.clusters import Clusters, from_column, one_cluster
from sinf.data.images import LabelledImages
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError
from sinf.graph.cost import WEIGHT_COST, MacCount
from sinf.graph.delta import Factors
from sinf.graph.network import Part, PartedNetwork
from sinf.measure.accuracy import Costs
from sinf.models import load_model
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.routing.predictor import RouterConfig
from sinf.routing.router import FULL_TAIL, part_name
from sinf.statistics import collect
from tiny import CLASSES, COLOUR, Chain, coloured_images, traced


def test_parts_are_factored_within_their_budgets(built_ranks: Path) -> None:
    bundle = Bundle.load(built_ranks)
    model = SemanticModel(bundle)
    network, costs = bundle.network(), Costs.of(model)
    factored = {name for name, part in bundle.parts.items() for d in part.layers.values() if isinstance(d, Factors)}
    assert factored >= {part_name(cluster) for cluster in range(len(bundle.clusters))}
    assert factored & {"extractor", FULL_TAIL}
    both = (network.extractor(bundle.parts["extractor"]), network.tail(bundle.parts[FULL_TAIL]))
    whole = network.cost_of(network.graph, WEIGHT_COST)
    assert sum(network.cost_of(graph, WEIGHT_COST) for graph in both) <= 0.8 * whole
    for cluster, members in enumerate(bundle.clusters.members):
        keep = network.with_classes(network.coupling.keep_all(), list(members))
        assert costs.macs[part_name(cluster)] <= 0.5 * network.tail_macs.total(keep)


def test_a_cascade_has_one_route_for_all(built_cascade: Path) -> None:
    model = SemanticModel.from_pretrained(built_cascade)
    assert model.bundle.clusters == one_cluster(CLASSES)
    x = torch.randn(9, *model.bundle.spec.preprocessing.size)
    model.threshold = 0.0
    routed = model.route(x)
    assert routed.route.tolist() == [0] * 9
    assert bool(routed.subgraph_ran.all())
    torch.testing.assert_close(
        routed.logits.softmax(1), model.run_subgraph(0, model.extractor(x)).softmax(1), rtol=1e-4, atol=1e-5
    )
    model.threshold = 2.0
    torch.testing.assert_close(model(x), model.run_full_tail(model.extractor(x)))
    assert Costs.of(model).macs["router"] == 0


def test_a_cascade_defers_what_its_subgraph_doubts(built_cascade: Path) -> None:
    model = SemanticModel.from_pretrained(built_cascade)
    x = torch.randn(30, *model.bundle.spec.preprocessing.size)
    model.threshold = 0.0
    confidence = model.route(x).confidence
    model.threshold = float(confidence.median())
    routed = model.route(x)
    assert routed.fell_back.tolist() == (confidence < model.threshold).tolist()
    assert 0 < int(routed.fell_back.sum()) < 30


@pytest.mark.parametrize(
    "change", [{"method": "magic"}, {"ratios": (0.1, 0.5)}, {"criterion": "dcs"}], ids=lambda c: next(iter(c))
)
@pytest.mark.parametrize("method", ["ranks", "depth"])
def test_what_takes_no_criterion(method: str, change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        BuildConfig(**{"method": method, **change})  # type: ignore[arg-type]


@torch.no_grad()
def test_one_budget_across_parts_is_spent_where_it_loses_least() -> None:
    """Alone a part has its own budget; of two equal parts, the one that more of the inputs run keeps more ranks where
    the other costs little."""
    torch.manual_seed(0)
    network = PartedNetwork(traced(Chain()))
    x, y = torch.randn(40, *COLOUR.size), torch.arange(40) % CLASSES
    found = collect(network.graph, network.coupling, [(x, y)], classes=CLASSES, needs=LowRank.needs)
    known = metrics(found)
    part = (MacCount(network.graph, network.coupling), known)
    alone = choose_ranks(Budget(0.6), *part, 1)
    assert choose_ranks_together(Budget(0.6), [part], [1.0], 1) == [alone]

    def cost(ranks: dict[str, Rank]) -> int:
        solved = factor(network.graph, ranks, known)
        return network.cost_of(network.whole(Part(network.coupling.keep_all(), solved)))

    louder = {name: replace(m, values=50 * m.values, kernel_rows=50 * m.kernel_rows) for name, m in known.items()}
    loud = (part[0], louder)
    quiet, kept = choose_ranks_together(Budget(0.6), [part, loud], [0.5, 0.5], 1)
    assert cost(quiet) < cost(kept)
    assert (cost(quiet) + cost(kept)) / 2 <= 0.6 * network.macs.total()
    with pytest.raises(ConfigError, match="within reach"):
        choose_ranks_together(Budget(0.001), [part, loud], [0.5, 0.5], 1)


def test_the_command_builds_a_cascade(sinf: Program, data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "vgg11.safetensors"
    save_file(load_model("vgg11", classes=CLASSES, options={"width": 0.125}).module.state_dict(), weights)
    words: list[object] = [
        "build",
        "--keep-anyway",
        "vgg11",
        "--weights",
        weights,
        "--data",
        data,
        "--score",
        "train",
        "--calibrate",
        "test",
    ]
    words += ["--max-loss", 90, "--out", tmp_path / "bundle", "--threads", 1, "--method", "ranks"]
    sinf(*words, "--clusters", "none", "--macs", 0.6, "--round-to", 1)
    made = Bundle.load(tmp_path / "bundle")
    assert made.clusters == one_cluster(CLASSES)
    assert any(isinstance(layer, Factors) for layer in made.parts[part_name(0)].layers.values())
    said = sinf("eval", tmp_path / "bundle", "--data", data, "--split", "test")
    assert "all classes" in said


def test_a_budget_across_clusters_by_ranks(tiny_images: LabelledImages, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = load_model("vgg11", classes=CLASSES, options={"width": 0.0625})
    other = coloured_images(tmp_path, 60, seed=1)
    router = RouterConfig(epochs=1, hidden=8)
    config = BuildConfig(
        method="ranks", keep_anyway=True, cut_at=0.5, max_loss=0.9, route_draws=60, router=router, across_clusters=True,
        macs=0.6, round_to=1,
    )  # fmt: skip
    bundle = build(base, Images(tiny_images, tiny_images, other), from_column(tiny_images), config, tmp_path / "b")
    model = SemanticModel(bundle)
    network, costs = model.network, Costs.of(model)
    shares = torch.bincount(bundle.clusters.of_class()[tiny_images.labels]).double() / len(tiny_images)
    spent = whole = 0.0
    for cluster, members in enumerate(bundle.clusters.members):
        keep = network.with_classes(network.coupling.keep_all(), list(members))
        spent += float(shares[cluster]) * costs.macs[part_name(cluster)]
        whole += float(shares[cluster]) * network.tail_macs.total(keep)
    assert spent <= 0.6 * whole


@pytest.mark.parametrize("method", ["channels", "ranks"])
def test_a_cluster_of_one_class(tiny_images: LabelledImages, tmp_path: Path, method: str) -> None:
    """It answers with that class, as clusters that were found often do."""
    torch.manual_seed(0)
    base = load_model("vgg11", classes=CLASSES, options={"width": 0.0625})
    clusters = Clusters(("one", "rest"), ((2,), (0, 1, *range(3, CLASSES))))
    config = BuildConfig(
        method=method, keep_anyway=True, cut_at=0.5, max_loss=0.9, route_draws=60, macs=0.6, round_to=1,
        router=RouterConfig(epochs=1, hidden=8),
    )  # fmt: skip
    build(
        base, Images(tiny_images, tiny_images, coloured_images(tmp_path, 60, seed=1)), clusters, config, tmp_path / "b"
    )
    model = SemanticModel.from_pretrained(tmp_path / "b")
    model.threshold = 0.0
    x = torch.cat([x for x, _ in tiny_images.batches(model.preprocessing)])
    routed = model.route(x)
    ran = (routed.route == 0) & ~routed.fell_back
    assert bool((routed.logits[ran].argmax(1) == 2).all())
