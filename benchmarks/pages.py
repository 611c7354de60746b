"""Write the tables of README.md and docs from benchmarks/results: python benchmarks/pages.py"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean

HERE = Path(__file__).parent
RESULTS = HERE / "results"
_NAMES = ("README.md", "docs/results.md", "docs/engines.md", "docs/dynamic.md", "docs/trust.md")
PAGES = tuple(HERE.parent / name for name in _NAMES)
PAPER = "VGG16 on CIFAR-100 in the paper: 29 % at 3.75 points"
MISSING = "Not measured yet."
IDLE = 0.3  # cores that others may take, as in table.py
METHODS = {
    "static": "one network, fewer channels",
    "static-low-rank": "one network, low rank, by MACs",
    "static-low-rank-time": "one network, low rank, by time",
    "cascade": "a cascade",
    "semantic": "routed clusters",
}
Row = dict[str, str]


def read(name: str) -> list[Row]:
    path = RESULTS / name
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def markdown(head: Iterable[str], rows: Iterable[list[str]]) -> str:
    head = list(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def percent(value: str) -> str:
    return f"{100 * float(value):.1f} %"


def bounds(row: Row, name: str, show: Callable[[str], str] = percent) -> str:
    """The 95 % interval of a column, nothing where there is none."""
    low, high = row.get(f"{name}_low", ""), row.get(f"{name}_high", "")
    return f"{show(low)} .. {show(high)}" if low and high else ""


def points_of(value: str) -> str:
    return f"{float(value):.2f}"


def machine_of(row: Row) -> list[str]:
    """How long the base model took, and what other processes took meanwhile, in cores."""
    base = f"{float(row['base_ms']):.2f}" if row.get("base_ms") else "not recorded"
    if not row.get("load"):
        return [base, "not recorded"]
    return [base, f"{float(row['load']):.2f}" + (" (loaded)" if float(row["load"]) > IDLE else "")]


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


OPTIMIZED = ("vgg16", "resnet56")
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


OTHERWISE = {
    "torch, as loaded": "your model as loaded, torch", "torch, compiled": "your model, torch.compile",
    "base int8": "base model, int8 by the engine's quantiser, weights rounded as sinf rounds them",
}  # fmt: skip


def asked_of(row: Row) -> str:
    sure = f", `--confidence {row['confidence']}`" if row["confidence"] else ""
    return f"{row['asked']} points{sure}, {' or '.join(row['precisions'].split())}"


def times_less(own: float | None, ms: str) -> str:
    return "" if own is None else f"{own / float(ms):.1f}"


def budgets() -> str:
    """Budgets of time beside the time that whole networks take."""
    lines = []
    for model in OPTIMIZED:
        for row in read(f"budgets_{model}_cpu.csv"):
            measured = f"{percent(row['measured'])} ({bounds(row, 'measured', percent)})"
            where = f"{row['engine']} {row['precision']}"
            lines.append([model, where, row["method"], percent(row["asked"]), measured, f"{float(row['base_ms']):.2f}"])
    head = ("network", "where", "method", "time asked for", "time measured", "base model, ms")
    return markdown(head, lines) if lines else MISSING


def newcomer() -> str:
    """From an empty environment to a faster network, three commands."""
    lines = [
        [f"`{row['command']}`", f"{float(row['seconds']):.0f}", machine_of(row)[1]] for row in read("newcomer_cpu.csv")
    ]
    return markdown(("command", "seconds", "load, cores"), lines) if lines else MISSING


def elsewhere() -> str:
    """Networks from elsewhere: what commands took, and what they delivered."""
    lines = [
        [row["network"] + ("" if row["trained"] == "True" else ", random"), row["command"],
         f"{float(row['seconds']):.0f}", f"{float(row['processor_seconds']):.0f}",
         f"{float(row['peak_bytes']) / 1e9:.1f}", outcome(row), machine_of(row)[1]]
        for row in read("foreign_cpu.csv") if row["network"] != "vgg16"
    ]  # fmt: skip
    head = ("network, weights", "command", "seconds", "of a processor", "GB at most", "what came of it", "load, cores")
    return markdown(head, lines) if lines else MISSING


def outcome(row: Row) -> str:
    """What a command delivered, or why it did not; no time saved whose load nobody recorded."""
    if row["code"] == "3":
        return "nothing is written: " + row["says"].split("(got ", 1)[-1].rsplit("): ", 1)[0]
    if row["code"] != "0":
        return f"exit code {row['code']}"
    return "written" + (
        f", {percent(row['time_saved'])} of the time saved" if row["time_saved"] and row["load"] else ""
    )


def compact() -> str:
    """The trained compact network beside VGG16: the same commands, limit and machine."""
    lines = []
    for row in read("foreign_cpu.csv"):
        if row["network"] in ("mobilenetv3-small", "vgg16") and row["command"] in ("prune", "build"):
            lost = points_of(row["loss"]) if row["loss"] else ""
            expected = points_of(row["expected_loss"]) if row["expected_loss"] else ""
            saved = percent(row["macs_saved"]) if row["macs_saved"] else ""
            lines.append([row["command"], row["network"], saved, expected, lost, outcome(row)])
    lines.sort(key=lambda cells: (cells[0] != "prune", cells[1]))
    head = ("`--max-loss 1`", "network", "MACs saved", "loss, expected", "on test images", "what came of it")
    return markdown(head, lines) if lines else MISSING


def as_saved() -> str:
    """What was printed of a pruned network, and what its folder gives in a process without sinf."""
    lines = [
        [f"{row['network']}, batch {row['batch']}", f"{float(row['printed_own_ms']):.2f}",
         f"{float(row['printed_ms']):.2f}", percent(row["printed_saved"]), f"{float(row['own_ms']):.2f}",
         f"{float(row['ms']):.2f}", f"{percent(row['time_saved'])} ({bounds(row, 'time_saved')})", *machine_of(row)[1:]]
        for row in read("as_saved_cpu.csv")
    ]  # fmt: skip
    head = ("network", "printed: your model, ms", "pruned, ms", "less time", "`load.py` without sinf: your model, ms",
            "pruned, ms", "less time", "load, cores")  # fmt: skip
    return markdown(head, lines) if lines else MISSING


def compact_losses() -> str:
    """Low rank beside channels at equal MACs, on a compact network."""
    rows = read("compact_losses.csv")
    budgets = list(dict.fromkeys(row["macs"] for row in rows))
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        ours = {row["macs"]: row for row in rows if row["method"] == method}
        cells = [f"{points_of(ours[m]['loss'])} ({bounds(ours[m], 'loss', points_of)}), {percent(ours[m]['differ'])}"
                 if m in ours else "out of reach" for m in budgets]  # fmt: skip
        lines.append([method, *cells])
    head = ("points lost, answers that differ, by", *(f"{100 * float(macs):.0f} % of the MACs" for macs in budgets))
    return markdown(head, lines) if lines else MISSING


def compact_spectra() -> str:
    """What a rank loses of the layers of a compact network, and of VGG16."""
    lines = [
        [f"{row['network']}, {row['kind']}", row["layers"], percent(row["macs"]),
         *(percent(row[name]) if row[name] else "no rank" for name in ("directions", "energy_lost", "effect_lost"))]
        for row in read("compact_spectra.csv") if row["kept"] in ("0.7", "")
    ]  # fmt: skip
    head = ("layers", "how many", "of the MACs", "directions left", "energy lost", "effect on the answer lost")
    return markdown(head, lines) if lines else MISSING


def grouped() -> str:
    """What grouped convolutions are of a network, and what two in the place of each would save."""
    lines = [
        [row["network"], row["channels_a_group"].replace(" ", ", "), percent(row["grouped"]),
         f"{100 * float(row['kept']):.0f} %", percent(row["macs_saved"]), percent(row["time_saved"])]
        for row in read("grouped_cpu.csv")
    ]  # fmt: skip
    head = ("network", "channels a group", "of the MACs", "ranks kept", "MACs saved", "time of these layers saved")
    return markdown(head, lines) if lines else MISSING


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


def dynamic_time() -> str:
    head = ("network", "image", "method", "trained", "engine", "MACs saved", "time saved", "95 %", "base, ms",
            "load, cores")  # fmt: skip
    lines = []
    for row in (row for path in sorted(RESULTS.glob("dynamic_time_*.csv")) for row in read(path.name)):
        saved = [f"{100 * float(row[f'time_saved{end}']):.0f}" for end in ("", "_low", "_high")]
        lines.append(
            [row["model"], f"{row['size']}x{row['size']}", row["method"], "yes" if row["trained"] == "True" else "no",
             row["engine"], percent(row["macs_saved"]), f"{saved[0]} %", f"{saved[1]} .. {saved[2]} %",
             *machine_of(row)]
        )  # fmt: skip
    return markdown(head, lines)


#: ManiDP, CIFAR-10: error of the base model, error of the pruned one in per cent, share of MACs saved.
MANIDP = {"resnet20": (7.78, 7.95, 54.2), "resnet32": (7.34, 7.85, 63.2), "resnet56": (6.30, 6.36, 62.4)}


def dynamic_train() -> str:
    """Networks at the paper's shares of MACs, beside it."""
    head = ("network", "variant", "epochs", "seed", "error, base", "error", "loss", "MACs saved",
            "5th to 95th percentile", "paper (400)")  # fmt: skip
    lines = []
    for row in (row for path in sorted(RESULTS.glob("dynamic_train_*.csv")) for row in read(path.name)):
        if row["variant"] not in ("manidp", "detached"):
            continue
        paper = MANIDP.get(row["model"]) if row["dataset"] == "cifar10" else None
        errors = [percent(str(1 - float(row[key]))) for key in ("base_top1", "top1")]
        spread = " .. ".join(f"{100 * (1 - float(row[key])):.0f}" for key in ("macs_p95", "macs_p5"))
        lines.append(
            [f"{row['model']}, {row['dataset']}", row["variant"], row["epochs"], row["seed"], *errors,
             f"{float(row['loss']):+.2f}", percent(row["macs_saved"]), f"{spread} %",
             "" if paper is None else f"{paper[0]:.2f} -> {paper[1]:.2f} % at {paper[2]} %"]
        )  # fmt: skip
    return markdown(head, lines)


