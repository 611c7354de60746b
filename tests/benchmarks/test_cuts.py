"""Subgraphs of a bundle that is built, saved and opened, as the script on cuts measures them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sinf.data.images import LabelledImages
from sinf.graph.network import PartedNetwork
from sinf.graph.trace import trace
from sinf.models import load_model
from tiny import coloured_images


@pytest.fixture
def cuts(script: Callable[..., ModuleType]) -> ModuleType:
    return script("cuts", "criteria", "table")


def test_subgraphs_in_a_bundle(cuts: ModuleType, tiny_images: LabelledImages, tmp_path: Path) -> None:
    """Heads of fewer classes save a little more than the budget; the base model limited to the clusters is beside."""
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    cut = PartedNetwork(trace(base.module, base.spec.preprocessing)).cut.name
    parts = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        parts.append(coloured_images(tmp_path / str(seed), 60, seed))
    row = cuts.in_bundle(base, cut, tiny_images, *parts, scored=10)
    assert row["images"] == 60
    assert row["macs_saved"] >= 0.5
    assert row["loss"] == pytest.approx(100 * (row["base_top1"] - row["top1"]))
    assert 0 < row["params_active"] < sum(each.numel() for each in base.module.parameters())
    assert set(row) <= set(cuts.COLUMNS)
