"""(ii) DCS against other criteria at equal MACs, without fine-tuning: python reproduce/criteria.py"""

from __future__ import annotations

from itertools import product

from common import COLOURS, OTHER, Row, Section, kept, networks, number, panels, read, save, shown, table

METHODS = {"static": "all classes", "semantic-truecluster": "per cluster, true cluster given"}
WEIGHTS = ("plain", "recalibrated", "reconstructed")
ALLOCATIONS = {"uniform": "same ratio in every layer", "budget": "by the criterion's own scores"}
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


def section() -> Section:
    parts, pictures = [], []
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
