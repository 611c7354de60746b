"""(v) How many of their most activated channels two images share, by depth, within and between semantic clusters.

python reproduce/overlap.py vgg16 WEIGHTS CIFAR100    measures; without arguments: draws what was measured
"""

from __future__ import annotations

import csv
import datetime
import sys
from itertools import product
from typing import Any

from common import RESULTS, Section, networks, panels, read, save, table

TOP, IMAGES = 0.25, 2000
SCALES = ("activation", "activation against the channel's own mean")
KINDS = ("same class", "same cluster", "other clusters")
COLUMNS = [
    *("model", "dataset", "layer", "depth", "scale", "channels", "top", "pairs", "overlap", "chance", "images"),
    *("date", "versions"),
]


def measure(name: str, weights: str, data: str) -> None:
    """An image's most activated channels of a layer are the quarter with the largest mean over positions, relative "
    "to the
    channel's own mean and deviation over images: otherwise the same channels would be the largest for every image."""
    import torch

    from sinf import load_images, load_model
    from sinf.data.clusters import from_column
    from sinf.graph.network import PartedNetwork
    from sinf.graph.trace import trace
    from sinf.measure.accuracy import machine

    base = load_model(name, weights=weights)
    images = load_images(data, "test[50%:]").sample(IMAGES)
    network = PartedNetwork(trace(base.module, base.spec.preprocessing))
    targets = list(dict.fromkeys(network.coupling.mixers.values()))
    pooled: dict[str, list[torch.Tensor]] = {target: [] for target in targets}

    def hook(target: str) -> Any:
        def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0]
            pooled[target].append(x.flatten(2).mean(2) if x.ndim > 2 else x.clone())

        return note

    handles = [network.graph.get_submodule(t).register_forward_pre_hook(hook(t)) for t in targets]
    with torch.no_grad():
        for x, _ in images.batches(base.spec.preprocessing):
            network.graph(x)
    for handle in handles:
        handle.remove()
    labels = images.labels
    clusters = from_column(images).of_class()[labels]
    same_class, same_cluster = labels[:, None] == labels, clusters[:, None] == clusters
    masks = (
        same_class & ~torch.eye(len(labels), dtype=torch.bool),
        same_cluster & ~same_class,
        ~same_cluster,
    )
    rows = []
    for depth, target in enumerate(targets[1:], 1):  # the first layer reads the image
        plain = torch.cat(pooled[target])
        count = max(1, round(TOP * plain.shape[1]))
        against_mean = (plain - plain.mean(0)) / plain.std(0).clamp(min=1e-6)
        for scale, features in zip(SCALES, (plain, against_mean), strict=True):
            chosen = torch.zeros_like(features).scatter_(1, features.topk(count, 1).indices, 1)
            shared = chosen @ chosen.T / count
            for kind, mask in zip(KINDS, masks, strict=True):
                rows.append(
                    {"model": name, "dataset": "cifar100", "layer": target, "depth": depth, "scale": scale,
                     "channels": plain.shape[1], "top": TOP, "pairs": kind,
                     "overlap": f"{float(shared[mask].mean()):.5g}",
                     "chance": f"{count / plain.shape[1]:.5g}", "images": len(labels),
                     "date": f"{datetime.date.today()}", "versions": machine()["versions"]}
                )  # fmt: skip
    with (RESULTS / f"overlap_{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def section() -> Section:
    names = networks("overlap_")
    if not names:
        return Section("Shared channels by depth", "Not measured yet.")
    figure, axes = panels(len(names) * len(SCALES))
    parts = []
    for axis, (name, scale) in zip(axes, product(names, SCALES), strict=True):
        rows = [r for r in read(f"overlap_{name}.csv") if r["scale"] == scale]
        depths = sorted({int(r["depth"]) for r in rows})
        by_kind = {
            kind: [
                100 * float(r["overlap"]) for d in depths for r in rows if (int(r["depth"]), r["pairs"]) == (d, kind)
            ]
            for kind in KINDS
        }
        for kind, colour in zip(KINDS, ("#0b7285", "#e8590c", "#868e96"), strict=True):
            axis.plot(depths, by_kind[kind], "o-", markersize=4, color=colour, label=kind)
        axis.axhline(100 * float(rows[0]["chance"]), color="#adb5bd", linestyle="--", linewidth=1, label="chance")
        axis.set_ylim(0, 100)
        axis.set_title(f"{name}: {scale}", loc="left", fontsize=9)
        axis.set_xlabel("depth (layer that reads the channels)")
        layers = {int(r["depth"]): [r["layer"], r["channels"]] for r in rows}
        lines = [
            [*layers[d], *(f"{by_kind[kind][i]:.1f} %" for kind in KINDS),
             f"{by_kind[KINDS[1]][i] - by_kind[KINDS[2]][i]:+.1f}"]
            for i, d in enumerate(depths)
        ]  # fmt: skip
        head = ["layer", "channels", *KINDS, "same cluster over others"]
        parts.append(f"{name}, by {scale}; read by:\n\n" + table(head, lines))
    axes[0].set_ylabel("shared of the top quarter, %")
    axes[0].legend(frameon=False, fontsize=8)
    picture = save(figure, "overlap.png")
    rows = read(f"overlap_{names[0]}.csv")
    text = (
        "The paper says that semantically similar inputs share many filters, especially in early layers. Here an "
        "image's most activated channels of a layer are the quarter with the largest mean over positions, as it is or "
        f"against the channel's own mean and deviation over {rows[0]['images']} images; what is shown is how many of "
        "them two images have in common, on average over all pairs of the same class, of the same semantic cluster but "
        "another class, and of different clusters.\n\n"
        f"![overlap]({picture})\n\n" + "\n\n".join(parts)
    )
    return Section("Shared channels by depth", text, (picture,))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measure(*sys.argv[1:])
    elif len(sys.argv) != 1:
        sys.exit(__doc__)
    print(section().text)
