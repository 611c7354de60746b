"""SIGINT and SIGTERM end a command in the same way: what it was writing is cleaned up first."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

_PATIENCE = 3.0  # seconds for cleaning up, in which further signals change nothing; after that they interrupt again


class Interrupts:
    """Within ``with``, both signals raise KeyboardInterrupt in the main thread; ``number`` is the first that came.

    People press Ctrl-C twice, and supervisors send both: what comes while the first is being handled is ignored. Where
    none came, the handlers of before are set again at the end.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._last = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():  # None: one that was not set from Python
            before = signal.SIG_DFL if handler is None else handler
            signal.signal(number, signal.SIG_IGN if self.number else before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is not None and now - self._last < _PATIENCE:
            return
        self.number, self._last = self.number or number, now
        raise KeyboardInterrupt