def dynamic_static() -> str:
    """Static networks beside trained gates: sinf prune, without training, of the networks of CIFAR-100."""
    lines = []
    for row in read("dynamic_train_resnet56_cifar100.csv"):
        lines.append(
            [
                row["model"],
                f"gates, {row['variant']}",
                row["epochs"],
                percent(row["macs_saved"]),
                points_of(row["loss"]),
            ]
        )
    for row in read("static_resnet56_cpu.csv"):
        if row["epochs"] == "0" and row["method"] == "static":
            way = "`sinf prune --method ranks`" if row["criterion"].startswith("low-rank") else "`sinf prune`"
            lines.append([row["model"], way, "0", percent(row["macs_saved"]), points_of(row["loss"])])
    return markdown(("network", "by", "epochs of training", "MACs saved", "loss"), lines)


def dynamic_curve() -> str:
    """The longest training of ResNet-20, epoch by epoch; thresholds are still those of the training."""
    rows = [row for row in read("dynamic_curve_resnet20_cifar10.csv") if row["variant"] == "manidp"]
    longest = max((int(row["epochs"]) for row in rows), default=0)
    lines = [
        [row["epoch"], percent(row["macs"]), percent(row["channels"]), f"{float(row['cross_entropy']):.2f}",
         percent(row["top1"]), f"{float(row['seconds']):.0f}"]
        for row in sorted(rows, key=lambda row: int(row["epoch"])) if int(row["epochs"]) == longest
    ]  # fmt: skip
    head = ("epoch", "MACs", "channels", "cross entropy, training", "accuracy, test", "seconds")
    return markdown(head, lines)


