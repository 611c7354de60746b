"""Exports of the tiny bundles are made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from sinf.export.page import RUNTIME


@pytest.fixture(autouse=True, scope="package")
def _remembered_exports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.remember_exports(monkeypatch)
        yield


@pytest.fixture(scope="package")
def fake_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnxruntime-web")
    (folder / "dist").mkdir()
    for name in (*RUNTIME, "ort.all.js"):
        (folder / "dist" / name).write_text(f"// {name}")
    return folder
