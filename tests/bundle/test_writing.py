"""Folders of all methods have one format and are written by one piece of code: whole, hashed, sealed, and in the place
of nothing or of another bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinf import from_pretrained
from sinf.bundle.folder import require_place
from sinf.bundle.plain import PlainModel
from sinf.bundle.writing import Payload, write_folder
from sinf.errors import BundleError, SinfError
from sinf.models import ModelSpec
from sinf.storage.config import CARD, FORMAT, method_of
from sinf.storage.files import sha256
from sinf.storage.seal import unsealed
from tiny import COLOUR

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
def test_all_methods_say_the_same_of_themselves(folders: dict[str, Path], name: str) -> None:
    config = json.loads((folders[name] / "config.json").read_text())
    assert config["sinf_format"] == FORMAT
    assert config["method"] == name
    assert config["model"].keys() == {"name", "classes", "preprocessing", "options"}
    assert config["classes"] == list(from_pretrained(folders[name]).class_names)
    assert all(isinstance(value, str) for value in config["provenance"].values())
    hashed = {path.name for path in folders[name].iterdir()} - {"config.json", "load.py", "times.json"}
    assert config["sha256"].keys() == hashed


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("there", KINDS)
def test_a_bundle_is_replaced_by_any_other(folders: dict[str, Path], tmp_path: Path, name: str, there: str) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(folders[there], folder)
    from_pretrained(folders[name]).save_pretrained(folder)
    assert method_of(folder) == name
    assert contents(folder).keys() == contents(folders[name]).keys() - {"times.json"}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_bundle_is_not_replaced(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"format": "of mine"}')
    before, model = contents(tmp_path), from_pretrained(folders[name])
    with pytest.raises(BundleError, match="only a bundle may be replaced"):
        model.save_pretrained(tmp_path)
    assert contents(tmp_path) == before


def payload(card: str, finish: Callable[[Path, dict[str, Any]], object]) -> Payload:
    return Payload("static", ModelSpec("vgg16", 2, COLOUR), ("a", "b"), {}, {}, {}, card, finish)


def test_what_fails_at_the_end_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_folder(folder, payload("first", lambda partial, written: None))
    before = contents(folder)

    def fails(partial: Path, written: dict[str, Any]) -> None:
        assert written["sha256"] == {CARD: sha256(partial / CARD)}
        raise BundleError("it cannot be read", got="nothing")

    with pytest.raises(BundleError, match=r"got nothing"):
        write_folder(folder, payload("second", fails))
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_where_a_folder_may_be(tmp_path: Path) -> None:
    require_place(tmp_path / "nowhere")
    require_place(tmp_path)  # empty
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(BundleError, match="may be replaced"):
            require_place(place)
    with pytest.raises(BundleError, match="cannot be written to"):
        write_folder(tmp_path / "file" / "in it", payload("", lambda partial, written: None))


def test_methods_are_told_by_the_config_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    assert {name: method_of(place) for name, place in folders.items()} == {name: name for name in KINDS}
    assert method_of(tmp_path) is None
    for text in ("[]", "{", "{}", '{"method": "semantic"}'):
        (tmp_path / "config.json").write_text(text)
        assert method_of(tmp_path) is None


def test_what_could_not_be_read_is_not_written(folders: dict[str, Path], tmp_path: Path) -> None:
    model = from_pretrained(folders["static"])
    assert isinstance(model, PlainModel)
    twice = PlainModel(model.base_model(), ["a"] * len(model.class_names))
    with pytest.raises(BundleError, match="names must differ"):
        twice.save_pretrained(tmp_path / "twice")
    assert not any(tmp_path.iterdir())
