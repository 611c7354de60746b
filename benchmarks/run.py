"""Measure again what is in benchmarks/results: make bench [SHARED=folder with data/cifar100 and weights] [KEEP=1]

    python benchmarks/run.py SHARED            # everything, on a machine that does nothing else: days
    python benchmarks/run.py SHARED --keep     # what is in a file already stays: goes on where it was stopped
    python benchmarks/run.py SHARED --only headline

Every command names the files of benchmarks/results that it writes; together they are all files that a page shows
(tests/benchmarks/test_pages.py). Commands whose data is not in SHARED are left out, with a line.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

HERE = Path(__file__).parent
KEEPING = {
    "foreign",
    "compact",
    "budgets",
    "optimize",
    "corruption",
    "headline",
    "tradeoff",
    "static",
    "engines",
    "cuts",
    "criteria",
    "dcs",
    "scoring",
    "dynamic",
}
ENGINES = ("torch", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Command:
    """A script with its arguments, or ``sinf`` with its own; the files that it writes and those that it needs."""

    name: str
    arguments: tuple[object, ...]
    writes: tuple[str, ...] = ()
    needs: tuple[Path, ...] = ()

    def line(self, keep: bool) -> list[str]:
        if self.name == "sinf":
            return [str(Path(sys.executable).with_name("sinf")), *map(str, self.arguments)]
        script = HERE / f"{self.name}.py" if "/" not in self.name else HERE.parent / f"{self.name}.py"
        return [sys.executable, str(script), *map(str, self.arguments), *(["--keep"] if keep and self.keeps else [])]

    @property
    def keeps(self) -> bool:
        return self.name in KEEPING


def commands(shared: Path, work: Path) -> list[Command]:
    """In their order: a bundle is built before it is measured."""
    data, cifar10 = shared / "data" / "cifar100", shared / "data" / "cifar10"
    weights = {name: shared / "weights" / f"{name}_cifar100.safetensors" for name in ("vgg16", "resnet56")}
    vgg19 = work / "train" / "vgg19"
    papers = weights | {"vgg19": vgg19 / "model.safetensors"}
    split, work_of = ("--data", data, "--calibrate", "test[:50%]"), {name: work / name for name in papers}
    made: list[Command] = []

    def add(name: str, *arguments: object, writes: tuple[str, ...] = (), needs: tuple[Path, ...] = (data,)) -> None:
        made.append(Command(name, arguments, writes, needs))

    # As docs/reproduce.md has it (reproduce/recipes.py).
    recipe = ("--epochs", 5, "--learning-rate", 0.03, "--average", 0.3, "--bf16", "--threads", 1, "--half")
    seen = "test[:20%]"
    add("sinf", "train", "vgg19", "--data", data, "--start", weights["vgg16"], *recipe, "--validation", seen,
        "--out", vgg19, needs=(data, weights["vgg16"]))  # fmt: skip
    add("trained", "vgg19", vgg19, data, "--on", seen, "--start", "vgg16", writes=("trained_vgg19_cifar100.csv",),
        needs=(data, papers["vgg19"]))  # fmt: skip

    for name, path in papers.items():
        observed = work / f"{name}_observation.safetensors"
        add("candidates", name, path, data, "--work", work_of[name], "--observed", observed, needs=(data, path))
        if name == "vgg16":
            add("promise", "--observed", observed, writes=("promise.csv",), needs=())
        add("headline", name, path, data, "--work", work_of[name], writes=(f"headline_{name}_cpu.csv",))
        if name == "vgg16":
            few = ("--only", "static-low-rank-time,cascade", "--file", "cascade_vgg16_cpu.csv")
            add("headline", name, path, data, "--work", work_of[name], *few, writes=("cascade_vgg16_cpu.csv",))
        add("tradeoff", name, path, data, "--work", work_of[name], writes=(f"tradeoff_{name}_cpu.csv",))
        if name not in weights:
            continue
        add("optimize", name, path, data, "--work", work / "optimize" / name, writes=(f"optimize_{name}_cpu.csv",))
        if name == "vgg16":
            for engine, batch in (("openvino", 1), ("torch", 1), ("onnxruntime", 32)):
                there = ("--engine", engine, "--batch", batch, "--only", "f32", "--limit", 0.5, "--likely")
                add("optimize", name, path, data, "--work", work / "optimize" / name, *there,
                    writes=(f"optimize_{name}_cpu.csv",))  # fmt: skip
            add("promise_of_optimize", writes=("promise_of_optimize.csv",), needs=())
            delivered = work / "optimize" / name / "delivered"
            cascade = delivered / "onnxruntime-batch-1-f32-0.5-none"
            add("deferral", name, data, cascade, writes=("deferral_vgg16.csv",))
            three = ("f32-int8-0.5-0.95", "f32-0.5-none", "f32-1-none")
            only = [word for each in three for word in ("--only", f"onnxruntime-batch-1-{each}")]
            add("corruption", name, path, data, delivered, *only, writes=("corruption_vgg16.csv",))
        add("budgets", name, path, data, writes=(f"budgets_{name}_cpu.csv",))
        add("curve", name, path, data, "--work", work / "curve" / name, writes=(f"curve_{name}_cpu.csv",))
        add("head_to_head", name, path, data, "--work", work / "curve" / name,
            writes=(f"head_to_head_{name}_cpu.csv",))  # fmt: skip

    bundles = {"vgg16": work / "resources" / "bundle", "resnet56": work / "bundle56", "resnet18": work / "bundle18"}
    add("resources", weights["vgg16"], data, work / "resources", writes=("resources_vgg16_cpu.csv",))
    cut = ("--cut", "layer2", "--extractor", 0.95, "--macs", 0.5, "--weight-cost", 32, "--max-loss", 1.5)
    add("sinf", "build", "resnet56", "--keep-anyway", "--weights", weights["resnet56"], *split, *cut,
        "--work", work_of["resnet56"], "--out", bundles["resnet56"])  # fmt: skip
    small = ("--score", "train[:2000]", "--route", "train[:2000]", "--route-draws", 2000, "--max-loss", 5)
    size = ("--classes", 100, "--size", "3,64,64", "--whole", 0.75, "--macs", 0.3, "--weight-cost", 32)
    random = work / "resnet18.safetensors"
    options = ("--weights", random, *split, *small, *size, "--out", bundles["resnet18"])
    add("sinf", "build", "torchvision:resnet18", "--keep-anyway", *options)
    for bundle in bundles.values():
        for engine in ENGINES:
            add("sinf", "tune", bundle, "--engine", engine, "--threads", 1)
    add("engines", bundles["vgg16"], data, writes=("engines_vgg16_cpu.csv",))
    for name, stem in (("resnet56", "resnet56"), ("resnet18", "torchvision_resnet18")):
        file = f"engines_{stem}_cpu.csv"
        some = ("--only", "f32", "--batch", 1, "--batch", 32, "--out", HERE / "results" / file)
        add("engines", bundles[name], data, *some, writes=(file,))

    for name, path in papers.items():
        add("static", name, path, data, "--work", work / "static", writes=(f"static_{name}_cpu.csv",))
        add("cuts", name, path, data, writes=(f"cuts_{name}.csv",))
        add("criteria", name, path, data, "--minutes", 240, writes=(f"criteria_{name}.csv",))
        add("reproduce/overlap", name, path, data, writes=(f"overlap_{name}.csv",))
    for scored, ways in ((200, "reconstructed,low-rank"), (100, "low-rank"), (100, "low-rank-bundle")):
        ranks = ("--scored", scored, "--only", ways)
        add("cuts", "resnet56", weights["resnet56"], data, *ranks, writes=("cuts_resnet56.csv",))
    ranks = ("--scored", 100, "--only", "low-rank-bundle")
    add("cuts", "vgg16", weights["vgg16"], data, *ranks, writes=("cuts_vgg16.csv",))
    add("forms", "vgg16", weights["vgg16"], data, writes=("forms_vgg16.csv",))
    add("branches", "resnet56", weights["resnet56"], data, writes=("branches_resnet56.csv",))
    add("grouped", writes=("grouped_cpu.csv",))
    add("dcs", "vgg16", weights["vgg16"], data, writes=("dcs_vgg16.csv",))
    add("scoring", "vgg16", weights["vgg16"], data, writes=("scoring_vgg16_cpu.csv",))
    for name, part in (("vgg16", ()), ("resnet56", ("low-rank",))):
        add("reproduce/peers", name, weights[name], data, shared / "peers", *part, writes=(f"peers_{name}.csv",),
            needs=(shared / "peers",))  # fmt: skip

    dynamic = work / "dynamic"

    def train(dataset: str, name: str, path: Path, images: Path) -> None:
        files = tuple(f"dynamic_{what}_{name}_{dataset}.csv" for what in ("train", "curve"))
        add("dynamic", "train", dataset, name, path, images, dynamic, writes=files, needs=(images, path))

    train("cifar10", "resnet20", shared / "weights" / "resnet20_cifar10.safetensors", cifar10)
    train("cifar100", "resnet56", weights["resnet56"], data)
    train("cifar100", "vgg13", HERE.parent / "src" / "sinf" / "assets" / "vgg13_cifar100.safetensors", data)
    bundle = dynamic / "resnet56_cifar100" / "detached-3-0" / "bundle"
    few = ("--only", "manidp,static,static-low-rank")
    for name, options in (("vgg16", ()), ("resnet56", ("--bundle", bundle, *few))):
        timing = ("time", name, data, "--weights", weights[name], "--work", dynamic, *options)
        add("dynamic", *timing, writes=(f"dynamic_time_{name}_cpu.csv",))
    large = ("torchvision:resnet18", data, "--size", 224, "--pairs", 100, "--work", dynamic, *few)
    add("dynamic", "time", *large, writes=("dynamic_time_torchvision_resnet18_cpu.csv",))
    compact = HERE / "weights" / "mobilenetv3_small_cifar100.safetensors"
    add("optimize", "mobilenetv3_small", compact, data, "--work", work / "optimize" / "mobilenetv3_small",
        writes=("optimize_mobilenetv3_small_cpu.csv",))  # fmt: skip
    add("foreign", data, "--work", work / "foreign", writes=("foreign_cpu.csv",))
    add("as_saved", data, "--work", work / "as_saved", writes=("as_saved_cpu.csv",))
    spectra = ("compact_losses.csv", "compact_spectra.csv")
    add("compact", shared, "--work", work / "compact", writes=spectra, needs=(data, weights["vgg16"]))
    add("newcomer", "--work", work / "newcomer", writes=("newcomer_cpu.csv",), needs=())
    add("mutation", "--when", "after", writes=("mutation.csv",), needs=())
    for script in ("plot", "pages", "reproduce/page"):
        add(script, needs=())
    return made


def random_resnet18(path: Path) -> None:
    """Weights of torchvision's, of which only times can be measured."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(torchvision.models.resnet18(num_classes=100).state_dict(), path)


def main(
    shared: Annotated[Path, typer.Argument(help="Folder with data and weights.")] = HERE.parent.parent / "shared",
    keep: Annotated[bool, typer.Option(help="Leave rows that are in a file; otherwise all are measured.")] = False,
    only: Annotated[str, typer.Option(help="Scripts, with commas between [default: all].")] = "",
) -> None:
    if not (shared / "data" / "cifar100").is_dir() or not (shared / "weights").is_dir():
        print(f"no CIFAR-100 and weights in {shared}: nothing measured. make bench SHARED=folder names another place.")
        return
    shared, work = shared.absolute(), HERE.parent / "runs"
    random_resnet18(work / "resnet18.safetensors")
    for command in commands(shared, work):
        if only and command.name not in only.split(","):
            continue
        missing = [str(path) for path in command.needs if not path.exists()]
        if missing:
            print(f"left out, no {', '.join(missing)}: {', '.join(command.writes)}", flush=True)
            continue
        line = command.line(keep)
        print(" ".join(line), flush=True)
        subprocess.run(line, check=True)


if __name__ == "__main__":
    typer.run(main)
