"""A bundle whose threshold is set elsewhere: as build() makes it, by fewer images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from sinf.data.clusters import from_column, one_cluster
from sinf.data.images import LabelledImages
from sinf.models import load_model
from sinf.pipelines.build import BuildConfig, Images, build, make_bundle
from sinf.pipelines.calibration import part_images
from sinf.routing.predictor import RouterConfig
from sinf.routing.threshold import NEVER
from sinf.storage.steps import StepStore
from tiny import coloured_images


@pytest.mark.parametrize("cascade", [False, True])
def test_only_the_images_that_fit_are_looked_at(cascade: bool, tiny_images: LabelledImages, tmp_path: Path) -> None:
    """Temperature, deferral and early threshold are those of build(), and no answer of a subgraph counts yet."""
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    (tmp_path / "other").mkdir()
    other = coloured_images(tmp_path / "other", 60, seed=1)
    images, clusters = Images(tiny_images, tiny_images, other), one_cluster(6) if cascade else from_column(tiny_images)
    config = BuildConfig(
        keep_anyway=True, cut_at=0.5, max_loss=0.9, route_draws=240, router=RouterConfig(epochs=2, hidden=16),
        macs=0.4,
    )  # fmt: skip
    said: list[tuple[str, int, int]] = []
    work = StepStore(tmp_path / "work")
    made = make_bundle(base, images, clusters, config, work, lambda *step: said.append(step))
    whole = build(base, images, clusters, config, tmp_path / "bundle", work=work.folder)
    assert {total for step, _, total in said if step == "calibration"} == {len(part_images(other, 0)[0])}
    assert list(asdict(made.deferral).values()) == pytest.approx(list(asdict(whole.deferral).values()), rel=1e-4)
    assert torch.equal(made.router.temperature, whole.router.temperature)
    assert made.threshold is not None
    assert whole.threshold is not None
    assert made.threshold.value == NEVER
    assert (made.threshold.fallback, made.threshold.images) == (1.0, 15)
    assert made.threshold.early == pytest.approx(whole.threshold.early, rel=1e-4)
