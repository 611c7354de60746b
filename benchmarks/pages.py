"""Write the tables of README.md and docs from benchmarks/results: python benchmarks/pages.py"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

HERE = Path(__file__).parent
PAGES = tuple(HERE.parent / name for name in ("README.md", "docs/results.md", "docs/engines.md", "docs/dynamic.md"))
ROUTED = ("semantic", "semantic-wholeextractor", "static")
PAPER = "VGG16 on CIFAR-100 in the paper: 29 % at 3.75 points"


def read(name: str) -> list[dict[str, str]]:
    path = HERE / "results" / name
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def percent(value: str) -> str:
    return f"{100 * float(value):.1f} %"


def best(rows: list[dict[str, str]], limit: float) -> dict[str, str] | None:
    """The row with most time saved among those whose loss is within a limit."""
    within = [row for row in rows if float(row["loss"]) <= limit]
    return max(within, key=lambda row: float(row["time_saved"]), default=None)


MOST = 2.0  # points that a row of the headline may lose


def headline() -> str:
    lines = ["| CIFAR-100, batch 1, one thread | by | loss of top-1 | time saved | MACs saved |"]
    lines += ["|---|---|---|---|---|"]

    def add(what: str, row: dict[str, str]) -> None:
        saved = percent(row["time_saved"]) + (" (slower)" if float(row["time_saved"]) < 0 else "")
        cells = [what, row["method"], f"{float(row['loss']):.2f} points", f"**{saved}**", percent(row["macs_saved"])]
        lines.append("| " + " | ".join(cells) + " |")

    for model, limits in (("vgg16", (0.5, 1.0, 2.0)), ("resnet56", (1.0, 2.0))):
        plain = [row | {"method": "one network, low rank"} for row in read(f"static_{model}_cpu.csv")
                 if row["criterion"] in ("low-rank", "low-rank-time") and row["epochs"] == "0"]  # fmt: skip
        for row in sorted(plain, key=lambda row: float(row["loss"])):
            if float(row["loss"]) <= MOST:
                add(f"{model}, torch", row)
        rows = [row for row in read(f"tradeoff_{model}_cpu.csv") if row["method"] in ROUTED]
        for limit in limits:
            row = best(rows, limit)
            if row is not None:
                add(f"{model}, torch, most within {limit:g} points", row)
        for row in read(f"engines_{model}_limit1.5_cpu.csv"):
            if row["what"] == "time" and row["engine"] != "torch":
                add(f"{model}, {row['engine']}", row)
    return "\n".join([*lines, "", f"({PAPER}.)"])


def compared(model: str) -> str:
    rows = read(f"tradeoff_{model}_cpu.csv")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = ["| most time saved at a loss of at most | " + " | ".join(methods) + " |"]
    lines += ["|---|" + "---|" * len(methods)]
    for limit in (0.5, 1.0, 2.0, 3.0, 4.0):
        cells = []
        for method in methods:
            row = best([r for r in rows if r["method"] == method], limit)
            cells.append("none" if row is None else f"{percent(row['time_saved'])} (at {float(row['loss']):.2f})")
        lines.append(f"| {limit:g} points | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def points(model: str) -> str:
    budgets = "common, extractor, fallback, subgraph"
    head = ("method", budgets, "limit", "loss", "MACs saved", "time saved", "95 %", "fallback")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in read(f"tradeoff_{model}_cpu.csv"):
        budgets = ", ".join(row[key] for key in ("common", "extractor", "fallback_budget", "subgraph") if row.get(key))
        cells = [row["method"], budgets, row["limit"], f"{float(row['loss']):.2f}"]
        cells += [percent(row["macs_saved"]), percent(row["time_saved"])]
        cells += [f"{percent(row['time_saved_low'])} .. {percent(row['time_saved_high'])}", percent(row["fallback"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def resources() -> str:
    lines = ["| what | seconds | MB | of the base model's parameters |", "|---|---|---|---|"]
    for row in read("resources_vgg16_cpu.csv"):
        seconds = f"{float(row['seconds']):.3g}" if row["seconds"] else ""
        size = f"{float(row['bytes']) / 1e6:.1f}" if row["bytes"] else ""
        share = f"{float(row['of_base']):.2f}" if row["of_base"] else ""
        lines.append(f"| {row['what']} | {seconds} | {size} | {share} |")
    return "\n".join(lines)


def engines(model: str) -> str:
    rows = [row for row in read(f"engines_{model}_cpu.csv") if row["what"] == "time"]
    if not rows:
        return "Not measured yet."
    head = ("engine", "precision", "batch", "base", "ours", "time saved", "95 %", "of the MACs saved", "loss")
    lines = [
        f"{rows[0]['device']}, one thread, {percent(rows[0]['macs_saved'])} of the MACs saved; milliseconds a batch.",
        "",
    ]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [
            row["engine"],
            row["precision"],
            row["batch"],
            f"{float(row['base_ms']):.2f}",
            f"{float(row['ms']):.2f}",
        ]
        cells += [f"**{percent(row['time_saved'])}**"]
        cells += [f"{percent(row['time_saved_low'])} .. {percent(row['time_saved_high'])}"]
        cells += [f"{float(row['of_macs_saved']):.2f}" if row["of_macs_saved"] else "", f"{float(row['loss']):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


STAGES = ("extractor", "predictor", "subgraph", "judge", "full_tail", "glue")


def stages(model: str) -> str:
    rows = [row for row in read(f"engines_{model}_cpu.csv") if row["what"] == "stages"]
    if not rows:
        return "Not measured yet."
    head = ("engine", "precision", "base model", *(name.replace("_", " ") for name in STAGES), "routing, of the base")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        times = [f"{float(row[name]):.2f}" for name in ("base_ms", *STAGES)]
        lines.append("| " + " | ".join([row["engine"], row["precision"], *times, percent(row["overhead"])]) + " |")
    return "\n".join(lines)


def exports(model: str) -> str:
    rows = [row for row in read(f"engines_{model}_cpu.csv") if row["what"] in ("file", "answers", "edge")]
    if not rows:
        return "Not measured yet."
    lines = [
        "| what | MB | of the base model's file | seconds | images | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row['what']}: {row['name']}",
            f"{float(row['bytes']) / 1e6:.1f}" if row["bytes"] else "",
            f"{float(row['of_base']):.2f}" if row["of_base"] else "",
            f"{float(row['seconds']):.2f}" if row["seconds"] else "",
            row["count"],
            row["difference"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown(head: tuple[str, ...], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def dynamic_time() -> str:
    head = ("network", "image", "gates", "trained", "engine", "MACs saved", "time saved", "95 %", "base, ms")
    lines = []
    for row in (row for path in sorted((HERE / "results").glob("dynamic_time_*.csv")) for row in read(path.name)):
        saved = [f"{100 * float(row[f'time_saved{end}']):.0f}" for end in ("", "_low", "_high")]
        lines.append(
            [row["model"], f"{row['size']}x{row['size']}", row["method"], "yes" if row["trained"] == "True" else "no",
             row["engine"], percent(row["macs_saved"]), f"{saved[0]} %", f"{saved[1]} .. {saved[2]} %",
             f"{float(row['base_ms']):.1f}"]
        )  # fmt: skip
    return markdown(head, lines)


#: ManiDP, CIFAR-10: error of the base model, error of ours in per cent, share of MACs saved.
MANIDP = {"resnet20": (7.78, 7.95, 54.2), "resnet32": (7.34, 7.85, 63.2), "resnet56": (6.30, 6.36, 62.4)}


def dynamic_train() -> str:
    """Networks at the paper's shares of MACs, beside it."""
    head = ("network", "variant", "epochs", "seed", "error, base", "error", "loss", "MACs saved",
            "5th to 95th percentile", "paper (400)")  # fmt: skip
    lines = []
    for row in (row for path in sorted((HERE / "results").glob("dynamic_train_*.csv")) for row in read(path.name)):
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


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "compared vgg16": lambda: compared("vgg16"),
    "compared resnet56": lambda: compared("resnet56"),
    "points vgg16": lambda: points("vgg16"),
    "points resnet56": lambda: points("resnet56"),
    "resources": resources,
    "engines vgg16": lambda: engines("vgg16"),
    "engines vgg16 limit 1.5": lambda: engines("vgg16_limit1.5"),
    "engines resnet56": lambda: engines("resnet56"),
    "engines resnet18": lambda: engines("torchvision_resnet18"),
    "stages vgg16": lambda: stages("vgg16"),
    "exports vgg16": lambda: exports("vgg16"),
    "dynamic time": dynamic_time,
    "dynamic train": dynamic_train,
    "dynamic curve": dynamic_curve,
    "dynamic ablation": dynamic_ablation,
}


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        for name, table in TABLES.items():
            pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
            text = re.sub(pattern, lambda m, t=table: m[1] + t() + "\n" + m[2], text, flags=re.DOTALL)
        page.write_text(text)
        print(page.name)


if __name__ == "__main__":
    main()
