"""What the scripts of this folder share: the published numbers, our results, and how a figure looks."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
DOCS = HERE.parent / "docs"
COLOURS = {
    "residual": "#0b7285", "joint": "#15aabf", "dcs": "#c92a2a", "energy": "#74b816", "taylor": "#e8590c",
    "l1": "#868e96", "random": "#adb5bd", "tvs": "#7048e8", "fisher": "#d6336c",
}  # fmt: skip
OTHER = "#dee2e6"

Row = dict[str, str]


@dataclass(frozen=True)
class Section:
    """What a script gives to the page: title, text in Markdown, pictures by file name in docs."""

    title: str
    text: str
    pictures: tuple[str, ...] = ()


def read(name: str) -> list[Row]:
    """Rows of a file of benchmarks/results; none where it was not measured."""
    return _rows(RESULTS / name)


def published(figure: str) -> list[Row]:
    """What the paper says, with its source."""
    return [row for row in _rows(HERE / "published.csv") if row["figure"] == figure]


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def number(figure: str, network: str, what: str) -> float | None:
    """One published number, None where it is not known."""
    found = [row["value"] for row in published(figure) if (row["network"], row["what"]) == (network, what)]
    return float(found[0]) if found and found[0] else None


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def shown(value: float | None, unit: str = "") -> str:
    return "not known" if value is None else f"{value:.2f}{unit}"


def kept(rows: list[Row]) -> str:
    """The share of MACs that stays, as measured: widths are whole numbers, so it can be less than the budget."""
    return f"{100 * (1 - sum(float(row['macs_saved']) for row in rows) / len(rows)):.0f} %"


def networks(prefix: str) -> list[str]:
    """Networks that were measured, by the names of the result files."""
    return sorted(path.stem.removeprefix(prefix).removesuffix("_cpu") for path in RESULTS.glob(f"{prefix}*.csv"))


def missing(name: str) -> str:
    """Why a network has no rows."""
    rows = read(f"trained_{name}_cifar100.csv")
    if any(row["what"] == "weights" for row in rows):
        return "trained, not measured"
    return "in training" if rows else "not trained"


def panels(count: int, height: float = 3.6) -> tuple[Any, list[Any]]:
    figure, axes = plt.subplots(1, count, figsize=(4.6 * count, height), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def save(figure: Any, name: str) -> str:
    path = DOCS / name
    figure.savefig(path, dpi=90)
    plt.close(figure)
    with Image.open(path) as picture:  # a few colours are enough for lines, and a third of the bytes
        small = picture.convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE)
    small.save(path, optimize=True)
    return name
