"""Runs a verb in a process that may not take more memory than it was told: ``VERB BYTES FOLDER``, and a bundle for the
verbs that take one.

Not a test; tests/test_memory_limit.py starts it.
"""

from __future__ import annotations

import resource
import sys
from contextlib import redirect_stderr
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from sinf.data.clusters import from_column
from sinf.data.images import LabelledImages, Preprocessing
from sinf.measure.accuracy import memory_bytes
from sinf.models import BaseModel, ModelSpec
from tiny import CLASSES, coloured_images, conv, randomise

SIDE = 96


class Wide(nn.Module):
    """Wide early maps, 2.4 MB each, many of which are alive at once while gradients are taken; little arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 1)
        self.early = nn.Sequential(*(conv(64, 64, groups=64) for _ in range(4)))
        self.narrow = nn.Sequential(nn.MaxPool2d(8), conv(64, 24))
        self.late = nn.Sequential(conv(24, 16), conv(16, 16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.late(self.narrow(self.early(self.stem(x).relu()))).mean((2, 3)))


def main(verb: str, budget: int, folder: Path, bundle: Path) -> None:
    torch.set_num_threads(1)
    preprocessing = Preprocessing((3, SIDE, SIDE), (0.5,) * 3, (0.25,) * 3)
    base = BaseModel(randomise(Wide()), ModelSpec("memory_child:Wide", CLASSES, preprocessing))
    images = coloured_images(folder / "images", 120, seed=0)
    other = coloured_images(folder / "other", 60, seed=1)
    # What is allocated beyond it fails. Libraries have reserved more than they use.
    most = memory_bytes("VmData") + budget - memory_bytes("VmRSS")
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    if verb in COMMANDS:
        command(verb, budget, folder, base, images, bundle)
    else:
        run(verb, budget, folder, base, images, other)
    print("peak", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


#: What is typed; BUNDLE is one that "build" wrote, DATA are its images, FILES are some of them as files, OWN is the
#: model by its factory, and OUT is what is written.
COMMANDS = {
    "predict": "predict BUNDLE FILES --out OUT.csv --allow-factory",
    "bench": "bench BUNDLE --data DATA --split train --pairs 2 --allow-factory",
    "tune": "tune BUNDLE --turns 1 --allow-factory",
    "export": "export BUNDLE OUT --allow-factory",
    "bench in int8": "bench BUNDLE --data DATA --split train[:50%] --calibrate train[50%:] --pairs 2 --allow-factory "
    "--engine onnxruntime --precision int8",
    "export in int8": "export BUNDLE OUT --data DATA --split train --precision int8 --allow-factory",
    "optimize": "optimize OWN --data DATA --score train[:50%] --calibrate train[50%:] --max-loss 90 --images 60 "
    "--precision f32 --precision int8 --minutes 0.2 --out OUT",
    "prune": "prune OWN --data DATA --score train[:50%] --validate train[50%:75%] --test train[75%:] --macs 0.8 "
    "--pairs 2 --round-to 4 --keep-anyway --out OUT",
}  # fmt: skip


def command(verb: str, budget: int, folder: Path, base: BaseModel, images: LabelledImages, bundle: Path) -> None:
    """Type it, with the budget."""
    from safetensors.torch import save_file

    from sinf.cli import main as sinf

    words = {"BUNDLE": bundle, "DATA": folder / "images", "FILES": folder / "files", "OUT": folder / "out"}
    if "FILES" in COMMANDS[verb]:
        words["FILES"].mkdir()
        for number, pixels in enumerate(images.pixels(base.spec.preprocessing, 0, 40)):
            Image.fromarray(pixels.numpy()).save(words["FILES"] / f"{number}.png")
    save_file(base.module.state_dict(), folder / "own.safetensors")
    own = f"memory_child:Wide --weights {folder / 'own.safetensors'} --size 3,{SIDE},{SIDE} --threads 1"
    line = COMMANDS[verb].replace("OWN", own)
    for name, path in words.items():
        line = line.replace(name, str(path))
    sys.argv = ["sinf", *line.split(), "--memory", f"{budget / 1e9:g}GB"]
    with redirect_stderr(sys.stdout):
        try:
            sinf()
        except SystemExit as stop:
            if stop.code not in (None, 0, 3):  # 3: nothing pays, which is said
                raise


def run(verb: str, budget: int, folder: Path, base: BaseModel, images: LabelledImages, other: LabelledImages) -> None:
    from sinf.dynamic.targets import Target
    from sinf.dynamic.trainer import TrainConfig, train
    from sinf.measure.limits import Limits
    from sinf.pipelines.build import BuildConfig, Images, build
    from sinf.pipelines.prune import Amount, PruneConfig, prune
    from sinf.routing.predictor import RouterConfig

    if verb in ("channels", "ranks", "checked"):
        # Checked: with images that are held out, on which predictions and the loss are, and times.
        limits = Limits(1.0, pairs=2, keep_anyway=True) if verb == "checked" else None
        share, method = (0.95, "ranks") if verb == "ranks" else (0.8, "channels")
        config = PruneConfig(Amount(macs=share), method=method, limits=limits, round_to=4, images=120, memory=budget)
        prune(base, images, config, folder / "work", validation=other if limits else None, notice=print)
    elif verb == "build":
        build_config = BuildConfig(
            cut="early.2", max_loss=0.9, route_draws=120, router=RouterConfig(epochs=1, hidden=8), round_to=4,
            macs=0.8, memory=budget, keep_anyway=True,
        )  # fmt: skip
        build(base, Images(images, images, other), from_column(images), build_config, folder / "bundle", notice=print)
    elif verb == "clusters":
        from sinf.routing.clustering import find_clusters

        find_clusters(base, images, check=other, cut="early.2", memory=budget, notice=print)
    elif verb in ("eval", "train", "answers", "profile"):
        # What the command line says, and runs after it.
        kinds = {"eval": evaluate, "train": train_plainly, "answers": answer, "profile": profile}
        with redirect_stderr(sys.stdout):
            kinds[verb](budget, folder, base, images)
    else:
        training = TrainConfig(Target(channels=0.8), epochs=1, batch=120, memory=budget)
        train(base, images, folder / "run", training, notice=print)


def evaluate(memory: int, folder: Path, base: BaseModel, images: LabelledImages) -> None:
    from sinf.cli.room import Need, fit
    from sinf.measure.plain import evaluate as run
    from sinf.pipelines.comparison import save

    model = save(base, folder / "static", images.class_names)
    need = Need.of_model(model.base_model()).beside(Need.of_model(base))
    fit(memory, "evaluation", need, model.preprocessing, images)
    run(model, images, base)


def answer(memory: int, folder: Path, base: BaseModel, images: LabelledImages) -> None:
    """Images without labels get the model's own answers, in every verb that takes them."""
    from sinf.cli.room import Need, fit
    from sinf.measure.answers import answered_by

    fit(memory, "answers", Need.of_model(base), base.spec.preprocessing, images)
    answered_by(base, images)


def profile(memory: int, folder: Path, base: BaseModel, images: LabelledImages) -> None:
    from sinf.cli.room import Need, fit
    from sinf.measure.profile import profile as run

    fit(memory, "profile", Need.of_model(base), base.spec.preprocessing, most=1)
    run(base, runs=3)


def train_plainly(memory: int, folder: Path, base: BaseModel, images: LabelledImages) -> None:
    """In the batch that the refusal of a larger one names."""
    from sinf.cli.room import fit_training
    from sinf.errors import ConfigError
    from sinf.training.train import TrainConfig, train

    batch = 120
    try:
        fit_training(memory, base, images, images, batch=batch, on_cpu=True)
    except ConfigError as error:
        batch = int(str(error).split("--batch ")[1])
    fit_training(memory, base, images, images, batch=batch, on_cpu=True)
    start = base.module.state_dict()
    train(base.spec, images, folder / "run", TrainConfig(epochs=1, batch=batch), start=start, validation=images)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[-1]))
