"""Did a change of the code change a number? Hashes of what the library makes of the embedded network, before and after.

    python benchmarks/identical.py before.json            # writes them
    python benchmarks/identical.py before.json --again    # compares, and names what differs

Everything is made in a minute or two of one core: pruned networks and bundles of every method, and their answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer

from sinf import BuildConfig, Images, SemanticModel, build, load_images, load_model, prune
from sinf.data.clusters import from_column, one_cluster
from sinf.measure.delivery import Limits
from sinf.pipelines.prune import Amount, PruneConfig
from sinf.routing.predictor import RouterConfig
from sinf.storage.files import hash_tensors

ASSETS = Path(__file__).parents[1] / "src" / "sinf" / "assets"
CUT = "features.20"
PRUNED = {
    "channels": PruneConfig(Amount(macs=0.6), "channels", limits=None, images=300),
    "channels by ratios, as they are": PruneConfig(
        Amount(ratio=0.2), "channels", limits=None, images=300, reconstruct=False
    ),
    "channels, dcs": PruneConfig(Amount(macs=0.7), "channels", limits=None, criterion="dcs", images=300),
    "ranks": PruneConfig(Amount(macs=0.5, weight_cost=32.0), "ranks", limits=None, images=300),
    "auto": PruneConfig(Amount(macs=0.6), images=300, limits=Limits(max_loss=0.5, keep_anyway=True)),
}
SMALL = {
    "weight_cost": 32.0,
    "route_draws": 400,
    "router": RouterConfig(channels=32, hidden=32, kernel=1, epochs=2),
    "keep_anyway": True,
}
BUILT = {
    "channels": BuildConfig(cut=CUT, whole=0.8, whole_images=300, max_loss=0.05, **SMALL),
    "channels by ratios": BuildConfig(cut=CUT, ratios=(0.1, 0.5), extractor=0.9, max_loss=0.05, **SMALL),
    "channels across clusters": BuildConfig(cut=CUT, across_clusters=True, max_loss=0.05, **SMALL),
    "ranks": BuildConfig(cut=CUT, method="ranks", whole=0.8, whole_images=300, max_loss=0.05, **SMALL),
    "ranks across clusters": BuildConfig(cut=CUT, method="ranks", across_clusters=True, max_loss=0.05, **SMALL),
}


def made(work: Path) -> Iterator[tuple[str, str]]:
    """What is made by name, and its hash."""
    data = ASSETS / "cifar100_subset"
    base = load_model("vgg13", weights=ASSETS / "vgg13_cifar100.safetensors")
    scoring, calibration, test = (load_images(data, split) for split in ("scoring", "calibration", "test"))
    x = torch.cat([x for x, _ in test.sample(64, 0).batches(base.spec.preprocessing)])
    for name, config in PRUNED.items():
        pruned = prune(base, scoring, config, work / f"prune {name}")
        yield f"prune: {name}", hash_tensors(pruned.module.state_dict() | {"answers": pruned.module(x).detach()})
    few = scoring.sample(400, 0)
    for name, config in BUILT.items():
        for clusters, grouped in (
            ("superclasses", from_column(scoring)),
            ("one cluster", one_cluster(base.spec.classes)),
        ):
            folder = work / f"build {name} {clusters}"
            build(base, Images(few, few, calibration), grouped, config, folder)
            model = SemanticModel.from_pretrained(folder)
            yield f"build: {name}, {clusters}", hash_tensors(
                {"answers": model(x).detach(), "threshold": torch.tensor(model.threshold)}
                | {f"{part}.{key}": tensor for part, value in model.bundle.parts.items()
                   for key, tensor in value.to_tensors(model.network.coupling, "").items()}
            )  # fmt: skip


def main(
    file: Path,
    again: Annotated[bool, typer.Option("--again", help="Compare with the file instead of writing it.")] = False,
) -> None:
    torch.set_num_threads(1)  # another number rounds otherwise
    before = json.loads(file.read_text()) if again else {}
    with TemporaryDirectory() as work:
        found = {}
        for name, value in made(Path(work)):
            found[name] = value
            same = "" if not again else "same  " if before.get(name) == value else "OTHER "
            print(f"{same}{value[:16]}  {name}", flush=True)
    if not again:
        file.write_text(json.dumps(found, indent=1) + "\n")
    elif found != before:
        raise SystemExit("what is made has changed")


if __name__ == "__main__":
    typer.run(main)
