"""Beyond the paper: one smaller network for all classes, trained or not: python reproduce/compaction.py"""

from __future__ import annotations

from common import Row, Section, networks, published, read, table


def line(row: Row) -> list[str]:
    by = "sinf" if row["method"] == "static" else "torch-pruning"
    saved = f"{100 * float(row['time_saved']):.1f} %" if row.get("load") else ""
    return [
        row["model"], f"{by}, {row['criterion']}", f"{float(row['ratio']):.2f}", row["epochs"],
        f"{float(row['loss']):.2f}", saved, f"{float(row['minutes']):.1f}",
    ]  # fmt: skip


def section() -> Section:
    rows = [row for name in networks("static_") for row in read(f"static_{name}_cpu.csv")]
    (known,) = published("compaction")
    head = ["network", "by", "times fewer MACs", "epochs of fine-tuning", "loss", "time saved", "minutes"]
    text = (
        "Loss in points on `test[50%:]`; time of a batch of one, one thread, of rows that "
        "say what else the machine did; minutes are all that it took. `residual` "
        "removes channels by that criterion and reconstructs; `low-rank` writes convolutions as two, "
        "through fewer channels or separable, `low-rank-time` with a budget that counts loading a weight as 32 MACs. "
        "torch-pruning's pruners take the same share of every layer, as is "
        "their default; all are fine-tuned in the same way, "
        f"with the base model as the teacher. Published without fine-tuning: {known['network']} loses {known['value']} "
        f"{known['note']} ({known['source']}).\n\n"
        + (table(head, [line(row) for row in rows]) if rows else "Not measured yet.")
    )
    return Section("One smaller network, without training and with a little", text)


if __name__ == "__main__":
    print(section().text)
