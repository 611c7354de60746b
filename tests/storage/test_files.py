"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sinf.errors import ConfigError, StorageError
from sinf.storage import files
from sinf.storage.files import (
    exclusive,
    hash_tensors,
    replacing,
    replacing_folder,
    sha256,
    write_json,
    write_tensors,
)
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


def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path) -> None:
    """As where a folder lies on a larger disk."""
    disk, here = tmp_path / "disk", tmp_path / "here"
    (disk / "old").mkdir(parents=True)
    (disk / "record.json").write_text("{}")
    here.mkdir()
    (here / "folder").symlink_to(disk / "old")
    (here / "record.json").symlink_to(disk / "record.json")
    (here / "new").symlink_to(disk / "not there yet")
    write_json({"a": 1}, here / "record.json")
    for name in ("folder", "new"):
        with exclusive(here / name), replacing_folder(here / name) as partial:
            assert partial.parent == disk
            (partial / "file").write_text("new")
    assert sorted(path.name for path in here.iterdir()) == ["folder", "new", "record.json"]
    assert all(path.is_symlink() for path in here.iterdir())
    assert sorted(path.name for path in disk.iterdir()) == ["not there yet", "old", "record.json"]
    assert json.loads((disk / "record.json").read_text()) == {"a": 1}
    assert (disk / "old" / "file").read_text() == (disk / "not there yet" / "file").read_text() == "new"


def test_what_was_killed_behind_a_link_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    left = tmp_path / "disk" / f".out.{16 * '0'}.partial"
    left.mkdir()
    with exclusive(tmp_path / "link"):
        assert not left.exists()


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    """/dev/null is a file that the superuser can replace, and nobody wants to have replaced."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for name in ("pipe", "null"):
        with pytest.raises(StorageError, match="no file"):
            write_json({}, tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert Path(os.devnull).is_char_device()


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_a_hash_is_of_names_and_values_alone(dtype: torch.dtype) -> None:
    """However they lie in memory: a single number may have any stride, as in the bias of a cluster of one class."""
    wide = torch.arange(12).view(3, 4).to(dtype)
    one = wide[:1, -1]
    assert one.stride() == (4,)
    assert hash_tensors({"bias": one}) == hash_tensors({"bias": one.clone(memory_format=torch.contiguous_format)})
    assert hash_tensors({"bias": one}) != hash_tensors({"bias": one + 1})
    assert hash_tensors({"bias": one}) != hash_tensors({"weight": one})
    assert hash_tensors({"wide": wide.T}) == hash_tensors({"wide": wide.T.contiguous()})
    assert hash_tensors({"none": wide[:0]}) == hash_tensors({"none": torch.zeros(0, dtype=dtype)})
