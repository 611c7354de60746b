"""Tables of results: no row is lost, none is taken on a loaded machine, and none is taken for measured that is old."""

from __future__ import annotations

import csv
import importlib
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
COLUMNS = ("who", "number", "ms", "load", "date")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """benchmarks/table.py, writing to a folder of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "table", raising=False)
    found = importlib.import_module("table")
    monkeypatch.setattr(found, "RESULTS", tmp_path)
    yield found
    sys.modules.pop("table", None)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(module: ModuleType, who: str, start: multiprocessing.synchronize.Barrier) -> None:
    table = module.Table("t.csv", COLUMNS, ("who", "number"))
    start.wait()
    for number in range(20):
        table.add(who=who, number=number)


def test_processes_that_write_one_file_lose_no_row(module: ModuleType, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(3)
    processes = [fork.Process(target=_write, args=(module, who, start)) for who in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = [(row["who"], row["number"]) for row in rows(tmp_path / "t.csv")]
    assert sorted(found) == sorted((who, str(number)) for who in "abc" for number in range(20))
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]  # no lock is left


def test_a_row_takes_the_place_of_an_older_one(module: ModuleType, tmp_path: Path) -> None:
    table = module.Table("t.csv", COLUMNS, ("who",))
    for who, ms in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        table.add(who=who, ms=ms)
    assert [(row["who"], row["ms"]) for row in rows(tmp_path / "t.csv")] == [("a", "3"), ("b", "2")]


def test_a_row_under_load_is_refused_and_leaves_the_file(module: ModuleType, tmp_path: Path) -> None:
    table = module.Table("t.csv", COLUMNS, ("who",))
    table.add(who="a", ms=1.0, load=module.IDLE)
    before = (tmp_path / "t.csv").read_bytes()
    with pytest.raises(module.LoadError, match=r"t\.csv: .* 0\.3 of a core at most; they took 0\.31"):
        table.add(who="a", ms=2.0, load=0.31)
    assert (tmp_path / "t.csv").read_bytes() == before
    assert not table.has(ms=2.0)


def test_a_row_under_load_can_be_asked_for_and_says_so(module: ModuleType, tmp_path: Path) -> None:
    module.Table("t.csv", COLUMNS, ("who",), loaded=True).add(who="a", ms=1.0, load=1.7)
    assert rows(tmp_path / "t.csv")[0]["load"] == "1.7"


def test_what_is_in_the_file_is_measured_again_unless_it_is_kept(module: ModuleType) -> None:
    module.Table("t.csv", COLUMNS, ("who",)).add(who="a")
    assert module.Table("t.csv", COLUMNS, ("who",), keep=True).has(who="a")
    again = module.Table("t.csv", COLUMNS, ("who",))
    assert not again.has(who="a")
    again.add(who="a")
    assert again.has(who="a")


def test_a_whole_run_ends_without_rows_of_older_ones(module: ModuleType, tmp_path: Path) -> None:
    old = module.Table("t.csv", COLUMNS, ("who", "number"))
    for who in "ab":
        old.add(who=who, number=1)
    new = module.Table("t.csv", COLUMNS, ("who", "number"))
    new.add(who="a", number=2)
    new.forget_older(who="a")
    assert [(row["who"], row["number"]) for row in rows(tmp_path / "t.csv")] == [("b", "1"), ("a", "2")]


def test_what_was_timed_beside_others_is_timed_again(module: ModuleType) -> None:
    loads = iter([0.9, 0.4, 0.1, 0.0])
    assert module.when_idle(lambda: next(loads), lambda load: load) == 0.1
    loads = iter([0.9, 0.4, 0.8, 0.0])
    assert module.when_idle(lambda: next(loads), lambda load: load) == 0.8
