"""What looks like the runtime of a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinf.export.page import RUNTIME


@pytest.fixture(scope="package")
def fake_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnxruntime-web")
    (folder / "dist").mkdir()
    for name in (*RUNTIME, "ort.all.js"):
        (folder / "dist" / name).write_text(f"// {name}")
    return folder
