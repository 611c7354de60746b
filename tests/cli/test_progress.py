"""Where there is no terminal, long work says now and then where it is, and how long it will still take."""

from __future__ import annotations

import sys

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

import program
from program import PROGRESS, QUICK, Program
from sinf.cli import options
from sinf.cli.app import app
from sinf.cli.progress import Lines


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines_of(step_seconds: float, total: int, capsys: pytest.CaptureFixture[str], first: int = 0) -> list[str]:
    clock = Clock()
    steps = Lines(clock)
    for done in range(first, total + 1):
        steps("training", done, total)
        clock.now += step_seconds
    return capsys.readouterr().err.splitlines()


def test_a_short_step_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(0.2, 100, capsys) == ["training ..."]


def test_a_long_step_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(10, 36, capsys)
    assert lines[:3] == ["training ...", "training 8 % (3 of 36), 6 min left", "training 16 % (6 of 36), 5 min left"]
    assert lines[-2:] == ["training 94 % (34 of 36), 20 s left", "training done, 6 min"]


def test_what_an_earlier_run_did_says_nothing_of_the_pace(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(60, 36, capsys, first=30)[:2] == ["training ...", "training 86 % (31 of 36), 5 min left"]


def test_an_hour_is_some_dozens_of_lines_and_none_is_far_from_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert 20 < len(lines_of(1, 3600, capsys)) < 70


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 50)), max_size=40), st.integers(0, 50))
def test_any_order_of_calls_is_said_in_lines_of_one_form(calls: list[tuple[float, int]], total: int) -> None:
    clock = Clock()
    steps, said = Lines(clock), []
    steps._write = said.append  # type: ignore[method-assign]
    for seconds, done in calls:
        clock.now += seconds
        steps("a step", done, total)
        assert len(said) <= 1 + clock.now / 30
    assert all(PROGRESS.fullmatch(line) or not total for line in said)


def test_a_step_without_a_total_and_one_that_is_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    steps = Lines(clock)
    for done, total in ((0, 0), (7, 0), (0, 10), (9, 10), (10, 10), (10, 10)):
        steps("reading", done, total)
        clock.now += 40
    assert capsys.readouterr().err.splitlines() == [
        "reading ...", "reading 7", "reading 90 % (9 of 10), 4 s left", "reading done, 1 min"
    ]  # fmt: skip


def test_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with options.Steps() as steps:
        steps("training", 0, 2)
        steps("training", 2, 2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "training ...\n")


def test_every_verb_that_may_take_long_says_where_it_is(sinf: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever test it runs: the program of the tests takes no long verb that is silent."""
    assert set(QUICK) < set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    monkeypatch.setattr(program, "main", lambda: print("memory: 1 GB", file=sys.stderr))
    sinf("results", "runs")
    with pytest.raises(AssertionError, match="memory: 1 GB"):
        sinf("eval", "bundle")
    monkeypatch.setattr(program, "main", lambda: options.Steps()("evaluating", 0, 3))
    sinf("eval", "bundle")