def dynamic_ablation() -> str:
    """What each loss, each choice and each baseline does to ResNet-20, at equal MACs and epochs; losses by seed."""
    variants: dict[str, list[dict[str, str]]] = {}
    for row in read("dynamic_train_resnet20_cifar10.csv"):
        if row["epochs"] == "3":
            variants.setdefault(row["variant"], []).append(row)
    lines = []
    for variant, rows in variants.items():
        rows.sort(key=lambda row: int(row["seed"]))
        losses = ", ".join(f"{float(row['loss']):+.2f}" for row in rows)
        saved = fmean(float(row["macs_saved"]) for row in rows)
        spread = fmean(float(row["macs_p95"]) - float(row["macs_p5"]) for row in rows)
        lines.append([variant, losses, percent(str(saved)), f"{100 * spread:.1f} points"])
    return markdown(("variant", "loss", "MACs saved", "MACs of inputs, 5th to 95th percentile"), lines)


def promise() -> str:
    """How often the expected loss was above the limit, in all trials."""
    said = {"simulation": "simulation: {}", "splits": "{}: random halves", "draws": "{}: draws with replacement"}
    lines = []
    for row in read("promise.csv"):
        stated = percent(str(1 - float(row["confidence"]))) if row["confidence"] else "no promise"
        broken = percent(str(int(row["broken"]) / int(row["trials"])))
        full_tail = percent(row["fallback"]) if row["fallback"] else ""
        lines.append([said[row["kind"]].format(row["name"]), f"{float(row['limit']):g} points", stated, broken,
                      row["trials"], full_tail])  # fmt: skip
    head = ("what", "limit", "may break in", "broke in", "trials", "full tail")
    return markdown(head, lines) if lines else MISSING


