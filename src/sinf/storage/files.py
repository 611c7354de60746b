"""Files and folders that are whole or not there: written beside their place, then renamed, so that a kill or a full
disk leaves what was there."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sinf.errors import StorageError

_PARTIAL, _OLD = ".partial", ".old"


def _beside(path: Path) -> Path:
    """A name beside ``path`` that no other process or thread has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{_PARTIAL}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of ``path`` when all went well; of a link, that of what it names.

    Raises:
        StorageError: it cannot be written, or is a device or a pipe; what was there stays.
    """
    target = Path(os.path.realpath(path))
    partial = _beside(target)
    try:
        if target.exists() and not target.is_file():  # /dev/null would be gone, were it written by the superuser
            raise OSError("it is there, and is no file")
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.chmod(0o644)
        os.replace(partial, target)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written", got=error, remedy="free space or name a writable place"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``folder`` when all went well; of a link, that of what it names.

    Raises:
        StorageError: it cannot be written; what was there stays.
    """
    target = Path(os.path.realpath(folder))
    partial: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(target)
        partial.mkdir()
        yield partial
        partial.chmod(0o755)
        _swap(partial, target)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written", got=error, remedy="free space or name a writable place"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _swap(new: Path, target: Path) -> None:
    if not target.exists():
        os.replace(new, target)
        return
    old = new.with_name(new.name + _OLD)
    try:
        os.replace(target, old)
        os.replace(new, target)
    except BaseException:  # an interrupt too
        if not target.exists():
            os.replace(old, target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def exclusive(target: Path, *work: Path) -> Iterator[None]:
    """While this lasts, no other process that asks for it too writes ``target``, a file or a folder.

    The system holds the lock (``flock``), on a file beside the target (in it where nothing can be written beside), and
    lets go of it when the process ends in any way. What killed processes left is removed, beside the target and in it
    and in the folders ``work``; what one had moved away to put something else in its place is put back.

    Raises:
        StorageError: another process writes it now, or no file can be made or locked there.
    """
    from filelock import FileLock, Timeout

    real = Path(os.path.realpath(target))
    within = real.is_dir() and not os.access(real.parent, os.W_OK)  # such as a disk that was mounted there
    file = real / ".lock" if within else real.parent / f".{real.name}.lock"
    lock = FileLock(file, timeout=0, fallback_to_soft=False)
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise StorageError(
            f"only one command at a time may write {target}",
            got="another one that runs now",
            remedy="wait until it has ended, or name another place",
        ) from None
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written", got=error, remedy="free space or name a writable place"
        ) from error
    try:
        _clear(real, *work)
        yield
    finally:
        _clear(real, *work)
        with suppress(OSError):
            file.unlink()  # while it is held: who waits for it sees that it is gone, and makes another
        lock.release()


def _clear(target: Path, *work: Path) -> None:
    """Remove what was not finished."""
    for old in target.parent.glob(f".{glob.escape(target.name)}.*{_PARTIAL}{_OLD}"):
        if not target.exists():
            with suppress(OSError):
                os.replace(old, target)
        shutil.rmtree(old, ignore_errors=True)
    remove_partials(target.parent, target.name)
    for folder in (target, *work):
        remove_partials(folder)


def remove_partials(folder: Path, name: str | None = None, older: float = 0.0) -> None:
    """Remove from a folder what killed processes were writing, and has not changed for ``older`` seconds: of one name,
    or all."""
    last = time.time() - older
    for path in folder.glob(f".{'*' if name is None else glob.escape(name)}.{'[0-9a-f]' * 16}{_PARTIAL}"):
        with suppress(OSError):
            if older and path.stat().st_mtime > last:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a record for programs; JSON has no NaN and no infinity, which are null there."""
    with replacing(path) as file:
        file.write_text(json.dumps(_finite(record), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(tensors: dict[str, Any], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    own = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with replacing(path) as file:
        try:
            save_file(own, file, metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tensors(tensors: dict[str, Any]) -> str:
    """sha256 of names and values."""
    import torch

    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(key.encode())
        flat = value.detach().cpu().contiguous().flatten()
        flat = flat.as_strided(flat.shape, (1,))  # a single number is contiguous with any stride, and cannot be viewed
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
