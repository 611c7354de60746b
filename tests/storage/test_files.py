"""Files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sinf.errors import ConfigError, StorageError
from sinf.storage import files
from sinf.storage.files import replacing, sha256, write_json, write_tensors
from sinf.storage.schema import parse_file


def test_what_is_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    write_json({"a": 1}, tmp_path / "below" / "record.json")
    write_tensors({"x": torch.eye(3).T[:, :2]}, tmp_path / "below" / "x.safetensors")
    assert json.loads((tmp_path / "below" / "record.json").read_text()) == {"a": 1}
    assert torch.equal(load_file(tmp_path / "below" / "x.safetensors")["x"], torch.eye(3)[:, :2])
    assert {p.name for p in (tmp_path / "below").iterdir()} == {"record.json", "x.safetensors"}


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise failure

    with pytest.raises((StorageError, KeyboardInterrupt, ValueError)):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/record.json cannot be written.*writable place"):
        write_json({}, tmp_path / "file" / "record.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, beside = tmp_path / "file", tmp_path / ".file.partial"
    beside.symlink_to("/dev/full")
    monkeypatch.setattr(files, "_beside", lambda path: beside)
    with pytest.raises(StorageError, match="No space left"):
        write_json({"a": 1}, path)
    assert list(tmp_path.iterdir()) == []


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file").startswith("ba7816bf8f01cfea")


def test_a_record_is_json_whatever_its_numbers(tmp_path: Path) -> None:
    """Programs in other languages, and --config and --results of ours, read no NaN."""
    nothing = float("nan")
    write_json({"loss": nothing, "rows": [{"low": -float("inf"), "high": 0.5}, (1, nothing)]}, tmp_path / "r.json")
    assert parse_file(tmp_path / "r.json", ConfigError) == {
        "loss": None, "rows": [{"low": None, "high": 0.5}, [1, None]]
    }  # fmt: skip
