"""A folder of results of ``sinf bench``: one JSON file a run, none ever written over."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from sinf.errors import ConfigError, StorageError
from sinf.storage.files import write_json
from sinf.storage.schema import Name, Record, Text, parse_file, shortened, validated

FORMAT = 1
KEY = "sinf_bench"


class _Row(Record):
    """Times of one batch size, of which a table shows these; without a base model, of the model alone."""

    model_config = ConfigDict(extra="allow")

    batch: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    median: float
    base_median: float | None = None
    time_saved: float | None = None
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> _Row:
        if len({value is None for value in (self.base_median, self.time_saved, self.low, self.high)}) > 1:
            raise ValueError("times beside a base model have a share saved and its interval")
        return self


class _Energy(Record):
    model_config = ConfigDict(extra="allow")

    batch: Annotated[int, Field(ge=1)]
    saved: float


class _Run(Record):
    """What of a file a table shows; there is more in it, for programs."""

    model_config = ConfigDict(extra="allow")

    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d", max_length=40)]
    bundle: Name
    engine: Name
    processor: Text
    threshold: float | None = None
    latency: Annotated[tuple[_Row, ...], Field(fail_fast=True, max_length=1000)]
    energy: Annotated[tuple[_Energy, ...], Field(fail_fast=True, max_length=1000)] | None = None


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
    record = parse_file(path, ConfigError, remedy=remedy)
    if not isinstance(record, dict) or record.get(KEY) != FORMAT:
        got = f"{KEY} {shortened(record.get(KEY), 80)}" if isinstance(record, dict) else type(record).__name__
        raise ConfigError(f"{path.name} must be a result of sinf bench, format {FORMAT}", got=got, remedy=remedy)
    validated(record, _Run, ConfigError, path.name, remedy=remedy)
    return record
