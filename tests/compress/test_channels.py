"""Static pruning: what importances are computed from, and when they are taken from an earlier run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from sinf.compress.channels import Compactor
from sinf.criteria import DCS, Criterion
from sinf.graph.network import Network
from sinf.graph.trace import trace
from sinf.models import load_model
from sinf.storage.steps import StepStore
from tiny import coloured_images


def test_criteria_with_other_options_have_importances_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    network = Network(trace(base.module, base.spec.preprocessing))
    (tmp_path / "data").mkdir()
    images, options = coloured_images(tmp_path / "data", 18, 0), SimpleNamespace(seed=0, common_images=18)
    passes: list[str] = []

    def importance(criterion: Criterion) -> dict[str, torch.Tensor]:
        def count(step: str, done: int, total: int) -> None:
            if done == total:
                passes.append(step)

        store = StepStore(tmp_path / "steps")
        return Compactor(base, network, images, criterion, options, count, store).importance()

    plain, pooled, again = importance(DCS()), importance(DCS(pool=2)), importance(DCS())
    assert len(passes) == 2
    for name, scores in plain.items():
        assert torch.equal(again[name], scores)
    assert any(not torch.allclose(pooled[name], scores, rtol=0.01) for name, scores in plain.items())
