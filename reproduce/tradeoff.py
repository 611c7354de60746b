"""(i) Time saved against loss, per network: python reproduce/tradeoff.py"""

from __future__ import annotations

from common import Row, Section, missing, networks, number, published, read, table

ROUTED = ("semantic", "semantic-wholeextractor")


def most_saved(rows: list[Row], loss: float) -> Row | None:
    """The cheapest row, as predicted, among those that lose no more on test[:50%]."""
    within = [r for r in rows if r.get("cost") and float(r["calibration_loss"]) <= loss]
    return min(within, key=lambda r: float(r["cost"]), default=None)


def least_lost(rows: list[Row], saved: float) -> Row | None:
    """The row with the least loss on test[:50%] among those that save no less time."""
    within = [r for r in rows if r.get("cost") and float(r["time_saved"]) >= saved]
    return min(within, key=lambda r: float(r["calibration_loss"]), default=None)


def cell(row: Row | None) -> str:
    return "none" if row is None else f"{100 * float(row['time_saved']):.1f} % at {float(row['loss']):.2f}"


def section() -> Section:
    names = list(dict.fromkeys([r["network"] for r in published("tradeoff")] + networks("tradeoff_")))
    lines = []
    for name in names:
        saved, loss = number("tradeoff", name, "time saved"), number("tradeoff", name, "loss")
        paper = "not in the paper" if saved is None or loss is None else f"{saved:.0f} % at {loss:.2f}"
        rows = read(f"tradeoff_{name}_cpu.csv")
        for label, methods in (("routed", ROUTED), ("static", ("static",))):
            mine = [row for row in rows if row["method"] in methods]
            if not mine:
                ours = ["not measured" if rows else missing(name)] * 2
            else:
                limit, target = (3.75 if loss is None else loss), (0.29 if saved is None else saved / 100)
                ours = [cell(most_saved(mine, limit)), cell(least_lost(mine, target))]
            lines.append([name, label, paper, *ours])
    head = [
        "network",
        "ours",
        "paper: time saved at loss",
        "most time saved within that loss",
        "least loss for that time",
    ]
    text = (
        "Loss in points of top-1 on CIFAR-100; time of a batch of one on one thread of a processor, base and ours in "
        "turns "
        "(the paper's hardware, base models and timing are others). Rows are picked by what they do to `test[:50%]`, "
        "and what they lose on `test[50%:]` is shown. For networks that the paper lacks, VGG16's "
        "figures are "
        "the limits. Plots: [results.md](results.md).\n\n" + table(head, lines)
    )  # fmt: skip
    return Section("Time saved against loss", text)


if __name__ == "__main__":
    print(section().text)
