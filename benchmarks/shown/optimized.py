"""What `sinf optimize` delivers."""

from __future__ import annotations

from shown.cells import MISSING, Row, bounds, markdown, percent, points_of, read

OPTIMIZED = ("vgg16", "resnet56", "mobilenetv3_small")
FIRST = ("vgg16", "onnxruntime", "1")


def optimized(first: bool = True) -> str:
    """What a user gets who types a limit of the loss, beside what else the user would run; a table of each network,
    engine, batch and set of precisions, whose rows were timed in one run. The ``first`` of these are the README's."""
    parts = []
    tables: dict[tuple[str, ...], list[Row]] = {}
    for model in OPTIMIZED:
        for row in read(f"optimize_{model}_cpu.csv"):
            where = (model, row["engine"], row["batch"])
            if (where == FIRST) == first:
                tables.setdefault((*where, row["precisions"]), []).append(row)
    for (model, engine, batch, _), rows in tables.items():
        ms = {row["what"]: float(row["ms"]) for row in rows if row["what"] != "optimize" and row["ms"]}
        own, in_int8 = ms.get("torch, as loaded"), ms.get("base int8")
        lines = [["base model", "", f"{float(rows[0]['base_ms']):.2f}", times_less(own, rows[0]["base_ms"]), "", ""]]
        for row in rows:
            if not row["ms"]:
                lines.append([asked_of(row), row["chosen"], "", "", "", ""])
                continue
            lost = f"{points_of(row['loss'])} ({bounds(row, 'loss', points_of)})"
            what = OTHERWISE.get(row["what"]) or f"**{asked_of(row)}**: {row['chosen']}, {row['precision']}"
            beside = percent(str(1 - float(row["ms"]) / in_int8)) if in_int8 and row["precision"] == "int8" else ""
            saved = f"{percent(row['time_saved'])} ({bounds(row, 'time_saved')})"
            saved = "" if row["what"].startswith("torch") else saved
            lines.append([what, lost, f"{float(row['ms']):.2f}", times_less(own, row["ms"]), saved, beside])
        head = (f"{model}, {engine}, batch {batch}, one thread", "points lost", "ms", "times less than as loaded",
                "less than f32 there", "less than int8 there")  # fmt: skip
        load = max((float(row["load"]) for row in rows if row["load"]), default=None)
        said = "" if load is None else f"\n\n(95 % intervals. Other processes took {load:.2f} of a core at most.)"
        parts.append(markdown(head, lines) + said)
    return "\n\n".join(parts) if parts else MISSING


def first_line() -> str:
    """What the README begins with: the row that is promised with a confidence, of those that may be in int8."""
    rows = [row for row in read("optimize_vgg16_cpu.csv") if (row["model"], row["engine"], row["batch"]) == FIRST]
    rows = [row for row in rows if row["precisions"] == "f32 int8"]
    ms = {row["what"]: float(row["ms"]) for row in rows if row["what"] != "optimize"}
    promised = next((row for row in rows if row["confidence"] and row["ms"]), None)
    if promised is None:
        return MISSING
    taken, lost = (
        float(promised["ms"]),
        f"{points_of(promised['loss'])} were lost, {bounds(promised, 'loss', points_of)}",
    )
    return (
        f"VGG16 on CIFAR-100, one image at a time on one core: **{ms['torch, as loaded'] / taken:.0f} times less time "
        f"than the model takes in PyTorch, {100 * (1 - taken / ms['base int8']):.0f} % less than in int8 by ONNX "
        f"Runtime's quantiser**, for at most {promised['asked']} points of top-1, promised with confidence "
        f"{promised['confidence']} (on other images {lost})."
    )


OTHERWISE = {
    "torch, as loaded": "your model as loaded, torch", "torch, compiled": "your model, torch.compile",
    "base int8": "base model, int8 by the engine's quantiser, weights rounded as sinf rounds them",
}  # fmt: skip


def asked_of(row: Row) -> str:
    sure = f", `--confidence {row['confidence']}`" if row["confidence"] else ""
    points = "point" if row["asked"] == "1" else "points"
    return f"{row['asked']} {points}{sure}, {' or '.join(row['precisions'].split())}"


def times_less(own: float | None, ms: str) -> str:
    return "" if own is None else f"{own / float(ms):.1f}"
