"""(ii) DCS against other criteria at equal MACs, without fine-tuning: python reproduce/criteria.py"""

from __future__ import annotations

from itertools import product

from common import COLOURS, OTHER, Row, Section, kept, networks, number, panels, read, save, shown, table

METHODS = {"static": "all classes", "semantic-truecluster": "per cluster, true cluster given"}
WEIGHTS = ("plain", "recalibrated", "reconstructed")
ALLOCATIONS = {
    "uniform": "same ratio in every layer",
    "budget": "by the criterion's own scores",
    "clusters": "by the criterion's own scores, one budget for all clusters",
}
NOISE = 1.0  # points
#: By treatment of the weights, the criterion that is taken where none is named (sinf.criteria.best_criterion).
OURS = {"plain": "joint", "recalibrated": "joint", "reconstructed": "residual"}
CELL = ("network", "method", "weights", "budget")
#: Scores of how well a channel tells classes apart, as DCS is one.
DISCRIMINATIVE = ("tvs", "fisher")


def mean_loss(rows: list[Row], **wanted: str) -> float | None:
    """Over seeds."""
    found = [float(r["loss"]) for r in rows if all(r[key] == value for key, value in wanted.items())]
    return sum(found) / len(found) if found else None


def criteria_of(rows: list[Row]) -> list[str]:
    found = dict.fromkeys(row["criterion"] for row in rows)
    return [name for name in COLOURS if name in found] + sorted(name for name in found if name not in COLOURS)


def losses(rows: list[Row], method: str, allocation: str, weights: str) -> str:
    """Criteria down, the share of MACs that stays across."""
    mine = [r for r in rows if (r["method"], r["allocation"], r["weights"]) == (method, allocation, weights)]
    budgets = sorted({r["budget"] for r in mine}, key=float, reverse=True)
    found = {(name, b): mean_loss(mine, criterion=name, budget=b) for name in criteria_of(mine) for b in budgets}
    best = {b: min(loss for (_, at), loss in found.items() if loss is not None and at == b) for b in budgets}
    lines = []
    for name in criteria_of(mine):
        cells = []
        for b in budgets:
            loss = found[name, b]
            text = "" if loss is None else f"{loss:.1f}"
            cells.append(f"**{text}**" if loss is not None and loss <= best[b] else text)
        lines.append([name, *cells])
    return table(["criterion", *(kept([r for r in mine if r["budget"] == b]) for b in budgets)], lines)


def draw(name: str, rows: list[Row], method: str) -> str:
    figure, axes = panels(3)
    for axis, weights in zip(axes, WEIGHTS, strict=True):
        mine = [r for r in rows if (r["method"], r["weights"], r["allocation"]) == (method, weights, "uniform")]
        for criterion in reversed(criteria_of(mine)):
            points: dict[float, list[float]] = {}
            for r in mine:
                if r["criterion"] == criterion:
                    points.setdefault(100 * float(r["macs_saved"]), []).append(float(r["loss"]))
            line = sorted((x, sum(y) / len(y)) for x, y in points.items())
            known = criterion in COLOURS
            axis.plot(
                *zip(*line, strict=True), "o-", markersize=4, color=COLOURS.get(criterion, OTHER),
                label=criterion if known else None, zorder=2 if known else 1,
            )  # fmt: skip
        axis.set_title(weights, loc="left")
        axis.set_xlabel("MACs saved, %")
    axes[0].set_ylabel("loss of top-1, points")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{name}, {METHODS[method]}, the same ratio in every layer", x=0.01, ha="left")
    return save(figure, f"criteria_{name}_{method}.png")


def against(rows: list[Row], others: tuple[str, ...] | None) -> tuple[float, float, int] | None:
    """DCS's gain over the best of the others, in points: most, mean, and over how many settings."""
    gains = []
    settings = {tuple(r[k] for k in ("method", "allocation", "budget", "weights", "seed")) for r in rows}
    for setting in settings:
        here = {
            r["criterion"]: float(r["loss"]) for r in rows
            if tuple(r[k] for k in ("method", "allocation", "budget", "weights", "seed")) == setting
        }  # fmt: skip
        rivals = [loss for c, loss in here.items() if (c in others if others else c not in ("dcs", "random"))]
        if "dcs" in here and rivals:
            gains.append(min(rivals) - here["dcs"])
    return (max(gains), sum(gains) / len(gains), len(gains)) if gains else None


