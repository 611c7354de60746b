"""A narrow network and images, of what is built from them."""

from __future__ import annotations

import pytest
import torch

from sinf.data.images import LabelledImages
from sinf.models import BaseModel, load_model
from sinf.pipelines.build import Images
from tiny import coloured_images


@pytest.fixture(scope="session")
def base() -> BaseModel:
    torch.manual_seed(0)
    return load_model("vgg11", classes=6, options={"width": 0.125})


@pytest.fixture(scope="session")
def images(tiny_images: LabelledImages, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Calibration images are none of the others."""
    return Images(tiny_images, tiny_images, coloured_images(tmp_path_factory.mktemp("calibration"), 60, seed=1))
