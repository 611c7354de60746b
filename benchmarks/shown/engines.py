"""What a bundle costs: to make, in every engine, stage by stage, and exported."""

from __future__ import annotations

from shown.cells import MISSING, bounds, machine_of, markdown, percent, points_of, read


def resources() -> str:
    lines = []
    for row in read("resources_vgg16_cpu.csv"):
        seconds = f"{float(row['seconds']):.3g}" if row["seconds"] else ""
        size = f"{float(row['bytes']) / 1e6:.1f}" if row["bytes"] else ""
        share = f"{float(row['of_base']):.2f}" if row["of_base"] else ""
        lines.append([row["what"], seconds, size, share, machine_of(row)[1] if row["seconds"] else ""])
    head = ("what", "seconds", "MB", "of the base model's parameters", "load, cores")
    return markdown(head, lines) if lines else MISSING


def engines(model: str) -> str:
    rows = [row for row in read(f"engines_{model}_cpu.csv") if row["what"] == "time"]
    if not rows:
        return MISSING
    head = ("engine", "precision", "batch", "base, ms", "bundle, ms", "time saved", "95 %", "of the MACs saved", "loss",
            "load, cores")  # fmt: skip
    lines = []
    for row in rows:
        base, load = machine_of(row)
        of_macs = f"{float(row['of_macs_saved']):.2f}" if row["of_macs_saved"] else ""
        lines.append(
            [row["engine"], row["precision"], row["batch"], base, f"{float(row['ms']):.2f}",
             f"**{percent(row['time_saved'])}**", bounds(row, "time_saved"), of_macs, points_of(row["loss"]), load]
        )  # fmt: skip
    about = f"{rows[0]['device']}, one thread, {percent(rows[0]['macs_saved'])} of the MACs saved."
    return f"{about}\n\n{markdown(head, lines)}"


#: Columns of the results, and what they are called in a page.
STAGES = {"extractor": "extractor", "predictor": "predictor", "subgraph": "subgraph", "deferral": "deferral head",
          "full_tail": "full tail", "glue": "glue"}  # fmt: skip


def stages(model: str) -> str:
    rows = [row for row in read(f"engines_{model}_cpu.csv") if row["what"] == "stages"]
    head = ("engine", "precision", "base model", *STAGES.values(), "routing, of the base",
            "load, cores")  # fmt: skip
    lines = [
        [row["engine"], row["precision"], *(f"{float(row[name]):.2f}" for name in ("base_ms", *STAGES)),
         percent(row["overhead"]), machine_of(row)[1]]
        for row in rows
    ]  # fmt: skip
    return markdown(head, lines) if lines else MISSING


def exports(model: str) -> str:
    rows = [row for row in read(f"engines_{model}_cpu.csv") if row["what"] in ("file", "answers", "edge")]
    lines = [
        [
            f"{row['what']}: {row['name']}",
            f"{float(row['bytes']) / 1e6:.1f}" if row["bytes"] else "",
            f"{float(row['of_base']):.2f}" if row["of_base"] else "",
            f"{float(row['seconds']):.2f}" if row["seconds"] else "",
            row["count"],
            row["difference"],
        ]
        for row in rows
    ]
    head = ("what", "MB", "of the base model's file", "seconds", "images", "largest difference")
    return markdown(head, lines) if lines else MISSING
