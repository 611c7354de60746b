"""Stages between a cascade's two tails: what a chain of them answers and costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sinf.data.images import LabelledImages
from sinf.models import load_model
from sinf.storage.steps import StepStore
from tiny import coloured_images


@pytest.fixture
def chains(script: Callable[..., ModuleType]) -> ModuleType:
    return script("chains", "candidates", "table")


def test_a_chain_passes_on_what_each_stage_is_unsure_of(chains: ModuleType) -> None:
    first = chains.Stage("first", torch.tensor([0, 0, 0, 0]), torch.tensor([3.0, 1.0, 1.0, 0.0]), 0.1)
    second = chains.Stage("second", torch.tensor([1, 1, 1, 1]), torch.tensor([9.0, 5.0, 1.0, 9.0]), 0.2)
    last = chains.Stage("last", torch.tensor([2, 2, 2, 2]), torch.zeros(4), 0.4)
    chain = chains.Chain("three tails", (first, second, last), (2.0, 4.0))
    answers, cost, shares = chain.run(torch.arange(4), 0.05)
    assert answers.tolist() == [0, 1, 2, 1]
    assert shares == [1.0, 0.75, 0.25]
    assert cost == pytest.approx(0.05 + 0.1 + 0.75 * 0.2 + 0.25 * 0.4)


def test_all_chains_of_a_network(
    chains: ModuleType, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ends in the full tail, and what passes nothing on costs what its first stage does."""
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    images = coloured_images(tmp_path, 60, seed=1)
    monkeypatch.setattr(chains, "SIZES", (0.8, 0.95))
    monkeypatch.setattr(chains, "SUBGRAPH", 0.95)
    monkeypatch.setattr(chains, "CUT", 0.3)
    monkeypatch.setattr(chains, "LEVELS", 3)
    observed = chains.Observed(base, tiny_images, images, StepStore(tmp_path / "work"))
    rows = torch.arange(60)
    for what, stages in ((chains.TWO, 2), (chains.THREE, 3), (chains.FINE, 3)):
        made = list(observed.chains(what, rows))
        assert made
        assert {len(chain.stages) for chain in made} == {stages}
        assert all(chain.stages[-1] is observed.full for chain in made)
        answers, cost, shares = made[0].run(rows, observed.start)
        if shares[1] == 0:
            assert torch.equal(answers, made[0].stages[0].answers)
            assert cost == pytest.approx(observed.start + made[0].stages[0].cost)
    assert 0 < observed.start < 1
