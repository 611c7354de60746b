"""An engine from outside the package is one of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import outsider


@pytest.fixture(autouse=True, scope="package")
def _outside_engine() -> Iterator[None]:
    with outsider.outside_engine():
        yield
