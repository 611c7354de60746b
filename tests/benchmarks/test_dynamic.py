"""Trainings of gates, as the script on dynamic pruning lists them."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def dynamic(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("dynamic", "candidates", "table")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("dynamic")
    for name in names:
        sys.modules.pop(name, None)


def test_every_training_has_a_row_of_its_own(dynamic: ModuleType) -> None:
    for recipes in dynamic.RECIPES.values():
        rows = Counter((each.variant, each.epochs, each.macs, each.seed) for each in recipes)
        assert [row for row, count in rows.items() if count > 1] == []


@pytest.mark.parametrize("network", [("cifar10", "resnet20"), ("cifar100", "vgg13")], ids=str)
def test_the_shortest_training_is_there_with_three_seeds(dynamic: ModuleType, network: tuple[str, str]) -> None:
    """With a teacher and without, and with each loss taken away."""
    recipes = [each for each in dynamic.RECIPES[network] if each.epochs == 3]
    for variant in ("manidp", "manidp-distilled", "without-similarity", "without-complexity", "without-both"):
        assert sorted(each.seed for each in recipes if each.variant == variant) == [0, 1, 2]
