"""Dynamic pruning: what skipped MACs are worth in time, and what training makes of a network.

    python benchmarks/dynamic.py time vgg16 CIFAR100 --weights WEIGHTS --work runs/dynamic
    python benchmarks/dynamic.py time torchvision:resnet18 CIFAR100 --size 224 --work runs/dynamic
    python benchmarks/dynamic.py train cifar10 resnet20 WEIGHTS CIFAR10 runs/dynamic

``time`` times batches of one, one thread, all of a network in one run with the base in between: trained bundles
(``--bundle``), gates that were not trained, whose thresholds leave a share of the MACs of 64 images, and static
networks at the same share of the MACs. No accuracy comes of these, only seconds for MACs. Rows:

    manidp           a channel at a time, gates as published
    manidp-block16   16 neighbouring channels at a time, gates 16 times narrower inside
    manidp-early     the same, only where a convolution's weight is small (at most 256 x 256 x 3 x 3)
    static           the same channels for every input: sinf prune, without reconstruction, which changes no time
    static-low-rank  the same by sinf prune --method ranks

``train`` trains what RECIPES lists and reports on the whole test split, after every epoch (the curve) and at the end.
Nothing is chosen by these images. ``--stop`` ends after an epoch; the same command goes on with the next. Networks of
CIFAR-10 are those of benchmarks/networks.py (shortcuts without parameters, normalised as for ImageNet).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from candidates import in_engine
from table import Table, text, when_idle

from sinf import Amount, DynamicModel, LabelledImages, PruneConfig, load_images, load_model, prune
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.latency import choose_by_chance
from sinf.dynamic.model import evaluate
from sinf.dynamic.network import GateConfig, GatedNetwork, all_sites, attach
from sinf.dynamic.onnx import open_engine
from sinf.dynamic.targets import Target, expected_macs, rate_for
from sinf.dynamic.trainer import EpochReport, TrainConfig
from sinf.dynamic.trainer import train as run
from sinf.graph.trace import trace
from sinf.measure.timing import interleaved
from sinf.models import BaseModel
from sinf.models.load import IMAGENET_MEAN, IMAGENET_STD
from sinf.pipelines.comparison import Size
from sinf.training.recipe import Distillation

SHARES = (0.75, 0.5, 0.3)
SMALL_WEIGHT = 256 * 256 * 9
WAYS: dict[str, GateConfig] = {
    "manidp": GateConfig(),
    "manidp-block16": GateConfig(block=16, squeeze=16),
    "manidp-early": GateConfig(block=16, squeeze=16),
}
STATIC = {"static": "channels", "static-low-rank": "ranks"}  # the method of sinf prune
SCORED = 400  # images that say which channels go, where only the time of what stays is wanted
TIME_COLUMNS = (
    "model", "dataset", "method", "engine", "precision", "device", "batch", "threads", "size", "trained", "target_macs",
    "macs_saved", "time_saved", "time_saved_low", "time_saved_high", "base_ms", "ms", "load", "seed", "date",
    "versions",
)  # fmt: skip
TRAIN_COLUMNS = (
    "model", "dataset", "method", "variant", "gates", "mask", "epochs", "learning_rate", "complexity", "similarity",
    "teacher_weight", "temperature", "target_macs", "base_top1", "top1", "loss", "macs_saved", "macs_p5",
    "macs_median", "macs_p95", "seconds", "threads", "seed", "device", "date", "versions",
)  # fmt: skip
CURVE_COLUMNS = (
    "model", "dataset", "method", "variant", "epochs", "target_macs", "epoch", "top1", "macs", "channels",
    "cross_entropy", "seconds", "threads", "seed", "device", "date", "versions",
)  # fmt: skip
app = typer.Typer(add_completion=False)


@app.command("time")
def time_(
    name: str,
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder for results of steps; may be used again.")],
    weights: Annotated[Path | None, typer.Option(help="Of the base model [default: random ones].")] = None,
    size: Annotated[int, typer.Option(help="Side of an image.")] = 32,
    bundle: Annotated[list[Path] | None, typer.Option(help="A trained bundle to time too.")] = None,
    pairs: int = 300,
    engines: str = "torch,onnxruntime",
    only: str = ",".join([*WAYS, *STATIC]),
    prepare: Annotated[bool, typer.Option(help="Make the static networks, time nothing.")] = False,
    keep: Annotated[bool, typer.Option(help="Leave out engines that are in the file.")] = False,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    torch.set_num_threads(1)
    test, train = load_images(data, "test[50%:]"), load_images(data, "train")
    table = Table(
        f"dynamic_time_{name.replace(':', '_')}_cpu.csv", TIME_COLUMNS,
        ("model", "method", "engine", "size", "trained", "target_macs"), keep=keep, loaded=loaded,
        model=name, dataset="cifar100", precision="f32", batch=1, threads=1, size=size, seed=0,
    )  # fmt: skip
    wanted = [engine for engine in engines.split(",") if not table.has(engine=engine)]

    def base() -> BaseModel:
        torch.manual_seed(0)
        options = {} if ":" not in name else {"size": (3, size, size), "classes": test.classes, "pretrained": False}
        return load_model(name, weights=weights, **options)

    static = [
        (base_to_static(base(), train, share, STATIC[method], work), method, share)
        for method, share in product(only.split(","), SHARES) if method in STATIC
    ]  # fmt: skip
    if prepare or not wanted:
        return
    whole = Size.of(base()).macs
    x = next(test.batches(base().spec.preprocessing, 64))[0]
    dynamic = [trained(path, x) for path in bundle or ()]
    for method, share in product(only.split(","), SHARES):
        made = gated(base(), method, share, x, test.class_names) if method in WAYS else None
        dynamic += [] if made is None else [made]
    for engine in wanted:
        running: dict[str, Callable[[Any], Any]] = {}
        known: dict[str, dict[str, Any]] = {}
        for model, row in dynamic:
            key = f"{row['method']} {row['target_macs']} {row['trained']}"
            running[key], known[key] = open_engine(model, engine, 1)[1], row
        for model, method, share in static:
            saved = 1 - Size.of(model).macs / whole
            known[f"{method} {share}"] = {
                "method": method, "target_macs": share, "trained": False, "macs_saved": saved
            }  # fmt: skip
            running[f"{method} {share}"] = in_engine(model, engine)
        images, alone = x if engine == "torch" else x.numpy(), in_engine(base(), engine)
        times = when_idle(
            lambda alone=alone, running=running, images=images: interleaved(alone, running, images, pairs=pairs),
            lambda found: next(iter(found.values())).load,
        )  # fmt: skip
        for key, taken in times.items():
            row = table.add(
                **known[key], engine=engine, time_saved=taken.time_saved, time_saved_low=taken.low,
                time_saved_high=taken.high, base_ms=taken.base_mean, ms=taken.mean, load=taken.load,
            )  # fmt: skip
            print({key: row[key] for key in ("method", "engine", "trained", "target_macs", "macs_saved", "time_saved")})
        table.forget_older(engine=engine)


def base_to_static(base: BaseModel, train: LabelledImages, share: float, how: str, work: Path) -> BaseModel:
    """The same network for every input, with a share of the MACs."""
    return prune(base, train, PruneConfig(Amount(macs=share), how, limits=None, images=SCORED, reconstruct=False), work)


def trained(path: Path, x: torch.Tensor) -> tuple[DynamicModel, dict[str, Any]]:
    """A bundle, and what its row says."""
    model = DynamicModel.from_pretrained(path, allow_factory=True)
    gates, macs = model.network.config, float(model.choose(x).macs.mean())
    way = gates.kind + (f"-block{gates.block}" if gates.block > 1 else "")
    target = float(model.bundle.provenance["target"].split()[0])
    saved = 1 - macs / model.network.base_macs
    return model, {"method": way, "target_macs": target, "trained": True, "macs_saved": saved}


def gated(
    base: BaseModel, method: str, share: float, x: torch.Tensor, class_names: list[str]
) -> tuple[DynamicModel, dict[str, Any]] | None:
    """Gates that were not trained, and what their row says; None where they cannot come down to the share."""
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    network = attach(base, early(base, WAYS[method]) if method == "manidp-early" else WAYS[method]).eval()
    if expected_macs(network, 0.0) >= share:
        print(f"left out: {method} cannot come down to {share:g} of the MACs")
        return None
    macs = float(settle(network, x, rate_for(network, share)).mean())
    model = DynamicModel(DynamicBundle.of(network, base.spec, before, class_names, {}))
    return model, {
        "method": method, "target_macs": share, "trained": False, "macs_saved": 1 - macs / network.base_macs
    }  # fmt: skip


def early(base: BaseModel, gates: GateConfig) -> GateConfig:
    """Gates on convolutions with small weights alone."""
    graph = trace(base.module, base.spec.preprocessing)
    sites = all_sites(graph)[1].free
    small = [s.name for s in sites if base.module.get_submodule(s.name).weight.numel() <= SMALL_WEIGHT]
    return replace(gates, sites=tuple(small))


@torch.no_grad()
def settle(network: GatedNetwork, x: torch.Tensor, rate: float) -> torch.Tensor:
    """Gates that choose by chance, with thresholds by which about ``rate`` of the channels stay; the MACs of the images
    (n,)."""
    choose_by_chance(network)
    for _ in range(3):
        _, seen = network.observe(x)
        for index, saliency in enumerate(seen.saliencies):
            network.gate(index).set_remaining(rate, saliency.mean(0))
    return network.macs_of(network.keep(network.observe(x)[1]))


class Recipe(NamedTuple):
    """A training to report: what it is called, how long, the share of MACs that it aims at, and what it changes."""

    variant: str
    epochs: int
    macs: float
    gates: GateConfig = GateConfig()
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0


#: Losses without gradients through features and weights of images.
DETACHED = {"detach_weights": True, "detach_features": True}
#: The base model's answers beside the labels.
DISTILLED = {"distillation": Distillation()}


def ablations(epochs: int, macs: float, seed: int = 0) -> list[Recipe]:
    """Each loss taken away, each choice that the paper's text leaves open taken the other way, and the baselines."""
    changes: dict[str, tuple[GateConfig, dict[str, Any]]] = {
        "manidp": (GateConfig(), {}),
        "manidp-distilled": (GateConfig(), DISTILLED),
        "static": (GateConfig("static"), {}),
        "without-similarity": (GateConfig(), {"similarity": 0.0}),
        "without-complexity": (GateConfig(), {"complexity": 0.0}),
        "without-both": (GateConfig(), {"complexity": 0.0, "similarity": 0.0}),
        "detached": (GateConfig(), DETACHED),
        "detached-equal-start": (GateConfig(), DETACHED | {"start": "equal"}),
        "detached-binary-mask": (GateConfig(mask="binary"), DETACHED),
    }
    return [Recipe(name, epochs, macs, gates, tuple(o.items()), seed) for name, (gates, o) in changes.items()]


