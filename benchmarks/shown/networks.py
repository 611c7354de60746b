"""Networks and machines of others: a newcomer's, those of timm and torchvision, compact ones; and budgets of time."""

from __future__ import annotations

from shown.cells import MISSING, Row, bounds, machine_of, markdown, percent, points_of, read


def budgets() -> str:
    """Budgets of time beside the time that whole networks take."""
    lines = []
    for model in ("vgg16", "resnet56"):
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
