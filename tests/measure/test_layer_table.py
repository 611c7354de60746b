"""Times that are kept once a machine: what is found again, and what becomes of damaged files and folders."""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinf.errors import DataWarning
from sinf.measure import layer_table
from sinf.measure.layer_table import LayerTable, Times, is_idle
from sinf.storage.schema import MAX_BYTES
from sinf.storage.seal import sealed

KIND: dict[str, Any] = {"engine": "torch", "threads": 1, "kernel": (3, 3)}


def times(out: int, into: int, ms: float = 1.0) -> Times:
    """At a quarter of the widths, and at all."""
    return {(o, i): ms * o * i for o in {max(1, out // 4), out} for i in {max(1, into // 4), into}}


@pytest.fixture
def table(tmp_path: Path) -> LayerTable:
    return LayerTable(tmp_path / "cache" / "layer-times")


def only_file(table: LayerTable) -> Path:
    assert table.folder is not None
    (path,) = table.folder.iterdir()
    return path


def test_what_was_kept_is_found_by_the_next_process(table: LayerTable) -> None:
    table.keep(KIND, times(64, 32), 0.01)
    assert LayerTable(table.folder).find(KIND, 64, 32) == times(64, 32)
    assert table.find({**KIND, "threads": 2}, 64, 32) is None
    assert json.loads(only_file(table).read_text())["load"] == 0.01


def test_widths_between_those_that_were_timed_are_found(table: LayerTable) -> None:
    """As the layers of one network are whose widths are between; not what is beyond them, or narrower."""
    table.keep(KIND, times(64, 32), None)
    for out, into in ((64, 32), (16, 8), (40, 32)):
        assert table.find(KIND, out, into) == times(64, 32)
    for out, into in ((65, 32), (64, 33), (15, 32), (64, 7)):
        assert table.find(KIND, out, into) is None


def test_of_several_the_narrowest_is_taken(table: LayerTable) -> None:
    for width in (256, 64, 128):
        table.keep(KIND, times(width, 32), 0.0)
    assert table.find(KIND, 60, 32) == times(64, 32)
    assert table.find(KIND, 65, 32) == times(128, 32)


def test_a_folder_of_none_keeps_nothing() -> None:
    table = LayerTable(None)
    table.keep(KIND, times(8, 8), 0.0)
    assert table.find(KIND, 8, 8) is None
    assert table.step == "times of layers"


def test_where_it_lies_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SINF_CACHE", str(tmp_path / "own"))
    assert LayerTable.of_machine().step == f"times of layers, kept in {tmp_path / 'own' / 'layer-times'}"
    monkeypatch.delenv("SINF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert LayerTable.of_machine().step == "times of layers, kept in ~/.cache/sinf/layer-times"


def _edited(**changes: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        record = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(sealed({name: value for name, value in record.items() if name != "digest"})))

    return damage


def _cut(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def _flipped(path: Path) -> None:
    path.write_text(path.read_text().replace("2048.0", "2043.0"))


def _folder(path: Path) -> None:
    path.unlink()
    (path / "within").mkdir(parents=True)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (_cut, "readable JSON"),
    "empty": (lambda path: path.write_bytes(b""), "readable JSON"),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe"), "readable JSON"),
    "too large": (lambda path: path.write_bytes(b" " * (MAX_BYTES + 1)), "readable JSON"),
    "a list": (lambda path: path.write_text("[]"), "as sinf writes it"),
    "a digit": (_flipped, "damaged or was changed"),
    "of another kind": (_edited(depends={**KIND, "kernel": [1, 1]}), "what its name says"),
    "negative": (_edited(times=[{"out": 64, "into": 32, "ms": -1.0}]), "as sinf writes it"),
    "text": (_edited(times=[{"out": 64, "into": 32, "ms": "1.0"}]), "as sinf writes it"),
    "too many": (_edited(times=[{"out": 64, "into": 32, "ms": 1.0}] * 5), "as sinf writes it"),
    "none": (_edited(times=[]), "as sinf writes it"),
    "unknown": (_edited(more=1), "as sinf writes it"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_one_line_and_is_written_again(table: LayerTable, name: str) -> None:
    damage, says = DAMAGES[name]
    table.keep(KIND, times(64, 32), 0.0)
    damage(only_file(table))
    with pytest.warns(DataWarning, match=says) as said:
        assert table.find(KIND, 64, 32) is None
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    table.keep(KIND, times(64, 32), 0.0)
    assert table.find(KIND, 64, 32) == times(64, 32)


def test_a_wider_entry_stands_for_a_damaged_one(table: LayerTable) -> None:
    table.keep(KIND, times(64, 32), 0.0)
    _cut(only_file(table))
    table.keep(KIND, times(128, 32), 0.0)
    with pytest.warns(DataWarning):
        assert table.find(KIND, 64, 32) == times(128, 32)


@pytest.mark.parametrize("read_first", [True, False])
def test_a_folder_that_cannot_be_is_said_once(tmp_path: Path, read_first: bool) -> None:
    (tmp_path / "file").write_text("no folder")
    table = LayerTable(tmp_path / "file" / "layer-times")

    def use() -> None:
        for width in (8, 16):
            if read_first:
                assert table.find(KIND, width, 8) is None
            table.keep(KIND, times(width, 8), 0.0)
            assert table.find(KIND, width, 8) is None

    with pytest.warns(DataWarning, match="times of layers are not kept") as said:
        use()
    assert len(said) == 1


def test_an_entry_that_cannot_be_written(table: LayerTable) -> None:
    """Because a folder has its name, for instance; what is there is still not what was asked for."""
    table.keep(KIND, times(64, 32), 0.0)
    _folder(only_file(table))
    with pytest.warns(DataWarning, match="readable JSON"):
        assert table.find(KIND, 64, 32) is None
    with pytest.warns(DataWarning, match="not kept"):
        table.keep(KIND, times(64, 32), 0.0)


def test_two_writers_and_a_reader(table: LayerTable) -> None:
    """Whoever reads meanwhile sees one or the other, whole."""
    written = [times(64, 32, 1.0), times(64, 32, 2.0)]
    found: list[Times | None] = []

    def write(values: Times) -> None:
        own = LayerTable(table.folder)
        for _ in range(40):
            own.keep(KIND, values, 0.0)

    table.keep(KIND, written[0], 0.0)
    writers = [threading.Thread(target=write, args=(values,)) for values in written]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            found.append(table.find(KIND, 64, 32))
        for writer in writers:
            writer.join()
        found.append(table.find(KIND, 64, 32))
    assert all(each in written for each in found)
    only_file(table)


def test_what_killed_processes_left_is_removed(table: LayerTable) -> None:
    table.keep(KIND, times(64, 32), 0.0)
    assert table.folder is not None
    old, new = (table.folder / f".kind.json.{c * 16}.partial" for c in "ab")
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (0, time.time() - 2 * 24 * 3600))
    LayerTable(table.folder).keep(KIND, times(64, 32), 0.0)
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize(
    ("load", "cores", "idle"),
    [(None, 2, True), (0.0, 2, True), (0.3, 2, True), (0.31, 2, False), (0.31, 64, True), (3.3, 64, False)],
)
def test_what_counts_as_idle(load: float | None, cores: int, idle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_table.os, "cpu_count", lambda: cores)
    assert is_idle(load) is idle
