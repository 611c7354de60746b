"""Results of steps in files, so that a build that was killed goes on where it stopped.

A file's name holds a hash of everything that the step depends on: a step of other options is another file, and none is
ever taken for one that it is not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sinf.errors import ConfigError
from sinf.storage.files import remove_partials
from sinf.storage.tensors import Tensors, read_checked, write_checked

_HEADER = 128  # bytes of a file's digest, and beside a tensor's name of its type, shape and place, at most
_DAY = 24 * 3600.0  # no step takes as long to write


class StepStore:
    """Remembers what steps computed, in ``folder``, which several builds may share at the same time.

    With ``most``, all files there take at most so many bytes, and one at most half of the disk's room: results that
    would take more are not kept, and computed again."""

    def __init__(self, folder: Path, most: int | None = None) -> None:
        self.folder, self.most = folder, most
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the work folder must be writable: {folder}", got=error, remedy="name another"
            ) from error
        remove_partials(folder, older=_DAY)  # of builds that were killed; others may be writing now

    @staticmethod
    def name(step: str, depends: Any) -> str:
        """Of the file, or folder, of a step that depends on this."""
        record = json.dumps(depends, sort_keys=True, default=str)
        return f"{step}-{hashlib.sha256(record.encode()).hexdigest()[:16]}"

    def has(self, name: str, depends: Any) -> bool:
        """Whether a step was stored."""
        return self._path(name, depends).exists()

    def get(self, name: str, depends: Any, compute: Callable[[], Tensors]) -> Tensors:
        """The tensors of a step: read if they are there and as they were written, else computed and, where there is
        room, written."""
        path = self._path(name, depends)
        if path.exists():
            try:
                return read_checked(path)[0]
            except (SafetensorError, OSError, ValueError):
                path.unlink(missing_ok=True)  # not one of ours, or the disk's fault: compute it again
        tensors = compute()
        if self._has_room(_HEADER + sum(_HEADER + len(key) + tensor.nbytes for key, tensor in tensors.items())):
            write_checked(tensors, path)
        return tensors

    def _has_room(self, size: int) -> bool:
        """For so many bytes."""
        if self.most is None:
            return True
        taken = 0
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another build renamed it
                taken += path.stat().st_size
        return size <= min(self.most - taken, shutil.disk_usage(self.folder).free // 2)

    def _path(self, name: str, depends: Any) -> Path:
        return self.folder / f"{self.name(name, depends)}.safetensors"
