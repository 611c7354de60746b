"""A criterion, a compressor, an engine and a method of gates that are not in the package, known by their names for a
while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import as_written
import distinct
import peak
import sparsity
from sinf import criteria
from sinf.compress.methods import COMPRESSORS, register
from sinf.dynamic import methods
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


@contextmanager
def outside_criterion() -> Iterator[str]:
    """What no stronger channel says already, of examples/distinct.py."""
    criteria.register(distinct.Distinct)
    try:
        yield distinct.Distinct.name
    finally:
        criteria.registry._TABLE.pop(distinct.Distinct.name)


@contextmanager
def outside_gates() -> Iterator[str]:
    """Gates that look at the largest value of a channel, of examples/peak.py."""
    methods.register(peak.Peak())
    try:
        yield peak.Peak.name
    finally:
        methods.METHODS.pop(peak.Peak.name)


# Importing them made them known.
COMPRESSORS.pop(sparsity.TwoOfFour.name)
engines.RUNTIMES.pop(as_written.AsWritten.name)
criteria.registry._TABLE.pop(distinct.Distinct.name)
methods.METHODS.pop(peak.Peak.name)
