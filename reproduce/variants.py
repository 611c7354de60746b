"""Beyond the paper: what DCS lacks, part by part, and what scoring costs: python reproduce/variants.py"""

from __future__ import annotations

from common import Row, Section, networks, read, table

WHAT = {
    "dcs": "the paper's score",
    "dcs-elimination": "with redundancy: what its classifier loses when the others are fitted again",
    "dcs-energy": "with reach: mean with the energy that reaches the next layer",
    "reach": "what the next layer loses when the others make up for it",
    "reach-dcs": "the same, outputs weighted by their own DCS",
    "residual": "the same, outputs weighted by how the answer depends on them",
}
METHODS = {"static": "all classes", "semantic-truecluster": "cluster"}


def columns_of(rows: list[Row]) -> list[tuple[str, ...]]:
    keys = ("method", "allocation", "budget", "weights")
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))


def variants(rows: list[Row]) -> str:
    columns = columns_of(rows)
    lines = []
    for name, what in WHAT.items():
        cells = []
        for column in columns:
            found = [
                float(r["loss"]) for r in rows
                if (r["criterion"], r["method"], r["allocation"], r["budget"], r["weights"]) == (name, *column)
            ]  # fmt: skip
            cells.append(f"{sum(found) / len(found):.2f}" if found else "")
        lines.append([f"`{name}`", what, *cells])
    head = [
        f"{METHODS[method]}, {100 * float(budget):.0f} %, {allocation}, {weights}"
        for method, allocation, budget, weights in columns
    ]
    return table(["score", "what it says of a channel", *head], lines)


def costs(rows: list[Row]) -> str:
    lines = [
        [r["criterion"], r["images"], r["clusters"], f"{float(r['seconds']):.1f}", f"{float(r['bytes']) / 1e6:.0f}"]
        for r in rows
    ]
    return table(["criterion", "images", "clusters", "seconds", "MB"], lines)


def section() -> Section:
    parts = []
    for name in networks("dcs_"):
        parts.append(
            f"Loss in points on {name} at equal MACs, nothing trained, means over seeds where there are several. From "
            "top to bottom a score learns of redundancy, of what reaches the next layer, and of what the answer "
            "depends on:\n\n" + variants(read(f"dcs_{name}.csv"))
        )
    for name in networks("scoring_"):
        parts.append(
            f"Scoring all layers of {name}, one thread; memory is the peak above what the process had before. A "
            "criterion of weights looks at no image:\n\n" + costs(read(f"scoring_{name}_cpu.csv"))
        )
    return Section("What DCS lacks, and what scoring costs", "\n\n".join(parts) or "Not measured yet.")


if __name__ == "__main__":
    print(section().text)
