"""What is open at once is no more than memory allows, and answers as if all were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sinf.engine import session_runtimes
from sinf.engine.quantise import quantise_graph
from sinf.models import BaseModel, ModelSpec
from sinf.pipelines.candidates import Static
from sinf.pipelines.place import Place, Running
from tiny import CLASSES, COLOUR, Chain, randomise


def place_of(memory: int | None) -> Place:
    return Place("torch", 1, torch.zeros(0), memory)


def running(place: Place, sizes: list[int], opened: list[int]) -> list[Running[int]]:
    """Networks whose value is their number; every opening is noted."""

    def opening(number: int) -> int:
        opened.append(number)
        return number

    return [Running(place, lambda number=number: opening(number), size) for number, size in enumerate(sizes)]


def held(networks: list[Running[int]]) -> int:
    return sum(each.bytes for each in networks if each.open)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(0, 200), st.lists(st.integers(0, 7)))
def test_no_more_is_open_than_fits(sizes: list[int], memory: int, asked: list[int]) -> None:
    place, opened = place_of(memory), []
    networks = running(place, sizes, opened)
    for number in (each % len(sizes) for each in asked):
        assert networks[number].get() == number
        assert networks[number].open
        assert held(networks) <= max(memory, sizes[number])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(0, 200))
def test_groups_hold_every_network_once_and_fit(sizes: list[int], memory: int) -> None:
    place = place_of(memory)
    always, *others = running(place, sizes, [])
    groups = list(place.together(always, [*others, *others]))  # several thresholds of one cascade
    assert groups
    assert [each for group in groups for each in group] == others
    for group in groups:
        assert len(group) <= 1 or sum(each.bytes for each in (always, *group)) <= memory


@given(st.lists(st.integers(1, 20), min_size=2, max_size=9), st.integers(0, 200))
def test_a_group_is_not_opened_again_while_it_runs(sizes: list[int], memory: int) -> None:
    """However much was open before: after a first turn all are there."""
    place, opened = place_of(memory), []
    always, *others = networks = running(place, sizes, opened)
    for group in place.together(always, others):
        if sum(each.bytes for each in (always, *group)) > memory:
            continue  # one alone is too large beside it
        for each in networks:
            each.get()
        for each in (always, *group) * 2:
            each.get()
        opened.clear()
        for each in (always, *group) * 2:
            each.get()
        assert not opened


def test_without_a_limit_nothing_is_closed() -> None:
    opened: list[int] = []
    networks = running(place_of(None), [10**12] * 5, opened)
    for each in networks * 3:
        each.get()
    assert opened == [0, 1, 2, 3, 4]


def test_what_was_made_of_a_network_goes_with_it() -> None:
    opened: list[int] = []
    first, second = running(place_of(1), [1, 1], opened)
    made = [first.made("twice", lambda: 2 * first.get()) for _ in range(2)]
    second.get()
    assert not first.open
    assert [*made, first.made("twice", lambda: 2 * first.get() + 1)] == [0, 0, 1]
    assert opened == [0, 1, 0]


def test_places_are_told_apart_by_what_they_are() -> None:
    place = place_of(1)
    assert place.once("a", "f32", lambda: 1) == place.once("a", "f32", lambda: 2) == 1
    assert replace(place, results={}).once("a", "f32", lambda: 2) == 2


def test_what_is_opened_again_in_integers_is_not_rounded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    base = BaseModel(randomise(Chain()), ModelSpec("vgg11", CLASSES, COLOUR))
    place = Place("onnxruntime", 1, torch.randn(4, *COLOUR.size))
    rounded: list[str] = []
    monkeypatch.setattr(
        session_runtimes, "quantise_graph", lambda *words: rounded.append(words[2]) or quantise_graph(*words)
    )
    x, answers = torch.randn(2, *COLOUR.size), {}
    for name in ("one", "other"):
        run, _ = Static(base, name).run_in(place, "int8")
        running = Static(base, name)._running(place, "int8")
        answers[name] = run(x)
        running.close()
        assert torch.equal(run(x), answers[name])
    assert rounded == ["network", "network"]  # each network once
    assert place.keep("one", "f32") is None
    folder = Path(place.results["graphs", ""].name)
    assert len(list(folder.iterdir())) == 2
    place.close()
    assert not folder.exists()
    assert not running.open
