"""Dynamic pruning: what skipped MACs are worth in time, and what training makes of a network.

    python benchmarks/dynamic.py time vgg16 WEIGHTS CIFAR100
    python benchmarks/dynamic.py train resnet20 WEIGHTS CIFAR10 runs/dynamic --epochs 3

``time`` puts untrained gates on a network, sets thresholds on 64 images so that a share of the channels stays, and
times batches of one, one thread, base and ours in turns: no accuracy comes of it, only seconds for MACs. Rows:

    manidp           a channel at a time, gates as published
    manidp-block16   16 neighbouring channels at a time, gates 16 times narrower inside
    manidp-early     a channel at a time, only where a convolution's weight is small (at most 256 x 256 x 3 x 3)
    static           the same channels for every input, no gate

``train`` trains and reports on the whole test split; networks are those of benchmarks/networks.py (shortcuts without
parameters, normalised as for ImageNet), 10 classes.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import typer
from table import Table

from sinf import DynamicModel, load_images, load_model
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.model import evaluate
from sinf.dynamic.network import GateConfig, GatedNetwork, attach
from sinf.dynamic.onnx import open_engine
from sinf.dynamic.sites import find_sites
from sinf.dynamic.targets import Target
from sinf.dynamic.trainer import EpochReport, TrainConfig
from sinf.dynamic.trainer import train as run
from sinf.models import BaseModel
from sinf.models.load import IMAGENET_MEAN, IMAGENET_STD
from sinf.models.trace import trace
from sinf.subgraph.coupling import couple
from sinf.timing import latency

RATES = (0.9, 0.7, 0.5, 0.3)
SMALL_WEIGHT = 256 * 256 * 9
WAYS: dict[str, GateConfig] = {
    "manidp": GateConfig(),
    "manidp-early": GateConfig(),
    "manidp-block16": GateConfig(block=16, squeeze=16),
    "static": GateConfig("static"),
}
TIME_COLUMNS = (
    "model", "dataset", "method", "engine", "precision", "device", "batch", "threads", "channels", "macs_saved",
    "time_saved", "time_saved_low", "time_saved_high", "base_ms", "ms", "load", "seed", "date", "versions",
)  # fmt: skip
TRAIN_COLUMNS = (
    "model", "dataset", "method", "epochs", "learning_rate", "complexity", "similarity", "target_macs", "base_top1",
    "top1", "loss", "macs_saved", "macs_p5", "macs_median", "macs_p95", "seconds", "seed", "date", "versions",
)  # fmt: skip
app = typer.Typer(add_completion=False)


@app.command("time")
def time_(
    name: str,
    weights: Path,
    data: Path,
    pairs: int = 300,
    engines: str = "torch,onnxruntime",
    only: str = ",".join(WAYS),
) -> None:
    torch.set_num_threads(1)
    test = load_images(data, "test[50%:]")
    table = Table(
        f"dynamic_time_{name}_cpu.csv", TIME_COLUMNS, ("model", "method", "engine", "channels"),
        model=name, dataset="cifar100", precision="f32", batch=1, threads=1, seed=0,
    )  # fmt: skip
    for method in only.split(","):
        for rate in RATES:
            torch.manual_seed(0)
            base = load_model(name, weights=weights)
            before = {key: value.clone() for key, value in base.module.state_dict().items()}
            network = attach(base, early(base, WAYS[method]) if method == "manidp-early" else WAYS[method]).eval()
            x = next(test.batches(base.spec.preprocessing, 64))[0]
            saved = 1 - float(settle(network, x, rate).mean()) / network.base_macs
            model = DynamicModel(DynamicBundle.of(network, base.spec, before, test.class_names, {}))
            for engine in engines.split(","):
                theirs, ours = open_engine(model, engine, 1)
                times = latency(theirs, ours, x if engine == "torch" else x.numpy(), pairs=pairs)
                row = table.add(
                    method=method, engine=engine, channels=rate, macs_saved=saved, time_saved=times.time_saved,
                    time_saved_low=times.low, time_saved_high=times.high, base_ms=times.base_mean, ms=times.mean,
                    load=load_average(),
                )  # fmt: skip
                print({key: row[key] for key in ("method", "engine", "channels", "macs_saved", "time_saved")})


def early(base: BaseModel, gates: GateConfig) -> GateConfig:
    """Gates on convolutions with small weights alone."""
    graph = trace(base.module, base.spec.preprocessing)
    sites = find_sites(graph, couple(graph, free_output=True)).free
    small = [s.name for s in sites if base.module.get_submodule(s.name).weight.numel() <= SMALL_WEIGHT]
    return replace(gates, sites=tuple(small))


@torch.no_grad()
def settle(network: GatedNetwork, x: torch.Tensor, rate: float) -> torch.Tensor:
    """Thresholds by which about ``rate`` of the channels stay; the MACs of the images (n,)."""
    for _ in range(3):
        _, seen = network.observe(x)
        for index, saliency in enumerate(seen.saliencies):
            network.gate(index).set_remaining(rate, saliency.mean(0))
    return network.macs_of(network.keep(network.observe(x)[1]))


def load_average() -> float:
    """How many processes wanted a core in the last minute; above 1 the times are those of a machine that is shared."""
    return float(Path("/proc/loadavg").read_text().split()[0])


@app.command()
def train(
    name: str,
    weights: Path,
    data: Path,
    work: Path,
    epochs: int = 3,
    learning_rate: float = 0.02,
    macs: float = 0.5,
    complexity: float = 0.1,
    similarity: float = 1.0,
    method: str = "manidp",
    threads: int = 1,
) -> None:
    torch.set_num_threads(threads)
    sys.path.insert(0, str(Path(__file__).parent))  # where networks.py is
    base: BaseModel = load_model(
        f"networks:{name}", weights=weights, size=(3, 32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    images, test = load_images(data, "train"), load_images(data, "test")
    config = TrainConfig(
        Target(macs=macs), GateConfig(method), epochs=epochs, learning_rate=learning_rate, complexity=complexity,
        similarity=similarity, ramp=0.6, updates=20,
    )  # fmt: skip
    seconds: list[float] = []

    def report(r: EpochReport) -> None:
        seconds.append(r.seconds)
        print(r, flush=True)

    network = run(base, images, work, config, validation=test, report=report)
    model = DynamicModel(DynamicBundle.of(network, base.spec, before, images.class_names, {}))
    found = evaluate(model, test)
    whole = found.base_macs
    identity = ("model", "method", "epochs", "complexity", "similarity", "target_macs", "learning_rate")
    table = Table(f"dynamic_train_{name}.csv", TRAIN_COLUMNS, identity, model=name, dataset="cifar10", seed=0)
    row = table.add(
        method=method, epochs=epochs, learning_rate=learning_rate, target_macs=macs,
        complexity=complexity, similarity=similarity, base_top1=found.base_top1, top1=found.top1, loss=found.loss,
        macs_saved=found.macs_saved, macs_p5=found.macs.p5 / whole, macs_median=found.macs.median / whole,
        macs_p95=found.macs.p95 / whole, seconds=sum(seconds),
    )  # fmt: skip
    print({key: row[key] for key in ("method", "macs_saved", "loss")})


if __name__ == "__main__":
    app()
