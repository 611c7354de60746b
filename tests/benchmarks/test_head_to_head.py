"""Kinds of inference that the script on all of them compares: how each is made, and which plan a limit picks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch

from sinf.data.images import LabelledImages
from sinf.models import load_model

Scripts = tuple[ModuleType, ModuleType, ModuleType]


@pytest.fixture
def scripts(script: Callable[..., ModuleType]) -> Scripts:
    """head_to_head, headline and candidates."""
    opened = script("head_to_head", "headline", "candidates", "table")
    return opened, sys.modules["headline"], sys.modules["candidates"]


def test_all_kinds_are_made_by_ranks(scripts: Scripts) -> None:
    head_to_head, _, candidates = scripts
    for name, kinds in head_to_head.PLANS.items():
        made = head_to_head.plans(name)
        assert {plan.family for plan in made} == set(kinds)  # each is chosen from its own plans
        assert len({(plan.method, plan.label) for plan in made}) == len(made)
        for plan in made:
            method = (plan.build_config("cut") if plan.routed else plan.prune_config()).method
            assert method == "ranks"
    assert {plan.method for plan in head_to_head.plans("vgg16", "cascade")} == {"cascade"}
    old = candidates.Plan("semantic-wholeextractor", changes=(("subgraph", 0.1),))
    assert (old.family, old.build_config("cut").method) == ("semantic", "channels")


def test_clusters_of_a_plan(scripts: Scripts, tiny_images: LabelledImages) -> None:
    candidates = scripts[2]
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    setup = SimpleNamespace(base=base, images=SimpleNamespace(scoring=tiny_images), cut=None)

    def clusters(method: str) -> list[list[int]]:
        plan = candidates.Plan(method, changes=(("subgraph", 0.5),))
        return [sorted(each) for each in candidates.Setup.clusters(setup, plan).members]

    given, found = clusters("semantic-ranks"), clusters("semantic-ranks-found")
    assert clusters("cascade") == [list(range(6))]
    assert clusters("semantic") == given
    assert len(given) > 1
    for partition in (given, found):
        assert sorted(each for cluster in partition for each in cluster) == list(range(6))


def test_a_limit_picks_one_plan_of_each_kind(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    _, headline, candidates = scripts

    def fake(kind: type, method: str, **losses: float) -> object:
        one = object.__new__(kind)
        one.plan = candidates.Plan(method, None if kind is candidates.Routed else losses["cost"])
        one.at = lambda asked, *_, **__: SimpleNamespace(
            calibration_loss=losses["loss"], cost=losses["cost"], plan=one.plan
        )
        return one

    static, routed = headline.Static, headline.Routed
    made = [
        fake(static, "static-low-rank-time", loss=0.4, cost=0.6),
        fake(static, "static-low-rank-time", loss=0.9, cost=0.4),
        fake(routed, "semantic-ranks", loss=0.5, cost=0.5),
        fake(routed, "semantic-ranks", loss=0.5, cost=0.3),
        fake(routed, "semantic-wholeextractor", loss=0.5, cost=0.2),
    ]
    choices = headline.choose(made, (0.1, 0.5, 1.0))
    costs = {(method, asked): choice and choice.cost for (method, asked, _), choice in choices.items()}
    assert [costs["static-low-rank-time", asked] for asked in (0.1, 0.5, 1.0)] == [None, 0.6, 0.4]
    assert {costs["semantic-ranks", asked] for asked in (0.5, 1.0)} == {0.3}
    assert {costs["semantic", asked] for asked in (0.5, 1.0)} == {0.2}
    sure = headline.choose(made, (1.0,), ((0.5, 0.95),))
    assert ("semantic-ranks", 0.5, 0.95) in sure
    assert ("static-low-rank-time", 0.5, 0.95) not in sure
