"""A compressor and an engine that are not in the package, known by their names for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import as_written
import sparsity
from sinf.compress.methods import COMPRESSORS, register
from sinf.engine import engines


@contextmanager
def outsider() -> Iterator[str]:
    """2:4 sparsity, of examples/sparsity.py."""
    register(sparsity.TwoOfFour, lambda options: sparsity.TwoOfFour())
    try:
        yield sparsity.TwoOfFour.name
    finally:
        COMPRESSORS.pop(sparsity.TwoOfFour.name)


@contextmanager
def outside_engine() -> Iterator[str]:
    """Networks as they are written, of examples/as_written.py."""
    engines.register(as_written.AsWritten())
    try:
        yield as_written.AsWritten.name
    finally:
        engines.RUNTIMES.pop(as_written.AsWritten.name)


# Importing them made them known.
COMPRESSORS.pop(sparsity.TwoOfFour.name)
engines.RUNTIMES.pop(as_written.AsWritten.name)