def learned_from(epochs: int, macs: float, seed: int = 0) -> list[Recipe]:
    """What teaches gates: all losses, the base model too, and each loss taken away."""
    return [each for each in ablations(epochs, macs, seed) if each.variant.startswith(("manidp", "without"))]


#: By data and network. Shares of MACs are those of the paper on CIFAR-10.
RECIPES: dict[tuple[str, str], list[Recipe]] = {
    ("cifar10", "resnet20"): [
        *ablations(3, 0.458),
        *ablations(3, 0.458, seed=1),
        *learned_from(3, 0.458, seed=2),
        Recipe("manidp", 12, 0.458),
        Recipe("static", 12, 0.458, GateConfig("static")),
    ],
    ("cifar10", "resnet32"): [Recipe("manidp", 3, 0.368)],
    ("cifar10", "resnet56"): [Recipe("manidp", 3, 0.376)],
    ("cifar100", "resnet56"): [
        Recipe("detached", 3, 0.5, options=(("similarity", 0.1), *DETACHED.items())),
        Recipe("manidp-distilled", 3, 0.5, options=tuple(DISTILLED.items())),
        Recipe("manidp", 3, 0.5),
    ],
    ("cifar100", "vgg13"): [each for seed in range(3) for each in learned_from(3, 0.5, seed)],
    ("cifar100", "vgg16"): [Recipe("manidp", 2, 0.5)],
}


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="cifar10 or cifar100.")],
    name: str,
    weights: Path,
    data: Path,
    work: Annotated[Path, typer.Argument(help="Folder for checkpoints and bundles; the same command goes on.")],
    only: Annotated[str, typer.Option(help="Variants, with commas between [default: all].")] = "",
    threads: int = 1,
    keep: Annotated[bool, typer.Option(help="Leave out what is in the file.")] = False,
    stop: Annotated[bool, typer.Option(help="End after an epoch, which the same command goes on from.")] = False,
) -> None:
    torch.set_num_threads(threads)
    images, test = load_images(data, "train"), load_images(data, "test")
    identity = ("variant", "epochs", "target_macs", "seed")
    common = {"model": name, "dataset": dataset, "method": "dynamic", "threads": threads}
    table = Table(f"dynamic_train_{name}_{dataset}.csv", TRAIN_COLUMNS, identity, keep=keep, **common)
    curve = Table(f"dynamic_curve_{name}_{dataset}.csv", CURVE_COLUMNS, (*identity, "epoch"), keep=keep, **common)
    for recipe in RECIPES[dataset, name]:
        known = {"variant": recipe.variant, "epochs": recipe.epochs, "target_macs": recipe.macs, "seed": recipe.seed}
        if table.has(**known) or (only and recipe.variant not in only.split(",")):
            continue
        base = network_of(dataset, name, weights)
        before = {key: value.clone() for key, value in base.module.state_dict().items()}
        options = {"ramp": 0.6, "updates": 20, "bf16": True} | dict(recipe.options)
        config = TrainConfig(Target(macs=recipe.macs), recipe.gates, epochs=recipe.epochs, seed=recipe.seed, **options)
        place = work / f"{name}_{dataset}" / f"{recipe.variant}-{recipe.epochs}-{recipe.seed}"

        def report(r: EpochReport, known: dict[str, Any] = known) -> None:
            curve.add(
                epoch=r.epoch, top1=r.top1, macs=r.macs, channels=r.remaining, cross_entropy=r.cross_entropy,
                seconds=r.seconds, **known,
            )  # fmt: skip
            print(known, r, flush=True)
            if stop and r.epoch < r.epochs:
                raise typer.Exit

        network = run(base, images, place / "train", config, validation=test, report=report)
        model = DynamicModel(
            DynamicBundle.of(network, base.spec, before, images.class_names, {"target": str(config.target)})
        )
        model.bundle.save(place / "bundle")
        found = evaluate(model, test)
        whole = found.base_macs
        taken = sum(float(r["seconds"]) for r in curve.rows if all(r[k] == text(v) for k, v in known.items()))
        row = table.add(
            learning_rate=config.learning_rate, complexity=config.complexity, similarity=config.similarity,
            gates=recipe.gates.kind, mask=recipe.gates.mask, teacher_weight=config.distillation.weight,
            temperature=config.distillation.temperature, base_top1=found.base_top1, top1=found.top1,
            loss=found.loss, macs_saved=found.macs_saved, macs_p5=found.macs.p5 / whole,
            macs_median=found.macs.median / whole, macs_p95=found.macs.p95 / whole, seconds=taken, **known,
        )  # fmt: skip
        print({key: row[key] for key in ("variant", "macs_saved", "loss")}, flush=True)
        if stop:
            return


def network_of(dataset: str, name: str, weights: Path) -> BaseModel:
    """A reference network with the project's weights for CIFAR-100, one of benchmarks/networks.py for CIFAR-10."""
    if dataset == "cifar100":
        return load_model(name, weights=weights)
    sys.path.insert(0, str(Path(__file__).parent))  # where networks.py is
    return load_model(f"networks:{name}", weights=weights, size=(3, 32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD)


if __name__ == "__main__":
    app()
