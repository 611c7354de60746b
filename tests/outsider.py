"""A compressor that is not in the package, known by its name for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sparsity
from sinf.compress.methods import COMPRESSORS, register


@contextmanager
def outsider() -> Iterator[str]:
    """2:4 sparsity, of examples/sparsity.py."""
    register(sparsity.TwoOfFour, lambda options: sparsity.TwoOfFour())
    try:
        yield sparsity.TwoOfFour.name
    finally:
        COMPRESSORS.pop(sparsity.TwoOfFour.name)


COMPRESSORS.pop(sparsity.TwoOfFour.name)  # importing it made it known
