"""Predictions of many images as a file, written while they come: parquet, JSON lines or CSV, by the ending of its name.

Parquet and CSV have a column ``image``, ``class_1``, ``probability_1`` and so on, what the method adds (a route, or
MACs), ``milliseconds`` and ``error``; JSON lines are the records that ``--json`` has.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sinf.bundle.classifier import Prediction
from sinf.errors import ConfigError
from sinf.storage.files import replacing

Add = Callable[[Prediction], None]
_ROWS = 1024  # of a group in parquet, which is in memory at once


def check_ending(path: Path) -> None:
    """Refuse a file of another kind, before the work."""
    if path.suffix not in _WRITERS:
        raise ConfigError(f"predictions are written to a file that ends in {', '.join(_WRITERS)}", got=path)


@contextmanager
def writer(path: Path, classes: int, details: dict[str, type]) -> Iterator[Add]:
    """A function that adds a prediction to a file, which is in place when all went well. ``classes`` are those of a
    prediction, ``details`` the names and types of what the method adds.

    Raises:
        ConfigError: the ending is none of a kind of file that is known.
        StorageError: it cannot be written; what was there stays.
    """
    check_ending(path)
    columns: dict[str, type] = {"image": str}
    for number in range(1, classes + 1):
        columns |= {f"class_{number}": str, f"probability_{number}": float}
    columns |= {**details, "milliseconds": float, "error": str}
    with replacing(path) as partial, _WRITERS[path.suffix](partial, columns) as add:
        yield add


def _row(prediction: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {"image": prediction.image, "error": prediction.error}
    if prediction.error is not None:
        return row
    for number, (name, value) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True), 1):
        row |= {f"class_{number}": name, f"probability_{number}": value}
    return row | prediction.details | {"milliseconds": prediction.milliseconds}


@contextmanager
def _json_lines(path: Path, columns: dict[str, type]) -> Iterator[Add]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda prediction: print(json.dumps(prediction.to_json()), file=file)


@contextmanager
def _csv(path: Path, columns: dict[str, type]) -> Iterator[Add]:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, list(columns))
        rows.writeheader()
        yield lambda prediction: rows.writerow(_row(prediction))


@contextmanager
def _parquet(path: Path, columns: dict[str, type]) -> Iterator[Add]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    waiting: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema) as file:

        def flush() -> None:
            if waiting:
                file.write_table(pa.Table.from_pylist(waiting, schema))
                waiting.clear()

        def add(prediction: Prediction) -> None:
            waiting.append(_row(prediction))
            if len(waiting) == _ROWS:
                flush()

        yield add
        flush()


_WRITERS = {".parquet": _parquet, ".jsonl": _json_lines, ".csv": _csv}
