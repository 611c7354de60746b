"""What every export says about itself, and the inputs that it is tried on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinf.bundle.records import cluster_list
from sinf.edge import FORMAT
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import VerificationError

_TOLERANCE = 1e-3  # of logits; the arithmetic is the same, its order is not


def description(model: SemanticModel) -> dict[str, Any]:
    """Classes, clusters, preprocessing, deferral and thresholds, for a manifest."""
    bundle, routing = model.bundle, model.feature_router
    return {
        "sinf_export": FORMAT,
        "kind": "router",
        "model": bundle.spec.name,
        "classes": list(bundle.class_names),
        "clusters": cluster_list(bundle.clusters.names, bundle.clusters.members),
        "preprocessing": bundle.spec.preprocessing.to_json(),
        "deferral": asdict(bundle.deferral),
        "thresholds": {"value": routing.threshold, "early": routing.early_threshold},
    }


def samples(model: SemanticModel, count: int) -> Tensor:
    """Random images (count, C, H, W), the same every time."""
    size = model.bundle.spec.preprocessing.size
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(0))


def require_same(what: str, answers: tuple[Any, ...], expected: tuple[Tensor, ...]) -> None:
    """Outputs of an export beside those of the bundle.

    Raises:
        VerificationError: they differ by more than rounding.
    """
    for answer, wanted in zip(answers, expected, strict=True):
        answer = np.asarray(answer, dtype=np.float64)
        gap = np.abs(answer - wanted.double().numpy())
        worst = float((gap / (1 + wanted.double().abs().numpy())).max())
        if not worst <= _TOLERANCE:
            raise VerificationError(
                f"{what} of the export must answer as the bundle does",
                got=f"a difference of {worst:.2g}",
                remedy="report it: nothing was written",
            )
