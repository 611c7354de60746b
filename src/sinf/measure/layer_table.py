"""Times of kinds of layers, kept once a machine: what was measured for one network is not measured for the next.

An entry is a file: one kind of layer at a few widths, under a name made of all that its times depend on. A file is
written whole and never changed, so no lock is needed: of two processes that measure the same kind, the later one's
times stay.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sinf.errors import DataWarning, StorageError
from sinf.storage.cache import cache_folder
from sinf.storage.files import remove_partials, write_json
from sinf.storage.schema import Digest, Record, Text, parse_file, validated
from sinf.storage.seal import sealed, unsealed
from sinf.storage.steps import StepStore

#: Milliseconds of a layer by its widths: (outputs, inputs).
Times = dict[tuple[int, int], float]

IDLE, SHARE = 0.3, 0.05  # of one core, or of all: what other processes may take while something is timed
_AGAIN = "it is measured again"
_DAY = 24 * 3600.0

_Width = Annotated[int, Field(ge=1, le=10_000_000)]


class _Time(Record):
    out: _Width
    into: _Width
    ms: Annotated[float, Field(ge=0, le=1e7)]


class _Entry(Record):
    """``depends`` is compared with what was asked for, and so needs no schema of its own."""

    depends: dict[str, Any]
    times: Annotated[tuple[_Time, ...], Field(fail_fast=True, min_length=1, max_length=4)]
    load: Annotated[float, Field(ge=0, le=1e6)] | None
    date: Text
    digest: Digest


class LayerTable:
    """Entries in ``folder``, which many processes may share; None keeps nothing. What is wrong with the folder or with
    a file of it is a warning, and the times are measured."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._cleared = False

    @staticmethod
    def of_machine() -> LayerTable:
        """In the user's cache."""
        folder = cache_folder()
        return LayerTable(None if folder is None else folder / "layer-times")

    @property
    def step(self) -> str:
        """The step of measuring, which says where times are kept."""
        if self.folder is None:
            return "times of layers"
        home = os.path.expanduser("~") + os.sep
        return f"times of layers, kept in {re.sub('^' + re.escape(home), '~/', str(self.folder))}"

    def find(self, depends: dict[str, Any], out: int, into: int) -> Times | None:
        """What is kept of a kind whose widest layers have ``out`` outputs and ``into`` inputs: times at these widths,
        or at wider and narrower ones. Of several, those of the narrowest layers; None where there are none."""
        depends = _plain(depends)
        for path in self._paths(depends, out, into):
            times = self._read(path, depends)
            if times is None:
                continue
            outs, intos = zip(*times, strict=True)
            if min(outs) <= out <= max(outs) and min(intos) <= into <= max(intos):
                return times
        return None

    def keep(self, depends: dict[str, Any], times: Times, load: float | None) -> None:
        """Write an entry; ``load`` is what other processes took while it was measured, in cores."""
        if self.folder is None:
            return
        depends = _plain(depends)
        out, into = (max(sides) for sides in zip(*times, strict=True))
        rows = [{"out": o, "into": i, "ms": ms} for (o, i), ms in times.items()]
        record = {"depends": depends, "times": rows, "load": load, "date": str(datetime.date.today())}
        try:
            write_json(sealed(record), self.folder / f"{_name(depends)}.{out}x{into}.json")
        except StorageError as error:
            self._give_up(error)
            return
        if not self._cleared:
            remove_partials(self.folder, older=_DAY)
            self._cleared = True

    def _paths(self, depends: dict[str, Any], out: int, into: int) -> Iterator[Path]:
        """Of entries whose widest layers are as wide at least, the narrowest first."""
        if self.folder is None:
            return
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return
        except OSError as error:
            self._give_up(error)
            return
        of_kind = re.compile(rf"{_name(depends)}\.(\d{{1,8}})x(\d{{1,8}})\.json")
        wide = [(int(match[1]), int(match[2]), match[0]) for name in names if (match := of_kind.fullmatch(name))]
        wide = [each for each in wide if each[0] >= out and each[1] >= into]
        yield from (self.folder / name for _, _, name in sorted(wide, key=lambda each: (each[0] * each[1], each)))

    @staticmethod
    def _read(path: Path, depends: dict[str, Any]) -> Times | None:
        try:
            record = parse_file(path, StorageError, remedy=_AGAIN)
            entry = validated(record, _Entry, StorageError, str(path), remedy=_AGAIN)
            unsealed(record, StorageError, str(path))
            if entry.depends != depends:
                raise StorageError(f"{path} must be what its name says", got="another kind", remedy=_AGAIN)
        except StorageError as error:
            warnings.warn(str(error), DataWarning, stacklevel=5)
            return None
        return {(each.out, each.into): each.ms for each in entry.times}

    def _give_up(self, error: Exception) -> None:
        """Nothing is kept any more, which is said once."""
        warnings.warn(f"times of layers are not kept: {error}", DataWarning, stacklevel=4)
        self.folder = None


def is_idle(load: float | None) -> bool:
    """Whether other processes left the machine alone; where the system does not tell, nothing says otherwise."""
    return load is None or load <= max(IDLE, SHARE * (os.cpu_count() or 1))


def _name(depends: dict[str, Any]) -> str:
    return StepStore.name("kind", depends)


def _plain(depends: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    return json.loads(json.dumps(depends))
