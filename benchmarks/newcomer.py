"""A newcomer's path, timed: from an empty environment to a faster artefact of a model of their own on their own images.

    python benchmarks/newcomer.py --work runs/newcomer

Three commands, typed in a folder that holds mynet.py (a network in plain torch that loads its own weights) and photos
(PNG files in a folder for each class): pip install, sinf optimize, sinf predict. Network and images are the embedded
ones, of which sinf knows nothing there. How long an installation takes depends on the network more than on sinf.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from table import Beside, Table

from sinf import Preprocessing, load_images

HERE = Path(__file__).parent
ASSETS = HERE.parent / "src" / "sinf" / "assets"
COLUMNS = ("number", "command", "seconds", "says", "load", "device", "date", "versions")
LONGEST = 300  # characters of what a command says
NETWORK = """
import torch
from safetensors.torch import load_file
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for width in (32, 64, 128, 256, 256):
            for _ in range(2):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(before, 100)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def make():
    net = Net()
    net.load_state_dict(load_file("weights.safetensors"))
    return net
"""
FED = "--mean 0.5071,0.4865,0.4409 --std 0.2673,0.2564,0.2762"
COMMANDS = (
    "pip install sinf[onnx]",
    f"sinf optimize mynet:make {FED} --data photos --score train --calibrate test --max-loss 1 "
    "--precision f32 --precision int8 --out fast",
    "sinf predict fast photos/test --out classes.csv",
)


def main(
    work: Annotated[Path, typer.Option(help="Folder for all of it; what was there is removed.")],
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    shutil.rmtree(work, ignore_errors=True)
    prepare(work)
    subprocess.run([sys.executable, "-m", "venv", work / "env"], check=True)
    table = Table("newcomer_cpu.csv", COLUMNS, ("number",), loaded=loaded)
    for number, command in enumerate(COMMANDS, 1):
        beside, start = Beside(), time.perf_counter()
        said = run(command, work)
        seconds, load = time.perf_counter() - start, beside.load()
        row = {"number": number, "command": command, "seconds": seconds, "says": said[-LONGEST:], "load": load}
        print(table.add(**row), flush=True)


def prepare(work: Path) -> None:
    """The folder as a newcomer has it."""
    shape = Preprocessing((3, 32, 32), (0.5,) * 3, (0.25,) * 3)
    for name, split in (("train", "scoring"), ("test", "calibration")):
        images = load_images(ASSETS / "cifar100_subset", split)
        for row, (pixels, label) in enumerate(zip(images.pixels(shape).numpy(), images.labels.tolist(), strict=True)):
            place = work / "photos" / name / images.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{row}.png")
    (work / "mynet.py").write_text(NETWORK)
    shutil.copy(ASSETS / "vgg13_cifar100.safetensors", work / "weights.safetensors")


def run(command: str, work: Path) -> str:
    """What a command of the new environment says; this very sinf is installed, with the versions that are tested."""
    words = command.split()
    if words[0] == "pip":
        tested = ["-c", str(HERE.parent / "constraints.txt")]
        pip = [str(work / "env" / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", *tested]
        torch = next(line for line in Path(tested[1]).read_text().splitlines() if line.startswith("torch=="))
        subprocess.run([*pip, torch], check=True)  # first, so that nothing brings another build of it
        subprocess.run([*pip, f"{HERE.parent}[onnx]"], check=True)
        return ""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["SINF_CACHE"] = ""  # a newcomer has timed no layers yet
    line = [str((work / "env" / "bin" / words[0]).absolute()), *words[1:]]
    done = subprocess.run(line, cwd=work, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}\n{done.stderr}")
    return " ".join(done.stdout.split())


if __name__ == "__main__":
    typer.run(main)
