"""A file that says which class of a model a label of some data is."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sinf.errors import DataError
from sinf.storage.schema import MAX_BYTES, Text, parse, shortened, validated

_EXAMPLE = '{"label of the data": "class of the model" or its number, or null to leave its images out}'
_Labels = dict[Text, Text | Annotated[int, Field(ge=0, lt=100_000)] | None]


def read_label_file(path: str | Path) -> dict[str, str | int | None]:
    """What each label is: a class's name or number, or None for images that are left out.

    JSON is an object of labels. CSV has a label and a class in every row, an empty class for None; a first row
    ``label,class`` is a heading.

    Raises:
        DataError: the file cannot be read, is of another kind, or has a label twice.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise OSError("no such file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if path.suffix.lower() == ".csv" and len(content) <= MAX_BYTES:
            return _of_csv(content.decode("utf-8-sig"), path)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} must be a readable file of labels", got=error, remedy=_EXAMPLE) from error
    record = parse(content, DataError, str(path), remedy=_EXAMPLE)
    made: dict[str, str | int | None] = validated(record, _Labels, DataError, str(path), remedy=_EXAMPLE)
    return made


def _of_csv(text: str, path: Path) -> dict[str, str | int | None]:
    class_of: dict[str, str | int | None] = {}
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if any(cell.strip() for cell in row)]
    if rows and [cell.strip().lower() for cell in rows[0]] == ["label", "class"]:
        rows = rows[1:]
    for row in rows:
        if len(row) != 2 or row[0] in class_of:
            got = f"{shortened(row, 100)}{' twice' if len(row) == 2 else ''}"
            raise DataError(f"{path}: a row has a label and a class, each label once", got=got, remedy="correct it")
        value = row[1].strip()
        class_of[row[0]] = None if not value else int(value) if value.isdecimal() else value
    return class_of
