r"""Networks from elsewhere, as a user meets them: what the commands take, what they say, and what they deliver.

    python benchmarks/foreign.py CIFAR100 --work runs/foreign [--only prune]

Three kinds: compact with depthwise convolutions and squeeze-and-excite at 64 pixels (MobileNetV3-small, 56.8 % top-1 on
test[:50%]; its weights are in benchmarks/weights and took an hour and a half of one busy core:

    sinf train timm:mobilenetv3_small_100 --size 3,64,64 --mean 0.5071,0.4865,0.4409 --std 0.2673,0.2564,0.2762 \
        --data CIFAR100 --split train --epochs 36 --learning-rate 0.3 --weight-decay 5e-5 --half --out runs/compact

), densely connected at 32 pixels (DenseNet-BC-100-12), and 224 pixels with
600 images (MobileNetV2). Networks without weights are random: their times and memory count, their losses say nothing.
Beside them VGG16, of the weights in ../weights of the data.
Every command runs in a process of its own. Exit code 3 says that nothing pays, and that nothing was written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from networks import COMPACT_WEIGHTS
from table import Table

from sinf.measure.timing import OtherProcesses

HERE = Path(__file__).parent
COLUMNS = (
    "network", "trained", "command", "images", "code", "seconds", "processor_seconds", "peak_bytes", "expected_loss",
    "loss", "time_saved", "macs_saved", "says", "load", "device", "threads", "date", "versions",
)  # fmt: skip
CIFAR = ("--mean", "0.5071,0.4865,0.4409", "--std", "0.2673,0.2564,0.2762")
RANDOM = """
import sys, torch
from safetensors.torch import save_file
from sinf.models import load_model
torch.manual_seed(0)
name, path, classes = sys.argv[1:]
save_file(load_model(name, classes=int(classes), size=(3, 224, 224), pretrained=False).module.state_dict(), path)
"""


@dataclass(frozen=True)
class Network:
    """A network on the command line; ``images`` score it. One that was ``trained`` saw all train images, and has
    ``test[:50%]`` to be validated and calibrated on, ``test[50%:]`` to be reported on."""

    name: str
    words: tuple[str, ...]
    images: int
    trained: bool = False
    only: tuple[str, ...] = ()


def networks(work: Path, data: Path) -> Iterator[Network]:
    compact = ("timm:mobilenetv3_small_100", "--size", "3,64,64", *CIFAR, "--weights", str(COMPACT_WEIGHTS))
    yield Network("mobilenetv3-small", compact, 4000, trained=True)
    yield Network("densenet-bc", ("networks:densenet", "--size", "3,32,32", *CIFAR), 4000)
    large = random_weights("timm:mobilenetv2_100", work / "mobilenetv2.safetensors")
    yield Network("mobilenetv2", ("timm:mobilenetv2_100", "--weights", str(large), "--size", "3,224,224"), 600)
    usual = data.parent.parent / "weights" / "vgg16_cifar100.safetensors"
    if usual.exists():  # what the compact network stands beside
        yield Network("vgg16", ("vgg16", "--weights", str(usual)), 4000, trained=True, only=("prune", "build"))


def random_weights(name: str, path: Path) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", RANDOM, name, str(path), "100"], check=True)
    return path


def commands(network: Network, data: Path, out: Path) -> dict[str, list[object]]:
    scored = f"train[:{network.images}]"
    few = ["--data", data, "--threads", 2]
    prune = ["prune", *network.words, *few, "--score", scored, "--images", network.images]
    prune += ["--validate", "test[:50%]", "--test", "test[50%:]"] if network.trained else ["--test", "test[:1000]"]
    held = "test[:50%]" if network.trained else "test[:1000]"
    build = ["build", *network.words, *few, "--score", scored, "--route", scored, "--calibrate", held]
    seven = ["--macs", 0.7, "--max-loss", 2]
    found: dict[str, list[object]] = {
        "prune": [*prune, "--max-loss", 1, "--out", out / "prune"],
        "prune by ranks": [*prune, *seven, "--method", "ranks", "--out", out / "ranks"],
        "prune by channels": [*prune, *seven, "--method", "channels", "--out", out / "channels"],
        "build": [*build, "--max-loss", 1, "--out", out / "bundle"],
        "dynamic train": [
            "dynamic", "train", *network.words, *few, "--split", scored, "--epochs", 1, "--out", out / "dynamic"
        ],
    }  # fmt: skip
    return {name: words for name, words in found.items() if not network.only or name in network.only}


def main(
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder for what is made.")],
    only: Annotated[
        str, typer.Option(help="Networks, commands, or one of a network as NETWORK:COMMAND, with commas between.")
    ] = "",
    keep: Annotated[bool, typer.Option(help="Leave out what is in the file.")] = False,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    table = Table("foreign_cpu.csv", COLUMNS, ("network", "command"), keep=keep, loaded=loaded, threads=2)
    wanted = only.split(",") if only else []
    for network in networks(work, data):
        for name, words in commands(network, data, work / network.name).items():
            asked = not wanted or {name, network.name, f"{network.name}:{name}"} & set(wanted)
            if not asked or table.has(network=network.name, command=name):
                continue
            row = run(words, work / network.name / f"{name.replace(' ', '-')}.json")
            table.add(network=network.name, trained=network.trained, command=name, images=network.images, **row)
            print(network.name, name, row, flush=True)


def run(words: list[object], record: Path) -> dict[str, Any]:
    """What a command took and said."""
    record.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    path = os.pathsep.join([str(HERE.parent / "src"), str(HERE), os.environ.get("PYTHONPATH", "")])
    line = [sys.executable, "-m", "sinf", *map(str, words)]
    if words[0] != "dynamic":
        line += ["--json", str(record)]
    log, others, start = record.with_suffix(".log"), OtherProcesses(), time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(line, stdout=file, stderr=file, env=os.environ | {"PYTHONPATH": path})
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds, load = time.perf_counter() - start, others.load()
    said = log.read_text()
    last = [each for each in said.splitlines() if each.strip()][-1:] or [""]
    found = json.loads(record.read_text()) if record.exists() else {}
    expected, base = found.get("expected_loss") or {}, found.get("base") if "pruned" in found else None
    times = found.get("times") or found.get("latency") or [{}]
    return {
        "code": process.returncode,
        "seconds": seconds,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "load": load and max(0.0, load - (used.ru_utime + used.ru_stime) / seconds),
        "peak_bytes": used.ru_maxrss * 1024,
        "expected_loss": expected.get("points"),
        "loss": found.get("loss"),
        "time_saved": times[0].get("time_saved"),
        "macs_saved": None if base is None else 1 - found["pruned"]["macs"] / base["macs"],
        "says": last[0][:300],
    }


if __name__ == "__main__":
    typer.run(main)
