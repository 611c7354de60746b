"""Exports of the tiny bundles are made once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import outsider
import tiny


@pytest.fixture(autouse=True, scope="package")
def _remembered_exports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.remember_exports(monkeypatch)
        yield


@pytest.fixture(autouse=True, scope="package")
def _outside_engine() -> Iterator[None]:
    with outsider.outside_engine():
        yield
