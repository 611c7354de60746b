"""A table of results: a CSV that is whole after every row, and tells machine, date and versions in each."""

from __future__ import annotations

import csv
import datetime
import fcntl
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sinf.measure.accuracy import machine
from sinf.measure.layer_table import IDLE
from sinf.measure.timing import OtherProcesses
from sinf.storage.files import replacing

RESULTS = Path(__file__).parent / "results"
T = TypeVar("T")


class LoadError(RuntimeError):
    """Something was timed while other processes took more than IDLE of a core."""


class Beside:
    """What all processes but this one and its children took since this was made; of children, those that ended."""

    def __init__(self) -> None:
        self._others, self._start, self._used = OtherProcesses(), time.perf_counter(), self._of_children()

    def load(self) -> float | None:
        """In cores; None where the system does not tell."""
        load = self._others.load()
        if load is None:
            return None
        return max(0.0, load - (self._of_children() - self._used) / (time.perf_counter() - self._start))

    @staticmethod
    def _of_children() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


class Table:
    """Rows of a file. One that agrees with an older one in the columns ``identity`` takes its place; ``common`` is what
    all new rows say. Several processes may write one file: rows are added under a lock, to those that are there then.

    ``keep``: rows that are in the file count as measured. ``loaded``: rows that were timed on a loaded machine are
    written, and their column ``load`` says so, instead of being refused.
    """

    def __init__(
        self, path: str | Path, columns: tuple[str, ...], identity: tuple[str, ...], *,
        keep: bool = False, loaded: bool = False, **common: Any,
    ) -> None:  # fmt: skip
        self.path, self.columns, self.identity, self.loaded = RESULTS / path, columns, identity, loaded
        facts = machine()
        self.common = {"device": facts["processor"], "date": datetime.date.today(), "versions": facts["versions"]}
        self.common |= common
        self.rows = self._read()
        self._measured = list(self.rows) if keep else []

    def has(self, **values: Any) -> bool:
        """Whether a row that need not be measured says all of this: one of this process or, with ``keep``, any."""
        return any(all(row.get(key, "") == text(value) for key, value in values.items()) for row in self._measured)

    def add(self, **values: Any) -> dict[str, str]:
        """Write a row, and return it as it is written.

        Raises:
            LoadError: it was timed while other processes took more than IDLE of a core; the file stays as it was.
        """
        load = values.get("load")
        if load is not None and load > IDLE and not self.loaded:
            raise LoadError(
                f"{self.path.name}: a row may be timed while other processes take {IDLE:g} of a core at most; they "
                f"took {load:.2f}. Stop them and run the command again with --keep; --loaded writes such rows, marked"
            )
        said = self.common | values
        row = {key: text(said.get(key, "")) for key in self.columns}
        with locked(self.path.parent):
            self.rows = self._read()
            agreeing = [i for i, old in enumerate(self.rows) if all(old.get(k, "") == row[k] for k in self.identity)]
            place = agreeing[0] if agreeing else len(self.rows)
            self.rows = [old for i, old in enumerate(self.rows) if i not in agreeing]
            self.rows.insert(place, row)
            self._write()
        self._measured.append(row)
        return row

    def forget_older(self, **values: Any) -> None:
        """Drop rows (that say all of this) which were not measured: for the end of a run that measures all of them."""
        with locked(self.path.parent):
            keys = [[row[key] for key in self.identity] for row in self._measured]
            said = {key: text(value) for key, value in values.items()}
            self.rows = [
                row for row in self._read()
                if [row.get(key, "") for key in self.identity] in keys
                or any(row.get(key, "") != value for key, value in said.items())
            ]  # fmt: skip
            self._write()

    def _write(self) -> None:
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time. The lock is the folder's own: nothing is left behind by a process that is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def when_idle(measure: Callable[[], T], load: Callable[[T], float | None], tries: int = 3) -> T:
    """What ``measure`` returns, again where other processes ran meanwhile; the last one as it is, for the table to
    refuse."""
    for _ in range(tries - 1):
        measured = measure()
        if (load(measured) or 0.0) <= IDLE:
            return measured
    return measure()


def text(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