def over_all(rows: list[Row]) -> str:
    """Each criterion beside ours, the one that is taken where none is named, over all settings in which every criterion
    was measured: rows are of the same ratio in every layer, means over seeds."""
    cells: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for r in rows:
        if r["allocation"] == "uniform":
            cells.setdefault(tuple(r[key] for key in CELL), {}).setdefault(r["criterion"], []).append(float(r["loss"]))
    names = {name for found in cells.values() for name in found}
    whole = {cell: {n: sum(v) / len(v) for n, v in found.items()} for cell, found in cells.items()
             if found.keys() == names}  # fmt: skip
    if not whole or not names.issuperset(OURS.values()):
        return ""
    ours = {cell: found[OURS[cell[2]]] for cell, found in whole.items()}
    lines = [("ours", sum(ours.values()) / len(ours), "", "")]
    for name in names:
        apart = [found[name] - ours[cell] for cell, found in whole.items()]
        mean = sum(found[name] for found in whole.values()) / len(whole)
        lines.append((name, mean, str(sum(a > NOISE for a in apart)), str(sum(a < -NOISE for a in apart))))
    head = ["criterion", "mean loss", "ours loses less", "ours loses more"]
    body = [[name, f"{mean:.2f}", less, more] for name, mean, less, more in sorted(lines, key=lambda line: line[1])]
    return (
        f"### All settings together\n\nMean loss in points over {len(whole)} settings (networks, budgets of "
        "90 to 10 %, for all classes and per cluster, three treatments of the weights; the same ratio in every layer), "
        "and in how many of them ours differs by more than a point, which is what chance makes of 2,000 images. Ours "
        "is `residual` where weights are reconstructed and `joint` where they are not:\n\n" + table(head, body)
    )


def section() -> Section:
    parts, pictures = [], []
    summary = over_all([{**r, "network": name} for name in networks("criteria_") for r in read(f"criteria_{name}.csv")])
    if summary:
        parts.append(summary)
    for name in networks("criteria_"):
        rows = read(f"criteria_{name}.csv")
        parts.append(f"### {name}")
        claimed = number("criteria", name, "dcs over other discriminative scores")
        compared = []
        for label, others in (("other discriminative scores", DISCRIMINATIVE), ("the best of all others", None)):
            found = against(rows, others)
            compared.append(
                [label, shown(claimed) if others else "", *(
                    ("not measured",) * 3 if found is None else (f"{found[0]:+.2f}", f"{found[1]:+.2f}", str(found[2]))
                )]
            )  # fmt: skip
        head = ["DCS's gain over", "paper, up to", "ours, at most", "ours, mean", "settings"]
        parts.append(table(head, compared))
        for method, title in METHODS.items():
            if not any(r["method"] == method for r in rows):
                continue
            pictures.append(draw(name, rows, method))
            parts.append(f"![{name}, {title}]({pictures[-1]})")
            for (allocation, how), weights in product(ALLOCATIONS.items(), reversed(WEIGHTS)):
                if any((r["method"], r["allocation"], r["weights"]) == (method, allocation, weights) for r in rows):
                    parts.append(f"Loss in points, {title}, {how}, {weights}, by the share of MACs that stays:")
                    parts.append(losses(rows, method, allocation, weights))
    intro = (
        "Equal MACs, nothing trained. What is lost is against the base model on the same images (per cluster: the "
        "base model "
        "limited to the cluster's classes). `plain` keeps weights and statistics as they are; bold is the best of a "
        "column. "
        "Means over seeds where there are several; with 2,000 test images a difference of a point between two "
        "criteria is noise."
    )  # fmt: skip
    return Section("DCS against other criteria", "\n\n".join([intro, *parts]), tuple(pictures))


if __name__ == "__main__":
    print(section().text)
