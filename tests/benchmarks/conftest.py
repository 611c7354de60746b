"""Scripts of benchmarks/ as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """A script by its name, read anew, and so are those ``beside`` it that it imports; none is there afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names: list[str] = []

    def opened(name: str, *beside: str) -> ModuleType:
        names.extend((name, *beside))
        for each in names:
            monkeypatch.delitem(sys.modules, each, raising=False)
        return importlib.import_module(name)

    yield opened
    for each in names:
        sys.modules.pop(each, None)
