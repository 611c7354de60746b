"""Draw the trade-off curves of benchmarks/results as pictures in docs: python benchmarks/plot.py"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
STYLES = {
    "semantic": ("#0b7285", "o-", "semantic inference"),
    "semantic-wholeextractor": ("#74b816", "^--", "extractor as it is"),
    "semantic-noreconstruct": ("#e8590c", "v--", "without reconstruction"),
    "static": ("#868e96", "s-", "static pruning, no routing"),
}
#: published: time saved (fraction), loss (points)
PAPER = {"vgg16": (0.29, 3.75)}


def draw(path: Path) -> Path:
    model = path.stem.split("_")[1]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axis = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    for method, (colour, style, label) in STYLES.items():
        for number, points in enumerate(_curves([r for r in rows if r["method"] == method])):
            axis.plot(
                [100 * x for x, _ in points], [y for _, y in points], style, color=colour, markersize=5,
                label=label if number == 0 else None, alpha=1.0 if number == 0 else 0.6,
            )  # fmt: skip
    if model in PAPER:
        saved, loss = PAPER[model]
        axis.plot(100 * saved, loss, "*", color="#c92a2a", markersize=13, label="SINF paper (its own VGG16)")
    axis.axhline(0, color="#adb5bd", linewidth=1)
    axis.set_ylim(-0.5, min(8.0, 1.0 + max(PAPER.get(model, (0, 0))[1], *(float(row["loss"]) for row in rows))))
    axis.set_xlabel("mean time saved, % (batch 1, one thread, torch)")
    axis.set_ylabel("loss of top-1 against the base model, points")
    axis.set_title(f"{model}, CIFAR-100, test[50%:] (base {100 * float(rows[0]['base_top1']):.2f} %)", loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left")
    DOCS.mkdir(exist_ok=True)
    picture = DOCS / f"{path.stem}.png"
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    with Image.open(picture) as drawn:  # a few colours are enough for lines, and a third of the bytes
        small = drawn.convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE)
    small.save(picture, optimize=True)
    return picture


def _curves(rows: list[dict[str, str]]) -> list[list[tuple[float, float]]]:
    """One curve for every build, by time saved; static rows are one curve."""
    by_build: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in rows:
        budgets = (row.get("whole", ""), row["extractor"], row["full_tail"], row["subgraph"])
        key = () if row["method"] == "static" else (row["cut"], *budgets)
        by_build.setdefault(key, []).append((float(row["time_saved"]), float(row["loss"])))
    return [sorted(points) for points in by_build.values()]


if __name__ == "__main__":
    for result in sorted(RESULTS.glob("tradeoff_*_cpu.csv")):
        print(draw(result))
