"""What all tests share: a private cache, no network, foreign libraries that import, reproducible draws."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_cache = tempfile.TemporaryDirectory(prefix="sinf-tests-", ignore_cleanup_errors=True)
# datasets and huggingface_hub read these when they are imported, so before anything imports them.
os.environ["HF_HOME"] = _cache.name
os.environ["HF_DATASETS_CACHE"] = os.path.join(_cache.name, "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

_operators = torch.library.Library("torchvision", "FRAGMENT")  # its definitions live as long as it does


def _let_torchvision_import() -> None:
    """A torchvision built for CUDA cannot register its operators with a CPU build of torch, but looks them up."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for extension in Path(spec.origin).parent.glob("_C*.so"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(extension)
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_let_torchvision_import()

# A failure must repeat: the same examples every time, and no time limit for one of them.
settings.register_profile(
    "sinf", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sinf")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test draws the same random numbers, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
