"""(iv) Accuracy within clusters: python reproduce/clusters.py"""

from __future__ import annotations

from common import Row, Section, kept, missing, networks, number, published, read, shown, table

SHOWN = (("dcs", "plain"), ("dcs", "reconstructed"), ("residual", "reconstructed"))
WEIGHTS = ("plain", "recalibrated", "reconstructed", "low-rank", "low-rank-bundle")


def accuracies(rows: list[Row], base: float) -> list[list[str]]:
    """One line a budget: how it is spent, and the accuracy of each shown pair, with what it gains over the base."""
    lines = []
    for budget, allocation in sorted(
        {(r["budget"], r["allocation"]) for r in rows}, key=lambda b: (-float(b[0]), b[1])
    ):
        cells = []
        for pair in SHOWN:
            found = [
                100 * float(r["top1"])
                for r in rows
                if (r["budget"], r["allocation"], r["criterion"], r["weights"]) == (budget, allocation, *pair)
            ]
            mean = sum(found) / len(found) if found else None
            cells.append("" if mean is None else f"{mean:.2f} ({mean - base:+.2f})")
        if any(cells):
            spent = kept([r for r in rows if (r["budget"], r["allocation"]) == (budget, allocation)])
            lines.append([f"{spent}, {allocation}", *cells])
    return lines


def by_cut(rows: list[Row]) -> str:
    """One line a cut and number of images: what half of the tail answers, beside the base model limited to the
    cluster's classes."""
    lines = []
    ways = [kind for kind in WEIGHTS if any(r["weights"] == kind for r in rows)]
    for cut, scored in dict.fromkeys((r["cut"], r["scored_on"]) for r in rows):
        mine = {r["weights"]: r for r in rows if (r["cut"], r["scored_on"]) == (cut, scored)}
        first = next(iter(mine.values()))
        limited = 100 * float(first["base_top1"])
        cells = [
            f"{100 * float(mine[kind]['top1']):.2f} ({100 * float(mine[kind]['top1']) - limited:+.2f})"
            if kind in mine
            else ""
            for kind in ways
        ]
        tail = f"{100 * float(first['tail_share']):.0f} %"
        lines.append([f"`{cut}`", tail, scored, f"{limited:.2f}", *cells])
    return table(["cut after", "MACs after it", "images of a class", "base, limited", *ways], lines)


def section() -> Section:
    measured = networks("criteria_")
    claims, parts = [], []
    for name in dict.fromkeys([r["network"] for r in published("clusters")] + measured):
        claimed = number("clusters", name, "within clusters over the base model")
        rows = read(f"criteria_{name}.csv")
        whole = {r["base_top1"] for r in rows if r["method"] == "static"}
        within = [r for r in rows if r["method"] == "semantic-truecluster"]
        if not whole or not within:
            claims.append([name, shown(claimed), "not measured" if name in measured else missing(name), ""])
            continue
        base, limited = 100 * float(next(iter(whole))), 100 * float(within[0]["base_top1"])
        claims.append([name, shown(claimed), f"{base:.2f}", f"{limited:.2f} ({limited - base:+.2f})"])
        head = ["tail's MACs kept", *(f"{criterion}, {weights}" for criterion, weights in SHOWN)]
        parts.append(f"{name}, subgraphs:\n\n" + table(head, accuracies(within, base)))
    for name in networks("cuts_"):
        parts.append(
            f"{name}, half of the tail's MACs, cut by cut (in brackets: over the base model limited to the cluster's "
            "classes); channels removed by the criterion residual, or `low-rank`, where none is, and `low-rank-bundle` "
            "in a bundle as `sinf build` makes it:\n\n" + by_cut(read(f"cuts_{name}.csv"))
        )
    head = ["network", "paper: gain over the base", "base, all classes", "base, limited to the cluster"]
    text = (
        "Accuracy in % when the true cluster is given, over all clusters; in brackets what it gains over the base "
        "model that chooses among all classes. How the paper's base model is limited is not said in what was at hand: "
        "ours gains that much when its answer is limited to the cluster's classes, which needs no subgraph.\n\n"
        + "\n\n".join([table(head, claims), *parts])
    )
    return Section("Accuracy within clusters", text)


if __name__ == "__main__":
    print(section().text)
