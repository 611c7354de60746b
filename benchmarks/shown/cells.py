"""What tables of pages are written from, and how a cell says it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
MISSING = "Not measured yet."
IDLE = 0.3  # cores that others may take, as in table.py
Row = dict[str, str]


def read(name: str) -> list[Row]:
    path = RESULTS / name
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def names(pattern: str) -> list[str]:
    """Of files there, sorted."""
    return sorted(path.name for path in RESULTS.glob(pattern))


def markdown(head: Iterable[str], rows: Iterable[list[str]]) -> str:
    head = list(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def percent(value: str) -> str:
    return f"{100 * float(value):.1f} %"


def bounds(row: Row, name: str, show: Callable[[str], str] = percent) -> str:
    """The 95 % interval of a column, nothing where there is none."""
    low, high = row.get(f"{name}_low", ""), row.get(f"{name}_high", "")
    return f"{show(low)} .. {show(high)}" if low and high else ""


def points_of(value: str) -> str:
    return f"{float(value):.2f}"


def machine_of(row: Row) -> list[str]:
    """How long the base model took, and what other processes took meanwhile, in cores."""
    base = f"{float(row['base_ms']):.2f}" if row.get("base_ms") else "not recorded"
    if not row.get("load"):
        return [base, "not recorded"]
    return [base, f"{float(row['load']):.2f}" + (" (loaded)" if float(row["load"]) > IDLE else "")]
