"""What the route predictor learns from: images pass the base model once, and features are kept as small as it reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from sinf.data.clusters import from_column
from sinf.data.images import LabelledImages
from sinf.models import load_model
from sinf.pipelines import build as pipeline
from sinf.pipelines import route_images
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.routing.predictor import RouterConfig, train_router

DRAWS = 120
CONFIG = BuildConfig(
    keep_anyway=True, cut_at=0.5, max_loss=0.9, route_draws=DRAWS,
    router=RouterConfig(epochs=1, hidden=16, side=2), round_to=1,
    macs=0.5,
)  # fmt: skip


@pytest.fixture
def calibration(tmp_path: Path) -> LabelledImages:
    return tiny.coloured_images(tmp_path / "calibration", 60, seed=1)


class Watch:
    """Counts the views that are drawn, and remembers what the route predictor is trained on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.views = 0
        self.features: list[Tensor] = []
        self.targets: list[Tensor] = []
        augment = route_images.augment

        def drawn(pixels: Tensor, generator: torch.Generator) -> Tensor:
            self.views += len(pixels)
            return augment(pixels, generator)

        def trained(features: Tensor, targets: Tensor, *rest: object) -> nn.Module:
            self.features.append(features)
            self.targets.append(targets)
            return train_router(features, targets, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(route_images, "augment", drawn)
        monkeypatch.setattr(pipeline, "train_router", trained)


def make(images: LabelledImages, calibration: LabelledImages, folder: Path, **options: object) -> None:
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    build(
        base, Images(images, images, calibration), from_column(images), replace(CONFIG, **options),
        folder / "bundle", work=folder / "work",
    )  # fmt: skip


def test_routing_images_pass_the_base_model_once(
    tiny_images: LabelledImages, calibration: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    make(tiny_images, calibration, tmp_path)
    views = watch.views
    assert DRAWS <= views <= DRAWS + len(tiny_images)
    (features,), (targets,) = watch.features, watch.targets
    assert len(features) == len(targets) == views
    assert tuple(features.shape[2:]) == (2, 2)

    # a smaller extractor has features of its own, and learns from the same targets
    make(tiny_images, calibration, tmp_path, extractor=0.8)
    assert watch.views == 2 * views
    assert torch.equal(watch.targets[1], targets)

    # targets that are known already are not made again, and features are the same either way
    make(tiny_images, calibration, tmp_path, router=replace(CONFIG.router, epochs=2))
    assert watch.views == 3 * views
    assert torch.equal(watch.targets[2], targets)
    assert torch.allclose(watch.features[2].float(), features.float(), rtol=2e-3, atol=1e-3)
