"""What looks like the runtime of a browser, and bundles whose images go to all clusters."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sinf.bundle.semantic import Bundle
from sinf.engine.torch_engine import SemanticModel
from sinf.export.page import RUNTIME


@pytest.fixture(scope="package")
def fake_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnxruntime-web")
    (folder / "dist").mkdir()
    for name in (*RUNTIME, "ort.all.js"):
        (folder / "dist" / name).write_text(f"// {name}")
    return folder


@pytest.fixture(scope="package")
def noise() -> torch.Tensor:
    """20 normalised images."""
    return torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="package", params=["built", "built_ranks"])
def bundle(request: pytest.FixtureRequest, noise: torch.Tensor) -> Bundle:
    """One with three subgraphs, by removed channels or by ranks, each for some images of ``noise``: a route predictor
    that was trained for two epochs sends all of them to one cluster."""
    made = Bundle.load(request.getfixturevalue(request.param))
    features, router = SemanticModel(made).extractor(noise), copy.deepcopy(made.router)
    with torch.no_grad():
        router.head.bias.sub_(router(features).mean(0) * router.temperature)
    spread = replace(made, router=router)
    assert len(set(SemanticModel(spread).route(noise).route.tolist())) == 3
    return spread
