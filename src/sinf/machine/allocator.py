"""What becomes of freed memory, on Linux with glibc; elsewhere nothing is done, and nothing depends on it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt
_KEEP = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}
_USUAL = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


@contextmanager
def freed_is_kept() -> Iterator[None]:
    """While inside, blocks that are freed stay with the process and are used again, however large; then all that is
    free is given back.

    Large blocks come from the system otherwise, each time anew, page by page, and zeroed: a quarter of the processor
    time of a training whose maps are wide.
    """
    _set(_KEEP)
    try:
        yield
    finally:
        _set(_USUAL)
        give_back()


def give_back() -> None:
    """Give what is free back to the system."""
    with suppress(OSError, AttributeError):  # another C library, another system
        ctypes.CDLL(None).malloc_trim(0)


def _set(options: dict[int, int]) -> None:
    with suppress(OSError, AttributeError):
        for option, value in options.items():
            ctypes.CDLL(None).mallopt(option, value)
