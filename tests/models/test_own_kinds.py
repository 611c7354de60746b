"""Networks of one's own that are not of colours, or not in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sinf.errors import ModelError
from sinf.models import load_model

FACTORIES = """
import torch
from torch import nn

def network(channels=3, kind="float32"):
    layers = nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    return nn.Sequential(*layers).to(getattr(torch, kind))
"""


@pytest.fixture(autouse=True)
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kinds_of_own.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_that_are_not_of_colours_get_a_mean_for_every_channel(channels: int) -> None:
    """The mean over colours, as is said; a user's own is taken as it is."""
    model = load_model("kinds_of_own:network", size=(channels, 8, 8), options={"channels": channels})
    assert model.spec.preprocessing.mean == pytest.approx((0.449,) * channels, abs=1e-3)
    assert model.spec.preprocessing.std == pytest.approx((0.226,) * channels, abs=1e-3)
    assert any("mean and deviation of pixels are ImageNet's" in note for note in model.notes)
    assert model.module(torch.zeros(1, channels, 8, 8)).shape == (1, 5)
    with pytest.raises(ModelError, match="mean and a standard deviation"):
        load_model(
            "kinds_of_own:network", size=(channels, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3,
            options={"channels": channels},
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_weights_of_another_precision_are_named(kind: str) -> None:
    with pytest.raises(ModelError, match=rf"weights in float32 \(got {kind}\): call .float\(\)"):
        load_model("kinds_of_own:network", size=(3, 8, 8), options={"kind": kind})
