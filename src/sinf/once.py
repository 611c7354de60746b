"""What many threads share: things that are made once, when they are first asked for, and locks that outlive a fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lock:
    """A reentrant lock for ``with``. After a fork it is open in the child: the thread that held it is not there to open
    it. A copy of it is a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _open_all() -> None:
    for lock in _locks:
        lock._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)


class Once(Generic[K, V]):
    """``once[key]`` is what ``make(key)`` gave when it was asked for first; only one thread at a time makes anything.

    What is there already is read without a lock.
    """

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        self._made: dict[K, V] = {}
        self._lock = Lock()

    def __getitem__(self, key: K) -> V:
        try:
            return self._made[key]
        except KeyError:
            with self._lock:
                if key not in self._made:
                    self._made[key] = self._make(key)
                return self._made[key]

    def clear(self) -> None:
        """Forget all; who still uses something keeps it until it is done."""
        with self._lock:
            self._made.clear()
