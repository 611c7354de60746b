"""A folder of results: no run is lost, nothing else is taken for one, machines are kept apart."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from sealed import EDITS, edited, positions
from sinf.errors import ConfigError, StorageError
from sinf.report import tables
from sinf.report.runs import add_run, read_runs

ROW = {
    "batch": 1, "threads": 1, "base_median": 4.0, "median": 3.0, "time_saved": 0.25, "low": 0.2, "high": 0.3,
}  # fmt: skip


def record(**changes: object) -> dict:
    return {"bundle": "my bundle", "engine": "onnxruntime", "processor": "fast", "latency": [ROW]} | changes


def test_runs_of_one_second_are_all_kept(tmp_path: Path) -> None:
    paths = [add_run(tmp_path / "runs", record(threshold=number / 10)) for number in range(3)]
    assert len(set(paths)) == 3
    assert all("my-bundle-onnxruntime" in path.name for path in paths)
    runs = read_runs(tmp_path / "runs")
    assert sorted(run.record["threshold"] for run in runs) == [0.0, 0.1, 0.2]


def test_one_table_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_run(tmp_path, record())
    add_run(tmp_path, record(processor="slow", latency=[ROW, ROW | {"batch": 32}]))
    tables.show_runs(read_runs(tmp_path), None)
    text = capsys.readouterr().out
    assert text.index("fast") < text.index("slow")
    assert text.count("25.0 %") == 3
    tables.show_runs(read_runs(tmp_path), [32])
    text = capsys.readouterr().out
    assert "fast" not in text
    assert text.count("25.0 %") == 1
    tables.show_runs(read_runs(tmp_path), [7])
    assert capsys.readouterr().out == "no run has batch 7\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "other.json"),
        ("[]", "got list"),
        ('{"sinf_bench": 7}', "format 1"),
        (json.dumps({"sinf_bench": 1, "date": "2026-11-30T00:00"}), "bundle: Field required"),
        ("[" * 10**5, "levels"),
        ('{"sinf_bench": NaN}', "NaN"),
        ('{"sinf_bench": 1, "sinf_bench": 1}', "twice"),
        ("[" + "[]," * 400_000 + "1]", "items"),
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, content: str, says: str) -> None:
    add_run(tmp_path, record())
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_runs(tmp_path)


def test_a_run_that_was_changed_is_shown_or_refused(tmp_path: Path) -> None:
    """Every value in many ways: a table, or one line of ours."""
    row = {"batch": 2, "threads": 1, "median": 3.0}
    path = add_run(tmp_path, record(threshold=0.5, latency=[ROW, row], energy=[{"batch": 1, "saved": 0.1}]))
    whole, shown = json.loads(path.read_text()), 0
    changes = [(place, edit) for place in positions(whole) for edit in EDITS]
    for place, edit in random.Random(0).sample(changes, 150):
        path.write_text(json.dumps(edited(whole, place, edit)))
        line = ""
        try:
            tables.show_runs(read_runs(tmp_path), None)
            shown += 1
        except ConfigError as error:
            line = str(error)
        assert "\n" not in line
        assert len(line) < 1000
    assert 0 < shown < 60


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="sinf bench"):
            read_runs(folder)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="--results"):
        add_run(tmp_path / "file", record())
