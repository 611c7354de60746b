"""Tensors in files of ours that one run writes and a later one reads: damage is found, wherever it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from sinf.storage.files import hash_tensors, write_tensors

Tensors = dict[str, Tensor]
_DIGEST = "sha256"  # in the file's metadata: of the other metadata, names, shapes and numbers


def write_checked(tensors: Tensors, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and short texts, with a digest of both."""
    said = dict(metadata or {})
    write_tensors(tensors, path, {**said, _DIGEST: _digest(tensors, said)})


def read_checked(path: Path) -> tuple[Tensors, dict[str, str]]:
    """What :func:`write_checked` wrote. A file without a digest is of an earlier version, and read as it is.

    Raises:
        SafetensorError, OSError: it cannot be read.
        ValueError: it is not as it was written.
    """
    with safe_open(str(path), "pt") as file:
        said = dict(file.metadata() or {})
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
    written = said.pop(_DIGEST, None)
    if written is not None and written != _digest(tensors, said):
        raise ValueError("it is not as it was written")
    return tensors, said


def _digest(tensors: Tensors, said: dict[str, str]) -> str:
    shapes = sorted((name, str(tensor.dtype), *tensor.shape) for name, tensor in tensors.items())
    return hashlib.sha256(f"{sorted(said.items())} {shapes} {hash_tensors(tensors)}".encode()).hexdigest()