def promise_of_optimize() -> str:
    """The same of what optimize() delivers."""
    lines = []
    for row in read("promise_of_optimize.csv"):
        stated = percent(str(1 - float(row["confidence"]))) if row["confidence"] else "no promise"
        shares = [percent(str(int(row[key]) / int(row["trials"]))) for key in ("broken", "delivered")]
        faster = percent(row["share"]) if int(row["delivered"]) else ""
        lines.append([row["name"], row["candidates"], f"{float(row['limit']):g}", stated,
                      shares[0], row["trials"], shares[1], faster])  # fmt: skip
    head = ("candidates are", "of them", "limit in points", "may break in", "broke in", "trials", "delivered in",
            "its share of the time")  # fmt: skip
    return markdown(head, lines) if lines else MISSING


def corruption() -> str:
    """What worse images do to what was delivered: a line an image quality, three columns a network."""
    rows = read("corruption_vgg16.csv")
    networks, order = (list(dict.fromkeys(row[key] for row in rows)) for key in ("delivered", "corruption"))
    lines: dict[tuple[str, str], list[str]] = {}
    rows.sort(key=lambda row: (order.index(row["corruption"]), row["strength"], networks.index(row["delivered"])))
    for row in rows:
        key = (row["corruption"], row["strength"])
        what = key[0] if key[1] == "0" else f"{key[0]}, {key[1]}"
        line = lines.setdefault(key, [what, percent(row["base_top1"])])
        lost = f"{points_of(row['loss'])} ({bounds(row, 'loss', points_of)})"
        line += [lost, percent(row["disagreement"]), *([percent(row["deferred"])] if row["deferred"] else [])]
    kinds = {row["delivered"]: row for row in rows}
    head = ["images", "base model right"]
    for name in networks:
        row = kinds[name]
        head += [f"{row['kind']}, {row['precision']}: points lost", "answers differ"]
        head += ["deferred"] if row["deferred"] else []
    return markdown(head, lines.values()) if lines else MISSING


def mutation() -> str:
    """What share of mutants the tests of a module notice, before and after this work."""
    rows = {(row["module"], row["when"]): row for row in read("mutation.csv")}
    lines = []
    for module in dict.fromkeys(module for module, _ in rows):
        cells = [f"`{module}`"]
        for when in ("before", "after"):
            row = rows.get((module, when))
            cells += ["", ""] if row is None else [row["mutants"], percent(row["share"])]
        lines.append(cells)
    head = ("module", "mutants before", "killed", "mutants after", "killed")
    return markdown(head, lines) if lines else MISSING


TABLES: dict[str, Callable[[], str]] = {
    "optimized": optimized,
    "optimized elsewhere": lambda: optimized(False),
    "budgets": budgets,
    "newcomer": newcomer,
    "elsewhere": elsewhere,
    "compact": compact,
    "as saved": as_saved,
    "compact losses": compact_losses,
    "compact spectra": compact_spectra,
    "grouped": grouped,
    "headline": headline,
    "headline details": headline_details,
    "cascades": cascades,
    "head to head vgg16": lambda: head_to_head("vgg16"),
    "curve vgg16": lambda: curve("vgg16"),
    "curve resnet56": lambda: curve("resnet56"),
    "branches resnet56": lambda: of_branches("resnet56"),
    "forms vgg16": lambda: forms("vgg16"),
    "compared vgg16": lambda: compared("vgg16"),
    "compared resnet56": lambda: compared("resnet56"),
    "points vgg16": lambda: points("vgg16"),
    "points resnet56": lambda: points("resnet56"),
    "resources": resources,
    "engines vgg16": lambda: engines("vgg16"),
    "engines resnet56": lambda: engines("resnet56"),
    "engines resnet18": lambda: engines("torchvision_resnet18"),
    "stages vgg16": lambda: stages("vgg16"),
    "exports vgg16": lambda: exports("vgg16"),
    "dynamic time": dynamic_time,
    "dynamic train": dynamic_train,
    "dynamic static": dynamic_static,
    "dynamic curve": dynamic_curve,
    "dynamic ablation": dynamic_ablation,
    "promise": promise,
    "promise of optimize": promise_of_optimize,
    "corruption": corruption,
    "mutation": mutation,
}


def written(text: str) -> str:
    """A page with its tables as the results say."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, t=table: m[1] + t() + "\n" + m[2], text, flags=re.DOTALL)
    return text


def main() -> None:
    for page in PAGES:
        page.write_text(written(page.read_text()))
        print(page.name)


if __name__ == "__main__":
    main()
