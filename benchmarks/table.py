"""A table of results: a CSV that is whole after every row, and tells machine, date and versions in each."""

from __future__ import annotations

import csv
import datetime
from pathlib import Path
from typing import Any

from sinf.files import replacing
from sinf.measure import machine

RESULTS = Path(__file__).parent / "results"


class Table:
    """Rows of a file. One that agrees with an older one in the columns ``identity`` takes its place; without an
    identity the file begins anew. ``common`` is what all new rows say."""

    def __init__(self, path: str | Path, columns: tuple[str, ...], identity: tuple[str, ...] = (), **common: Any):
        self.path, self.columns, self.identity = RESULTS / path, columns, identity
        facts = machine()
        self.common = {"device": facts["processor"], "date": datetime.date.today(), "versions": facts["versions"]}
        self.common |= common
        self.rows: list[dict[str, str]] = []
        if identity and self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def has(self, **values: Any) -> bool:
        """Whether a row says all of this."""
        return any(all(row.get(key, "") == text(value) for key, value in values.items()) for row in self.rows)

    def add(self, **values: Any) -> dict[str, str]:
        """Write a row, and return it as it is written."""
        said = self.common | values
        row = {key: text(said.get(key, "")) for key in self.columns}
        if self.identity:
            self.rows = [old for old in self.rows if any(old.get(key, "") != row[key] for key in self.identity)]
        self.rows.append(row)
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        return row


def text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
