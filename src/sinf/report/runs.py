"""A folder of results of ``sinf bench``: one JSON file a run, none ever written over."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinf.errors import ConfigError, StorageError
from sinf.storage.files import write_json

FORMAT = 1
KEY = "sinf_bench"


@dataclass(frozen=True)
class Run:
    """One file of the folder."""

    file: str
    record: dict[str, Any]


def add_run(folder: Path, record: dict[str, Any]) -> Path:
    """Write one more run, with its date; the name says when, what and in which engine."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    words = f"{now:%Y%m%dT%H%M%SZ} {record['bundle']} {record['engine']}"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", words)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{stem}.json"
        while not _claim(path):
            path = path.with_name(f"{path.stem}-again.json")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written", got=error, remedy="name another --results folder") from error
    write_json({KEY: FORMAT, "date": now.isoformat(), **record}, path)
    return path


def _claim(path: Path) -> bool:
    """Whether the name is free; another run of the same second may be writing."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def read_runs(folder: Path) -> list[Run]:
    """All runs of a folder, oldest first.

    Raises:
        ConfigError: there are none, or a file is not one.
    """
    if not folder.is_dir():
        raise ConfigError("results must be a folder", got=folder, remedy="name that of sinf bench --results")
    runs = [Run(path.name, _record(path)) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise ConfigError("the folder must hold results", got=f"none in {folder}", remedy="sinf bench --results FOLDER")
    return sorted(runs, key=lambda run: (run.record["date"], Path(run.file).stem))


def _record(path: Path) -> dict[str, Any]:
    remedy = "remove it from the folder"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.name} must be a result of sinf bench", got=error, remedy=remedy) from error
    if not isinstance(record, dict) or record.get(KEY) != FORMAT:
        got = f"{KEY} {record.get(KEY)}" if isinstance(record, dict) else type(record).__name__
        raise ConfigError(f"{path.name} must be a result of sinf bench, format {FORMAT}", got=got, remedy=remedy)
    missing = {"date", "bundle", "engine", "processor", "latency"} - record.keys()
    if missing:
        raise ConfigError(f"{path.name} is incomplete", got=f"no {', '.join(sorted(missing))}", remedy=remedy)
    return record
