"""What many threads share: things that are made once, when they are first asked for, and locks that outlive a fork."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lock:
    """A reentrant lock for ``with``. After a fork it is open in the child: the thread that held it is not there to open
    it. A copy of it is a lock of its own."""

    def __init__(self) -> None:
        self._open()
        _shared.add(self)

    def _open(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


class Runs:
    """``with runs:`` by any number of threads, or ``with runs.none():`` by one, while no other is in either.

    The former costs about a microsecond, and no lock as long as nobody is in the latter. Neither is entered in
    the other by the same thread.
    """

    def __init__(self) -> None:
        self._gate = Lock()
        self._open()
        _shared.add(self)

    def _open(self) -> None:
        self._running: deque[None] = deque()
        self._closed = False

    def __enter__(self) -> None:
        # First it is noted and then looked whether one is alone, who does it the other way round: one of both sees it.
        self._running.append(None)
        while self._closed:
            self._running.pop()
            with self._gate:
                self._running.append(None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.pop()

    @contextmanager
    def none(self) -> Iterator[None]:
        """Wait until no thread runs, and let none begin."""
        with self._gate:
            before, self._closed = self._closed, True
            try:
                while self._running:
                    time.sleep(_PAUSE)
                yield
            finally:
                self._closed = before


_PAUSE = 0.0005  # seconds between two looks at whether the last one is done
_shared: weakref.WeakSet[Lock | Runs] = weakref.WeakSet()


def _open_all() -> None:
    for each in list(_shared):
        each._open()


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
