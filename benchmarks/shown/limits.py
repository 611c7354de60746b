"""What a limit of the loss gets, by every method; and all networks that were made for it."""

from __future__ import annotations

from shown.cells import MISSING, Row, bounds, machine_of, markdown, percent, points_of, read

PAPER = "VGG16 on CIFAR-100 in the paper: 29 % at 3.75 points"
METHODS = {
    "static": "one network, fewer channels",
    "static-low-rank": "one network, low rank, by MACs",
    "static-low-rank-time": "one network, low rank, by time",
    "cascade": "a cascade",
    "semantic": "routed clusters",
}


def by(row: Row) -> str:
    name = METHODS.get(row["method"], row["method"])
    return name if not row["confidence"] else f"{name}, `--confidence {row['confidence']}`"


def of_the_headline() -> list[Row]:
    """By network, engine, limit and method."""
    rows = [row for model in ("vgg16", "resnet56") for row in read(f"headline_{model}_cpu.csv")]
    networks, engines = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "engine"))
    order = [*METHODS]
    return sorted(
        rows,
        key=lambda r: (networks.index(r["model"]), engines.index(r["engine"]), float(r["asked"]), bool(r["confidence"]),
                       order.index(r["method"])),
    )  # fmt: skip


def headline() -> str:
    """What a user gets who types a limit, by one network and by a cascade, of one run; "cascades" has their plans, and
    "headline details" what was measured before."""
    ways = ("static-low-rank-time", "cascade")
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in read("cascade_vgg16_cpu.csv"):
        sure = f", `--confidence {row['confidence']}`" if row["confidence"] else ""
        cell = "no plan keeps it"
        if row["plan"] != "none":
            lost = f"{points_of(row['loss'])} ({bounds(row, 'loss', points_of)})"
            cell = f"**{percent(row['time_saved'])}** at {lost}"
        key = (f"{row['model']}, {row['engine']}", f"{row['asked']} points{sure}")
        found.setdefault(key, {})[row["method"]] = cell
    head = ("CIFAR-100, batch 1, one thread", "asked", *(f"time saved by {METHODS[way]}" for way in ways))
    lines = [[*key, *(cells.get(way, "") for way in ways)] for key, cells in found.items()]
    table = markdown(head, lines) if lines else MISSING
    return f"{table}\n\n(Loss of top-1 in points, with its 95 % interval. {PAPER}.)"


def cascades() -> str:
    """Cascades beside one smaller network, of one run."""
    lines = []
    for row in read("cascade_vgg16_cpu.csv"):
        what = [row["engine"], row["asked"], by(row)]
        if row["plan"] == "none":
            lines.append([*what, "no plan keeps it", "", "", "", ""])
            continue
        lost, saved = f"{points_of(row['loss'])} ({bounds(row, 'loss', points_of)})", percent(row["time_saved"])
        lines.append([*what, row["plan"], lost, percent(row["fallback"]), f"{saved} ({bounds(row, 'time_saved')})",
                      *machine_of(row)[1:]])  # fmt: skip
    head = ("VGG16, engine", "asked", "by", "plan", "loss", "full tail", "time saved", "load, cores")
    return markdown(head, lines) if lines else MISSING


KINDS = {
    "static-low-rank-time": "one network",
    "cascade": "a cascade",
    "semantic-ranks": "routes to given clusters",
    "semantic-ranks-found": "routes to found clusters",
}


def head_to_head(model: str) -> str:
    """Kinds of inference by the limit that was asked for, all by ranks, of one run."""
    cells: dict[str, dict[str, str]] = {}
    rows = read(f"head_to_head_{model}_cpu.csv")
    for row in rows:
        cell = "no plan keeps it"
        if row["plan"] != "none":
            lost = f"{points_of(row['loss'])} ({bounds(row, 'loss', points_of)})"
            cell = f"**{percent(row['time_saved'])}** at {lost}"
            if float(row["fallback"] or 0):
                cell += f", full tail for {percent(row['fallback'])}"
        cells.setdefault(row["asked"], {})[row["method"]] = cell
    head = (f"{model}, {rows[0]['engine']}, asked" if rows else "asked", *KINDS.values())
    lines = [[f"{asked} points", *(by.get(kind, "") for kind in KINDS)] for asked, by in cells.items()]
    return markdown(head, lines) if lines else MISSING


def deferral(model: str) -> str:
    """By what a cascade tells which images go to the full tail."""
    shares: dict[str, list[str]] = {}
    rows = read(f"deferral_{model}.csv")
    for row in rows:
        shares.setdefault(row["score"], []).append(percent(row["deferred"]))
    limits = dict.fromkeys(row["differ_at_most"] for row in rows)
    head = (f"{model}, deferred where answers differ in", *(percent(limit) for limit in limits))
    return markdown(head, [[score, *cells] for score, cells in shares.items()]) if rows else MISSING


