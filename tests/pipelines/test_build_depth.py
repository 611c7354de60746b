"""Bundles whose parts are shorter: residual branches of a part are constants."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sinf.bundle.semantic import Bundle
from sinf.data.clusters import from_column
from sinf.data.images import LabelledImages
from sinf.engine.torch_engine import SemanticModel
from sinf.graph.cost import WEIGHT_COST
from sinf.graph.delta import Constant
from sinf.graph.network import PartedNetwork
from sinf.measure.accuracy import Costs
from sinf.models import load_model
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.routing.predictor import RouterConfig
from sinf.routing.router import FULL_TAIL, part_name
from tiny import CLASSES, coloured_images


def constants(bundle: Bundle, part: str) -> set[str]:
    return {target for target, layer in bundle.parts[part].layers.items() if isinstance(layer, Constant)}


def whole_tail(network: PartedNetwork, members: tuple[int, ...]) -> int:
    """Multiplications of the full tail, limited to some classes."""
    return network.tail_macs.total(network.with_classes(network.coupling.keep_all(), list(members)))


def convolutions(module: nn.Module) -> int:
    return sum(isinstance(each, nn.Conv2d) for each in module.modules())


def test_parts_are_shorter_within_their_budgets(built_depth: Path) -> None:
    bundle = Bundle.load(built_depth)
    model = SemanticModel(bundle)
    network, costs = bundle.network(), Costs.of(model)
    both = network.extractor(bundle.parts["extractor"]), network.tail(bundle.parts[FULL_TAIL])
    assert constants(bundle, "extractor") | constants(bundle, FULL_TAIL)
    whole = network.cost_of(network.graph, WEIGHT_COST)
    assert sum(network.cost_of(graph, WEIGHT_COST) for graph in both) <= 0.9 * whole
    for cluster, members in enumerate(bundle.clusters.members):
        part = part_name(cluster)
        assert constants(bundle, part)
        assert costs.macs[part] <= 0.7 * whole_tail(network, members)
        shorter = network.tail(bundle.parts[part])
        assert convolutions(shorter) <= convolutions(network.parts.tail) - 2
        assert shorter(model.extractor(torch.randn(2, *bundle.spec.preprocessing.size))).shape == (2, len(members))


@pytest.mark.parametrize("options", [{}, {"extractor": 0.8, "full_tail": 0.8}], ids=["tail", "both parts"])
def test_a_budget_across_clusters_by_depth(
    options: dict[str, float], tiny_images: LabelledImages, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = load_model("resnet20", classes=CLASSES, options={"width": 0.5})
    other = coloured_images(tmp_path, 60, seed=1)
    config = BuildConfig(
        method="depth", keep_anyway=True, cut_at=0.5, max_loss=0.9, route_draws=60, across_clusters=True,
        router=RouterConfig(epochs=1, hidden=8), macs=0.7, **options,
    )  # fmt: skip
    bundle = build(base, Images(tiny_images, tiny_images, other), from_column(tiny_images), config, tmp_path / "b")
    network, costs = bundle.network(), Costs.of(SemanticModel(bundle))
    shares = torch.bincount(bundle.clusters.of_class()[tiny_images.labels]).double() / len(tiny_images)
    spent = whole = 0.0
    for cluster, members in enumerate(bundle.clusters.members):
        spent += float(shares[cluster]) * costs.macs[part_name(cluster)]
        whole += float(shares[cluster]) * whole_tail(network, members)
    assert spent <= 0.7 * whole
    for part, region in (("extractor", network.parts.extractor), (FULL_TAIL, network.parts.tail)):
        smaller = network.graphs_of(bundle.parts)["extractor" if part == "extractor" else part]
        share = network.cost_of(smaller, WEIGHT_COST) / network.cost_of(region, WEIGHT_COST)
        assert share <= (0.8 if options else 1.0)
        assert bool(constants(bundle, part)) == bool(options)
