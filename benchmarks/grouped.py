"""What grouped convolutions could gain by rank: their share of the MACs, and what two layers in their place take.

    python benchmarks/grouped.py

In the place of a convolution in G groups, of C to O channels, are two in the same groups: its kernel to ``rank``
channels of every group, and 1x1 to all. ``grouped`` and ``depthwise`` are shares of the network's MACs in convolutions
of several channels a group, and of one, which no rank makes smaller. ``macs_saved`` is of the whole network, with that
share of the ranks (``kept``) in every grouped layer; ``base_ms`` and ``ms`` are of all its grouped layers, each timed
alone beside its two in ONNX Runtime at batch 1, one thread. Networks of timm with random weights, at 224 pixels: times
and MACs need no others, and no loss is measured.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from table import Table
from torch import Tensor, nn

from sinf import load_model
from sinf.engine.network_engine import open_network
from sinf.measure.timing import Latency, latency

NETWORKS = ("resnext50_32x4d", "resnext101_32x8d", "regnetx_004", "regnety_016")
SIZE, KEPT = (3, 224, 224), (0.5, 0.25)
COLUMNS = (
    "network", "channels_a_group", "layers", "grouped", "depthwise", "kept", "macs_saved", "engine", "precision",
    "batch", "threads", "base_ms", "ms", "time_saved", "load", "device", "date", "versions",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A convolution, and the size of the map that it reads."""

    channels: int
    out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    rows: int
    columns: int

    @property
    def macs(self) -> int:
        positions = math.prod(size // step for size, step in zip((self.rows, self.columns), self.stride, strict=True))
        return positions * self.out * self.channels // self.groups * math.prod(self.kernel)

    def rank(self, kept: float) -> int:
        """Of every group."""
        return max(1, round(kept * min(self.channels, self.out) / self.groups))

    def share(self, kept: float) -> float:
        """MACs of the two layers, of those of the one."""
        into, out = self.channels // self.groups * math.prod(self.kernel), self.out // self.groups
        return self.rank(kept) * (into + out) / (into * out)

    def one(self) -> nn.Module:
        options = {"stride": self.stride, "padding": self.padding, "groups": self.groups}
        return nn.Sequential(nn.Conv2d(self.channels, self.out, self.kernel, **options)).eval()

    def two(self, kept: float) -> nn.Module:
        options = {"stride": self.stride, "padding": self.padding, "groups": self.groups, "bias": False}
        between = self.groups * self.rank(kept)
        reduce = nn.Conv2d(self.channels, between, self.kernel, **options)
        return nn.Sequential(reduce, nn.Conv2d(between, self.out, 1, groups=self.groups)).eval()

    def timed(self, kept: float, pairs: int) -> Latency:
        size = (self.channels, self.rows, self.columns)
        one, two = (open_network(each, size, "onnxruntime") for each in (self.one(), self.two(kept)))
        return latency(one, two, torch.randn(8, *size).numpy(), pairs=pairs, threads=1)


@torch.no_grad()
def layers_of(network: nn.Module) -> Counter[Layer]:
    """Its convolutions, and how often each is there."""
    found: Counter[Layer] = Counter()

    def note(module: nn.Conv2d, given: tuple[Tensor, ...]) -> None:
        options = module.kernel_size, module.stride, module.padding, module.groups
        found[Layer(module.in_channels, module.out_channels, *options, *given[0].shape[2:])] += 1

    handles = [m.register_forward_pre_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]
    network(torch.zeros(1, *SIZE))
    for handle in handles:
        handle.remove()
    return found


def main(
    pairs: Annotated[int, typer.Option(help="Measurements of every layer.")] = 100,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    torch.set_num_threads(1)
    table = Table(
        "grouped_cpu.csv", COLUMNS, ("network", "kept"), loaded=loaded, engine="onnxruntime", precision="f32", batch=1,
        threads=1,
    )  # fmt: skip
    for name in NETWORKS:
        torch.manual_seed(0)
        model = load_model(f"timm:{name}", classes=1000, size=SIZE, pretrained=False)
        layers = layers_of(model.module)
        whole = sum(count * layer.macs for layer, count in layers.items())
        grouped = {each: count for each, count in layers.items() if 1 < each.groups < each.channels}
        depthwise = sum(count * each.macs for each, count in layers.items() if each.groups == each.channels > 1)
        share = sum(count * layer.macs for layer, count in grouped.items()) / whole
        for kept in KEPT:
            saved = sum(count * layer.macs * (1 - layer.share(kept)) for layer, count in grouped.items()) / whole
            times = {layer: layer.timed(kept, pairs) for layer in grouped}
            base, ours = (
                sum(count * getattr(times[layer], what) for layer, count in grouped.items())
                for what in ("base_median", "median")
            )
            row = table.add(
                network=name, layers=sum(grouped.values()), grouped=share, depthwise=depthwise / whole, kept=kept,
                channels_a_group=" ".join(map(str, sorted({each.channels // each.groups for each in grouped}))),
                macs_saved=saved, base_ms=base, ms=ours, time_saved=1 - ours / base,
                load=max(time.load or 0.0 for time in times.values()),
            )  # fmt: skip
            print({key: row[key] for key in ("network", "kept", "grouped", "macs_saved", "time_saved")}, flush=True)


if __name__ == "__main__":
    typer.run(main)
