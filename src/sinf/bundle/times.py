"""What ``sinf tune`` has measured of a semantic bundle: ``times.json`` beside its other files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sinf.bundle.records import TimesList
from sinf.errors import BundleError
from sinf.routing.grouping import TailTimes
from sinf.storage.config import config_digest
from sinf.storage.files import write_json
from sinf.storage.schema import Digest, Record, parse_file, validated
from sinf.storage.seal import sealed, unsealed

NAME = "times.json"


class _Times(Record):
    bundle: Digest
    tails: TimesList


def read_times(folder: Path, key: bytes | None = None) -> tuple[TailTimes, ...]:
    """What ``sinf tune`` has measured of a bundle; nothing where it has not.

    Raises:
        BundleError: the file is damaged, was changed or is that of another bundle; see :meth:`Bundle.load` for keys.
    """
    path, remedy = folder / NAME, "remove it, or tune again"
    if not path.exists():
        return ()
    record = parse_file(path, BundleError, remedy=remedy)
    if not isinstance(record, dict):
        raise BundleError(f"{path} must be as sinf tune writes it", got=type(record).__name__, remedy=remedy)
    content, _ = unsealed(record, BundleError, str(path), key)
    times = validated(content, _Times, BundleError, str(path), remedy=remedy)
    if times.bundle != config_digest(folder, key):
        raise BundleError("times must be those of their bundle", got=f"{path} of another one", remedy=remedy)
    return times.tails


def replace_times(folder: Path, new: TailTimes, key: bytes | None = None) -> None:
    """Store what was measured in a bundle, in the place of earlier times of the same setting."""
    kept = (each for each in read_times(folder, key) if each.setting != new.setting)
    write_times((*kept, new), folder, key)


def write_times(times: tuple[TailTimes, ...], folder: Path, key: bytes | None = None) -> None:
    """Put what was measured beside the rest of a bundle."""
    record = {"bundle": config_digest(folder, key), "tails": [asdict(each) for each in times]}
    write_json(sealed(record, key), folder / NAME)
