"""Subgraphs under one budget, and what a work folder remembers of their scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from sinf.bundle.semantic import Bundle
from sinf.compress.select import Budget, Schedule
from sinf.data.clusters import Clusters, from_column
from sinf.data.images import LabelledImages
from sinf.errors import ConfigError
from sinf.models import load_model
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.routing.predictor import RouterConfig
from sinf.routing.router import part_name

CONFIG = BuildConfig(
    keep_anyway=True,
    cut_at=0.5, max_loss=0.9, route_draws=240, router=RouterConfig(epochs=1, hidden=16), round_to=1,
    macs=0.5, across_clusters=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return tiny.coloured_images(tmp_path_factory.mktemp("calibration"), 60, seed=1)


def made(
    images: LabelledImages, calibration: LabelledImages, folder: Path, clusters: Clusters | None = None,
    **options: object,
) -> Bundle:  # fmt: skip
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    config, groups = replace(CONFIG, **options), clusters or from_column(images)
    return build(base, Images(images, images, calibration), groups, config, folder / "bundle", work=folder / "work")


def shares(bundle: Bundle) -> list[float]:
    """Of the MACs of each cluster's tail, whose head has the cluster's classes alone, that stay."""
    network = bundle.network()
    found = []
    for cluster, members in enumerate(bundle.clusters.members):
        start = network.with_classes(network.coupling.keep_all(), list(members))
        macs = network.tail_macs
        found.append(macs.total(bundle.parts[part_name(cluster)].keep) / macs.total(start))
    return found


def test_clusters_share_a_budget(tiny_images: LabelledImages, calibration: LabelledImages, tmp_path: Path) -> None:
    alone = shares(made(tiny_images, calibration, tmp_path / "alone", across_clusters=False))
    together = shares(made(tiny_images, calibration, tmp_path / "together"))
    assert all(0.45 < share <= 0.5 for share in alone)
    assert 0.45 < sum(together) / len(together) <= 0.5
    assert max(together) - min(together) > 2 * (max(alone) - min(alone))


def test_a_cluster_counts_by_its_images(
    tiny_images: LabelledImages, calibration: LabelledImages, tmp_path: Path
) -> None:
    five_and_one = Clusters(("many", "one"), ((0, 1, 2, 3, 4), (5,)))
    many, one = shares(made(tiny_images, calibration, tmp_path, five_and_one))
    assert 0.45 < (5 * many + one) / 6 <= 0.51


def test_another_budget_finds_the_scores(
    tiny_images: LabelledImages, calibration: LabelledImages, tmp_path: Path
) -> None:
    made(tiny_images, calibration, tmp_path, across_clusters=False)
    scores = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("observed-*")}
    assert len(scores) == 3
    for options in ({"macs": 0.7}, {"across_clusters": False, "macs": None, "ratios": (0.1, 0.3)}):
        made(tiny_images, calibration, tmp_path, **options)
    assert scores == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("observed-*")}


def test_a_step_of_one_budget_is_not_taken_for_the_other_kind(
    tiny_images: LabelledImages, calibration: LabelledImages, tmp_path: Path
) -> None:
    together = shares(made(tiny_images, calibration, tmp_path))
    assert shares(made(tiny_images, calibration, tmp_path, across_clusters=False)) != together
    assert shares(made(tiny_images, calibration, tmp_path)) == together


@pytest.mark.parametrize(
    ("options", "price", "rule"),
    [
        ({}, 32, Budget(0.3, 32)),
        ({"macs": 0.3}, 0, Budget(0.3)),
        ({"extractor": 0.9}, 0, Budget(0.3)),
        ({"full_tail": 0.9}, 0, Budget(0.3)),
        ({"whole": 0.9}, 0, Budget(0.3)),
        ({"macs": 0.4, "whole": 0.9, "weight_cost": 8}, 8, Budget(0.4, 8)),
        ({"weight_cost": 0}, 0, Budget(0.3)),
        ({"ratios": (0.1, 0.5)}, 32, Schedule(0.1, 0.5)),
        ({"ratios": (0.1, 0.5), "whole": 0.9}, 0, Schedule(0.1, 0.5)),
    ],
)
def test_a_budget_that_is_named_is_one_of_macs_alone(
    options: dict[str, Any], price: float, rule: Budget | Schedule
) -> None:
    """Unless it is said what loading a weight costs, which counts in all budgets."""
    config = BuildConfig(**options)
    assert (config.price, config.subgraph) == (price, rule)


def test_subgraphs_have_a_budget_or_ratios() -> None:
    with pytest.raises(ConfigError, match="macs or ratios"):
        BuildConfig(macs=0.3, ratios=(0.1, 0.5))


def test_ratios_cannot_be_spent_across_clusters() -> None:
    with pytest.raises(ConfigError, match="across clusters"):
        replace(CONFIG, macs=None, ratios=(0.1, 0.5))
