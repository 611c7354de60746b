"""The promise of optimize(): candidates whose expected loss is known, chosen and tested by its own functions."""

from __future__ import annotations

import pytest
import torch

import promise_of_optimize as worlds
from promise_of_optimize import LIMIT, WORLDS, broken, coverage, trial
from sinf.pipelines.optimize_choice import LOST, Row, aim
from sinf.routing.paired_test import p_value

TRIALS, FEW = 120, ("a cliff", "just above the limit", "a cascade's cliff")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worlds of fewer images, which are drawn from with replacement all the same."""
    monkeypatch.setattr(worlds, "IMAGES", 20_000)


def most(confidence: float, trials: int) -> float:
    """How many promises may break, and a standard error more."""
    share = 1 - confidence
    return trials * share + (trials * share * confidence) ** 0.5


@pytest.mark.parametrize("name", FEW)
def test_the_promise_breaks_no_oftener_than_it_says(name: str) -> None:
    """And without one, where every candidate is near the limit, it is broken nearly always: the worlds can tell."""
    found = coverage(WORLDS[name](LIMIT), LIMIT, TRIALS, (0.95, 0.9, None))
    for confidence in (0.95, 0.9):
        assert broken(found[confidence], LIMIT) <= most(confidence, TRIALS)
    if name == "just above the limit":
        assert broken(found[None], LIMIT) > 0.5 * TRIALS
    else:
        assert len(found[0.9]) > 0.5 * TRIALS, "what delivers nothing breaks nothing"


def test_the_fastest_of_all_that_are_accepted_would_break_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate tested by itself, without an order and a stop: so many tests are not one."""

    def each_by_itself(rows: list[Row], losses_of: object, limit: float, confidence: float) -> object:
        for row in rows:
            losses = losses_of(row)  # type: ignore[operator]
            yield row, p_value(losses, limit) <= 1 - confidence, 0.0

    world = WORLDS["just above the limit"](LIMIT)
    monkeypatch.setattr(worlds, "tested", each_by_itself)
    found = coverage(world, LIMIT, TRIALS, (0.9,))
    assert broken(found[0.9], LIMIT) > most(0.9, TRIALS)


def test_worlds_are_what_they_say() -> None:
    ladder, above = WORLDS["a ladder"](LIMIT), WORLDS["just above the limit"](LIMIT)
    losses = [ladder.expected_loss(answers) for answers, _ in ladder.networks.values()]
    assert losses == sorted(losses)
    assert losses[0] < LIMIT < losses[-1]
    assert len(ladder.bundles) == 2
    for answers, _ in above.networks.values():
        assert above.expected_loss(answers) == pytest.approx(1.02 * LIMIT, abs=1e-4)
    assert ladder.expected_loss(ladder.base) == 0


def test_a_trial_is_drawn_by_its_seed() -> None:
    world = WORLDS["a ladder"](LIMIT)
    found = [trial(world, LIMIT, (None, 0.9), seed) for seed in (0, *range(8))]
    assert found[0] == found[1]
    assert any(made != found[0] for made in found)
    assert all(made is None or 0 < made.share < 1 for pair in found for made in pair)


@pytest.mark.parametrize("limit", [0.005, 0.01, 0.05])
@pytest.mark.parametrize("images", [2000, 5000, 50_000])
def test_what_is_aimed_at_is_what_the_test_accepts_just_so(limit: float, images: int) -> None:
    """Of a network that loses it, and whose answers differ as often as is usual then."""
    aimed = aim(limit, 0.95, images)
    assert 0 < aimed < limit == aim(limit, None, images)
    lost, changed = round(aimed * images), aimed * images / LOST
    won = round((changed - lost) / 2)
    losses = torch.zeros(images)
    losses[: won + lost], losses[images - won :] = 1, -1
    assert p_value(losses, limit) == pytest.approx(0.05, abs=0.035)
