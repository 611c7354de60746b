"""Trainings of gates, as the script on dynamic pruning lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def dynamic(script: Callable[..., ModuleType]) -> ModuleType:
    return script("dynamic", "candidates", "table")


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
