"""Every kind of folder is written by one piece of code: whole, hashed, sealed, and in the place of its own kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sinf import from_pretrained
from sinf.bundle.folder import BUNDLE, PRUNED, Kind, method_of, require_place
from sinf.bundle.writing import CARD, Payload, write_folder
from sinf.errors import BundleError, SinfError, StorageError
from sinf.storage.files import sha256
from sinf.storage.seal import unsealed

KEY = b"0123456789abcdef"
KINDS = ("semantic", "dynamic", "static")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_saved_again_is_the_same(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    model = from_pretrained(folders[name])
    model.save_pretrained(tmp_path / "again")
    before, after = contents(folders[name]), contents(tmp_path / "again")
    before.pop("times.json", None)
    assert before == after


@pytest.mark.parametrize("name", KINDS)
def test_hashes_digest_and_signature(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    from_pretrained(folders[name]).save_pretrained(tmp_path / "made", key=KEY)
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    record, _ = unsealed(config, BundleError, "config.json", KEY)
    assert record["sha256"] == {file: sha256(tmp_path / "made" / file) for file in record["sha256"]}
    assert {path.name for path in (tmp_path / "made").glob("*.safetensors")} <= record["sha256"].keys()
    from_pretrained(tmp_path / "made", key=KEY)
    with pytest.raises(SinfError, match="signed"):
        from_pretrained(tmp_path / "made", key=KEY[::-1])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("there", [*KINDS, "other"])
def test_a_folder_is_replaced_by_its_kind_alone(
    folders: dict[str, Path], tmp_path: Path, name: str, there: str
) -> None:
    folder = tmp_path / "folder"
    if there == "other":
        folder.mkdir()
        (folder / "config.json").write_text('{"format": "of mine"}')
    else:
        shutil.copytree(folders[there], folder)
    before, model = contents(folder), from_pretrained(folders[name])
    if there == name or {there, name} == {"semantic", "dynamic"}:
        model.save_pretrained(folder)
        assert method_of(folder) == name
        return
    what, error = ("pruned model", StorageError) if name == "static" else ("bundle", BundleError)
    with pytest.raises(error, match=f"only a {what} may be replaced"):
        model.save_pretrained(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("kind", [BUNDLE, PRUNED], ids=lambda kind: kind.what)
def test_what_fails_at_the_end_leaves_what_was_there(tmp_path: Path, kind: Kind) -> None:
    folder = tmp_path / "folder"
    config = {"sinf_format": 1} if kind is BUNDLE else {"format": "sinf-plain-1"}
    write_folder(folder, kind, Payload(config, {}, "first", (), lambda partial, written: None))
    before = contents(folder)

    def fails(partial: Path, written: dict) -> None:
        assert written["sha256"] == {CARD: sha256(partial / CARD)}
        raise kind.error("it cannot be read", got="nothing")

    with pytest.raises(kind.error, match=r"got nothing"):
        write_folder(folder, kind, Payload(config, {}, "second", (CARD,), fails))
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("kind", [BUNDLE, PRUNED], ids=lambda kind: kind.what)
def test_where_a_folder_may_be(tmp_path: Path, kind: Kind) -> None:
    require_place(tmp_path / "nowhere", kind)
    require_place(tmp_path, kind)  # empty
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(kind.error, match="may be replaced"):
            require_place(place, kind)
    with pytest.raises(kind.error, match="cannot be written to"):
        write_folder(tmp_path / "file" / "in it", kind, Payload({}, {}, "", (), lambda partial, written: None))


def test_methods_are_told_by_the_config_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    assert {name: method_of(place) for name, place in folders.items()} == {name: name for name in KINDS}
    assert method_of(tmp_path) is None
    for text in ("[]", "{", "{}", '{"method": "semantic"}'):
        (tmp_path / "config.json").write_text(text)
        assert method_of(tmp_path) is None