def headline_details() -> str:
    """The same rows: which plan was picked, by what, and on what machine it was timed."""
    lines = [
        [f"{row['model']}, {row['engine']}", row["asked"], by(row), row["plan"], points_of(row["calibration_loss"]),
         points_of(row["loss"]), percent(row["macs_saved"]), percent(row["fallback"]), percent(row["time_saved"]),
         *machine_of(row)]
        for row in of_the_headline() if row["plan"] != "none"
    ]  # fmt: skip
    head = ("network", "asked", "by", "plan", "loss, `test[:50%]`", "loss, `test[50%:]`", "MACs saved", "full tail",
            "time saved", "base, ms", "load, cores")  # fmt: skip
    return markdown(head, lines) if lines else MISSING


def picked(rows: list[Row], limit: float) -> Row | None:
    """The row that a limit (points) picks, by what it does to test[:50%] and by its predicted cost alone; rows of a
    routed network are those of the limits that were asked for."""
    there = [row for row in rows if row.get("cost") and row.get("calibration_loss")]
    within = [
        row for row in there
        if (float(row["limit"]) == limit if row["limit"] else float(row["calibration_loss"]) <= limit)
    ]  # fmt: skip
    return min(within, key=lambda row: float(row["cost"]), default=None)


def compared(model: str) -> str:
    rows = read(f"tradeoff_{model}_cpu.csv")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = []
    for limit in (0.5, 1.0, 2.0, 3.0):
        cells = []
        for method in methods:
            row = picked([r for r in rows if r["method"] == method], limit)
            cells.append("none" if row is None else f"{percent(row['time_saved'])} (lost {float(row['loss']):.2f})")
        lines.append([f"{limit:g} points", *cells])
    return markdown(["asked", *methods], lines) if any(row.get("cost") for row in rows) else MISSING


def fastest(rows: list[Row], limit: float) -> Row | None:
    """The row that a limit (points) picks: by what it does to test[:50%], and by its time."""
    within = [row for row in rows if float(row["calibration_loss"]) <= limit]
    return max(within, key=lambda row: float(row["time_saved"]), default=None)


def curve(model: str) -> str:
    """One network for all classes by every compressor, of one run, the slowest first; what a limit picks is said."""
    rows = read(f"curve_{model}_cpu.csv")
    picks: dict[str, list[str]] = {}
    for limit in ("0.5", "1", "2"):
        row = fastest(rows, float(limit))
        if row is not None:
            picks.setdefault(row["made"], []).append(limit)
    lines = []
    for row in sorted(rows, key=lambda row: float(row["time_saved"])):
        lost = f"{points_of(row['loss'])} ({bounds(row, 'loss', points_of)})"
        saved = f"{percent(row['time_saved'])} ({bounds(row, 'time_saved')})"
        asked = ", ".join(picks.get(row["made"], []))
        lines.append([row["made"], asked and f"**{asked}**", points_of(row["calibration_loss"]), lost, row["calls"],
                      percent(row["macs_saved"]), saved, *machine_of(row)])  # fmt: skip
    head = ("budgets", "picked for a limit of", "loss, `test[:50%]`", "loss, `test[50%:]`", "calls of layers",
            "MACs saved", "time saved", "base, ms", "load, cores")  # fmt: skip
    return markdown(head, lines) if lines else MISSING


def of_branches(model: str) -> str:
    """Nats that are lost for a share of the MACs: branches that become less, beside ranks."""
    rows = read(f"branches_{model}.csv")
    ways = list(dict.fromkeys(row["by"] for row in rows))
    cells = {(row["macs_saved"], row["by"]): f"{float(row['nats']):.3f} ({row['count']})" for row in rows}
    lines = [
        [f"{100 * float(share):.0f} %", *(cells.get((share, way), "out of reach") for way in ways)]
        for share in sorted({row["macs_saved"] for row in rows}, key=float)
    ]
    return markdown(("MACs saved", *ways), lines) if lines else MISSING


def forms(model: str) -> str:
    """Nats that all layers lose together, each on its own, at the same share of its MACs."""
    lines = [
        [percent(row["macs"]), *(f"{float(row[form]):.3f}" for form in ("channels", "separable", "between")),
         f"{row['won']} of {row['layers']}"]
        for row in read(f"forms_{model}.csv")
    ]  # fmt: skip
    head = ("of a layer's MACs", "through channels", "separable", "between channels", "loses least there")
    return markdown(head, lines) if lines else MISSING


def points(model: str) -> str:
    budgets = "whole, extractor, full tail, subgraph"
    head = ("method", "criterion", budgets, "asked", "loss, `test[:50%]`", "loss", "95 %", "MACs saved", "time saved",
            "95 %", "fallback", "base, ms", "load, cores")  # fmt: skip
    lines = []
    for row in read(f"tradeoff_{model}_cpu.csv"):
        budgets = ", ".join(row[key] for key in ("whole", "extractor", "full_tail", "subgraph") if row.get(key))
        chosen_by = points_of(row["calibration_loss"]) if row.get("calibration_loss") else ""
        lines.append(
            [row["method"], row["criterion"], budgets, row["limit"], chosen_by, points_of(row["loss"]),
             bounds(row, "loss", points_of), percent(row["macs_saved"]), percent(row["time_saved"]),
             bounds(row, "time_saved"), percent(row["fallback"]), *machine_of(row)]
        )  # fmt: skip
    return markdown(head, lines) if lines else MISSING
