"""What libraries say of their models: how images are prepared, and what classes are called."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sinf.data.labels import match_labels
from sinf.models import load_model, tells
from sinf.models.tells import Wanted

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("change", "resize", "interpolation"),
    [
        ({"crop_pct": 0.875}, 256, "bicubic"),
        ({"crop_pct": 0.95, "interpolation": "bilinear"}, 235, "bilinear"),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, (224, 224), "bicubic"),
        ({"crop_pct": 0.9, "crop_mode": "squash"}, (248, 248), "bicubic"),
        ({"crop_pct": 0.9, "input_size": (3, 224, 160)}, (248, 177), "bicubic"),
        ({"crop_pct": 0.9, "crop_mode": "border"}, None, "bicubic"),
    ],
)
def test_timm(change: dict, resize: int | tuple[int, int] | None, interpolation: str) -> None:
    config = {"input_size": (3, 224, 224), "mean": MEAN, "std": STD, "interpolation": "bicubic"} | change
    assert tells.of_timm(config) == Wanted(config["input_size"], MEAN, STD, resize, interpolation)


def test_timm_is_followed_to_the_pixel() -> None:
    """As timm's own transform resizes an image, of several shapes."""
    pytest.importorskip("timm")
    import io

    import numpy as np
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    from tiny import picture

    base = load_model("timm:resnet10t", pretrained=False, size=(3, 176, 176))
    config = resolve_data_config(model=base.module)
    theirs = create_transform(**config)
    wanted = tells.of_timm(base.module.pretrained_cfg)
    from sinf.data.preprocessing import Preprocessing

    ours = Preprocessing(wanted.size, wanted.mean, wanted.std, wanted.resize, wanted.interpolation)
    for seed, size in enumerate([(300, 200), (180, 240), (90, 100), (177, 176)]):
        content = picture(seed, size)
        import torch

        expected = theirs(Image.open(io.BytesIO(content)).convert("RGB"))
        found = ours.normalise(torch.from_numpy(np.array(ours.decode(content, "photo"))[None]))[0]
        assert torch.allclose(found, expected, atol=1e-5)


def test_torchvision() -> None:
    models = pytest.importorskip("torchvision").models
    for name in ("efficientnet_b1", "mobilenet_v3_small"):
        weights = models.get_model_weights(name).DEFAULT
        wanted, transforms = tells.of_torchvision(weights), weights.transforms()
        assert wanted.size == (3, *transforms.crop_size * 2)
        assert wanted.resize == transforms.resize_size[0]
        assert wanted.interpolation == transforms.interpolation.value
        classes = tells.classes_of_torchvision(weights)
        assert classes is not None
        assert classes.names == tuple(weights.meta["categories"])


@pytest.mark.parametrize(
    ("processor", "size", "resize", "interpolation"),
    [
        ({"size": {"height": 224, "width": 224}, "resample": 3}, (224, 224), (224, 224), "bicubic"),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
         (224, 224), 256, "bilinear"),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor"},
         (224, 224), 256, "bilinear"),
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0, "image_processor_type": "ConvNextImageProcessor"},
         (384, 384), (384, 384), "bilinear"),
        ({"size": 224}, (224, 224), 224, "bilinear"),
        ({"size": {"shortest_edge": 200}, "crop_size": 224, "do_center_crop": True}, (224, 224), None, "bilinear"),
        ({}, (96, 96), None, "bilinear"),
    ],
)  # fmt: skip
def test_transformers(processor: dict, size: tuple, resize: Any, interpolation: str) -> None:
    config = SimpleNamespace(image_size=96, num_channels=3)
    wanted = tells.of_hf(config, processor)
    assert (wanted.size, wanted.resize, wanted.interpolation) == ((3, *size), resize, interpolation)


@pytest.mark.parametrize(
    ("change", "mean", "std"),
    [
        ({}, 0.4, 0.1),
        ({"do_normalize": False}, 0.0, 1.0),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True}, 0.7, 0.05),
        ({"do_rescale": False}, 0.4 / 255, 0.1 / 255),
    ],
)
def test_transformers_normalise(change: dict, mean: float, std: float) -> None:
    processor = {"image_mean": MEAN, "image_std": STD} | change
    wanted = tells.of_hf(SimpleNamespace(image_size=8, num_channels=3), processor)
    assert wanted.mean is not None
    assert wanted.std is not None
    assert (wanted.mean[0], wanted.std[0]) == pytest.approx((mean, std))


def test_a_model_of_transformers_with_its_processor_and_names(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic",
        id2label={0: "tabby, tabby cat", 1: "Border collie"}, label2id={"tabby, tabby cat": 0, "Border collie": 1},
    )  # fmt: skip
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    record = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 40, "width": 48}, "resample": 3,
        "image_mean": MEAN, "image_std": STD, "do_resize": True, "do_rescale": True, "do_normalize": True,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
    base = load_model(f"hf:{tmp_path}")
    shape = base.spec.preprocessing
    assert (shape.size, shape.resize, shape.interpolation) == ((3, 40, 48), (40, 48), "bicubic")
    assert shape.mean == pytest.approx(MEAN)
    assert base.classes is not None
    assert base.classes.names == ("tabby, tabby cat", "Border collie")
    assert load_model(f"hf:{tmp_path}", size=(3, 64, 64)).spec.preprocessing.resize is None


def test_names_that_transformers_makes_up_are_none() -> None:
    assert tells.classes_of_hf(SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})) is None
    assert tells.classes_of_hf(SimpleNamespace(id2label={})) is None


def test_synsets_of_imagenet() -> None:
    """By torchvision's names, by timm's, and by those of a Hugging Face configuration."""
    models = pytest.importorskip("torchvision").models
    pytest.importorskip("timm")
    import torch
    from timm.data import ImageNetInfo

    from sinf.data.images import LabelledImages

    info = ImageNetInfo("imagenet-1k")
    synsets = info.label_names()
    chosen = [999, 0, 517, 134]
    labels = torch.arange(4)

    class Rows:
        def select(self, rows: list[int]) -> Rows:
            return self

    images = LabelledImages(
        Rows(), name="data", image_column="img", labels=labels, class_names=[synsets[n] for n in chosen]
    )
    hub = SimpleNamespace(id2label=dict(enumerate(info.label_descriptions())))
    for known in (
        tells.classes_of_torchvision(models.get_model_weights("resnet18").DEFAULT),
        tells.classes_of_timm({"num_classes": 1000, "architecture": "resnet18", "tag": "a1_in1k"}),
        tells.classes_of_hf(hub),
        tells.imagenet_classes(),
    ):
        assert known is not None
        assert len(set(known.names)) == 1000
        assert match_labels(images, 1000, known).images.labels.tolist() == chosen
