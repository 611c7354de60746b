"""Where sinf keeps what may be thrown away."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinf.storage.cache import cache_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SINF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_in_the_home(home: Path) -> None:
    assert cache_folder() == home / ".cache" / "sinf"


def test_in_the_cache_of_the_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    assert cache_folder() == home / "elsewhere" / "sinf"


def test_a_relative_cache_is_ignored(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
    assert cache_folder() == home / ".cache" / "sinf"


@pytest.mark.parametrize("named", ["~/own", "own", ""])
def test_where_it_is_told(home: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    """A folder of its own, also in this one; nothing is kept where it is set to nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    monkeypatch.setenv("SINF_CACHE", named)
    monkeypatch.chdir(home)
    assert cache_folder() == (home / "own" if named else None)


def test_without_a_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert cache_folder() is None


def test_tests_never_write_to_the_real_one() -> None:
    assert cache_folder() is None
