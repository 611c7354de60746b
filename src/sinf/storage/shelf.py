"""Tensors that may be too large for memory: in memory where they fit, and otherwise in files that are gone when nobody
uses them any more."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor

from sinf.errors import StorageError


class Shelf:
    """Makes tensors; those of more than ``most`` bytes lie in files of ``folder``, mapped into memory, so that the
    system may take their pages back."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor whose numbers are not set.

        Raises:
            StorageError: the disk has no room for it.
        """
        size = math.prod(shape) * dtype.itemsize
        if size <= self.most:
            return torch.empty(shape, dtype=dtype)
        mapped = self._map(size)
        self._maps.add(mapped)
        return torch.frombuffer(mapped, dtype=dtype).view(shape)

    def _map(self, size: int) -> mmap.mmap:
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:  # without a name: no one has to remove it
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so now, and not by a signal
                else:
                    file.truncate(size)
                return mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise StorageError(
                f"the folder {self.folder} must have room for {size / 1e9:.1f} GB of features",
                got=error,
                remedy="free some, name another folder, or cut where features are smaller",
            ) from error

    def forget(self) -> None:
        """Give back the memory of pages that were read or written; they are read again from the file."""
        for mapped in list(self._maps):
            if hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)
