"""Dynamic pruning."""

from __future__ import annotations

from statistics import fmean

from shown.cells import machine_of, markdown, names, percent, points_of, read


def time() -> str:
    head = ("network", "image", "method", "trained", "engine", "MACs saved", "time saved", "95 %", "base, ms",
            "load, cores")  # fmt: skip
    lines = []
    for row in (row for name in names("dynamic_time_*.csv") for row in read(name)):
        saved = [f"{100 * float(row[f'time_saved{end}']):.0f}" for end in ("", "_low", "_high")]
        lines.append(
            [row["model"], f"{row['size']}x{row['size']}", row["method"], "yes" if row["trained"] == "True" else "no",
             row["engine"], percent(row["macs_saved"]), f"{saved[0]} %", f"{saved[1]} .. {saved[2]} %",
             *machine_of(row)]
        )  # fmt: skip
    return markdown(head, lines)


#: ManiDP, CIFAR-10: error of the base model, error of the pruned one in per cent, share of MACs saved.
MANIDP = {"resnet20": (7.78, 7.95, 54.2), "resnet32": (7.34, 7.85, 63.2), "resnet56": (6.30, 6.36, 62.4)}


def train() -> str:
    """Networks at the paper's shares of MACs, beside it."""
    head = ("network", "variant", "epochs", "seed", "error, base", "error", "loss", "MACs saved",
            "5th to 95th percentile", "paper (400)")  # fmt: skip
    lines = []
    for row in (row for name in names("dynamic_train_*.csv") for row in read(name)):
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


def static() -> str:
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


def curve() -> str:
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


def ablation() -> str:
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
