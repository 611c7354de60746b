"""What engines of other runtimes have in common: a session a part, made when first needed, over numpy arrays.

Nothing here needs torch.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sinf.errors import BundleError, ConfigError, SinfError
from sinf.machine.threads import Once

#: Where a part is: the path of its file, or the bytes of its ONNX graph.
Source = Callable[[str], Path | bytes]
Session = Callable[[list[np.ndarray]], tuple[np.ndarray, ...]]
_TYPES = {float: np.float32, bool: np.bool_, int: np.int64}


class SessionEngine(ABC):
    """Implements :class:`sinf.routing.router.Engine`; torch tensors are taken too, numpy arrays come out.

    Many threads may run one engine. It belongs to the process that opened it: the runtime's own threads are not there
    after a fork, and its sessions cannot be copied.

    Raises:
        ConfigError: it is run after a fork, or copied, or pickled.
    """

    name: str

    def __init__(self, source: Source, threads: int = 1) -> None:
        if threads < 1:
            raise ConfigError("threads must be at least 1", got=threads, remedy="give the cores it may use")
        self._source, self.threads = source, threads
        self._sessions: Once[str, Session] = Once(self._opened)
        self._process = os.getpid()

    @abstractmethod
    def _open(self, model: Path | bytes) -> Session:
        """A session that runs one part."""

    def run(self, part: str, *inputs: Any) -> tuple[np.ndarray, ...]:
        if os.getpid() != self._process:
            self._refuse("one that was opened before a fork")
        session = self._sessions[part]
        try:
            return session([np.ascontiguousarray(x, dtype=np.float32) for x in inputs])
        except Exception as error:  # runtimes have types of their own
            raise self._one_line("run", part, error) from error

    def _opened(self, part: str) -> Session:
        """A session of a part."""
        source = self._source(part)
        try:
            return self._open(source)
        except SinfError:
            raise
        except Exception as error:  # runtimes have types of their own
            raise self._one_line("open", part, error) from error

    def _one_line(self, what: str, part: str, error: Exception) -> BundleError:
        """What the runtime says of a part that it cannot open or run."""
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        remedy = "export it again, or take another engine"
        return BundleError(f"{self.name} cannot {what} the part {part}", got=got, remedy=remedy)

    def give_back(self) -> None:  # noqa: B027  most runtimes keep nothing
        """Give back what runs of many inputs took, where a runtime keeps it for the next."""

    def array(self, values: list[float] | list[bool] | list[int]) -> np.ndarray:
        return np.array(values, _TYPES[type(values[0])])

    def close(self) -> None:
        self._sessions.clear()

    def __reduce__(self) -> NoReturn:
        self._refuse("a copy of one")

    def _refuse(self, got: str) -> NoReturn:
        raise ConfigError(
            f"an engine of {self.name} runs in the process that opened it",
            got=got,
            remedy="open the engine in the worker itself, or use torch there",
        )
