"""The networks and images that lie beside the repository, where they do: real weights, real accuracy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sinf.data.clusters import from_column
from sinf.data.images import load_images
from sinf.engine.torch_engine import SemanticModel
from sinf.measure.accuracy import evaluate
from sinf.models import load_model
from sinf.pipelines.build import BuildConfig, Images, build

SHARED = Path(__file__).parents[2] / "shared"
DATA = SHARED / "data" / "cifar100"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="no weights beside the repository"),
]


@pytest.mark.parametrize(("name", "top1"), [("vgg16", 0.69), ("resnet56", 0.71)])
def test_reference_networks_read_published_weights(name: str, top1: float) -> None:
    base = load_model(name, weights=SHARED / "weights" / f"{name}_cifar100.safetensors")
    images = load_images(DATA, "test[:20%]")
    with torch.no_grad():
        right = sum(int((base.module(x).argmax(1) == y).sum()) for x, y in images.batches(base.spec.preprocessing, 50))
    assert right / len(images) > top1


def test_a_build_of_vgg16_saves_macs_within_its_limit(tmp_path: Path) -> None:
    base = load_model("vgg16", weights=SHARED / "weights" / "vgg16_cifar100.safetensors")
    scoring, calibration = load_images(DATA, "train[:4%]"), load_images(DATA, "test[:15%]")
    config = BuildConfig(cut="features.23", macs=0.3, weight_cost=32, extractor=0.95, full_tail=0.95, max_loss=0.015,
                         keep_anyway=True, route_draws=4000, whole_images=1000)  # fmt: skip
    build(base, Images(scoring, scoring, calibration), from_column(scoring), config, tmp_path / "bundle")
    model = SemanticModel.from_pretrained(tmp_path / "bundle")
    result = evaluate(model, load_images(DATA, "test[50%:65%]"))
    assert result.macs_saved > 0.05
    assert result.loss < 4.0  # 1,500 images: the limit of the calibration images and three standard errors
    assert result.route_accuracy > 0.4
