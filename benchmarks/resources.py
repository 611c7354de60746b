"""What a bundle of VGG16 costs: build time and memory, load time, disk, and memory while all clusters are served.

python benchmarks/resources.py WEIGHTS CIFAR100 runs/resources
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from table import Beside, Table

NAME = "resources_vgg16_cpu.csv"
COLUMNS = ("what", "seconds", "bytes", "of_base", "count", "load", "device", "date", "versions")
SERVE = """
import ctypes, gc, sys, time
import torch
from sinf import SemanticModel
from sinf.routing.router import part_name
from sinf.measure.accuracy import memory_bytes
from sinf.measure.timing import OtherProcesses
torch.set_num_threads(1)
torch.set_grad_enabled(False)
# What a process imports and sets up at its first model is no cost of this one.
x = torch.randn(1, 3, 32, 32)
warm = SemanticModel.from_pretrained(sys.argv[1], memory_budget=0)
warm(x)
del warm
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
budget = None if sys.argv[2] == "none" else int(sys.argv[2])
before, anonymous = memory_bytes(), memory_bytes("RssAnon")
others = OtherProcesses()
start = time.perf_counter()
model = SemanticModel.from_pretrained(sys.argv[1], memory_budget=budget)
loaded = time.perf_counter() - start
features = model.extractor(x)
start = time.perf_counter()
for _ in range(2):
    for cluster in range(len(model.bundle.clusters)):
        model.run_subgraph(cluster, features)
    model.run_full_tail(features)
made = (time.perf_counter() - start) / (2 * len(model.bundle.clusters) + 2)
gc.collect()
base = sum(p.numel() * p.element_size() for p in model.network.graph.parameters())
print(loaded, made, memory_bytes() - before, memory_bytes("RssAnon") - anonymous)
print(base, model.tails.bytes, model.tails.made, others.load())
"""


def main(
    weights: Path,
    data: Path,
    work: Path,
    bundle: Annotated[
        Path | None, typer.Option(help="Measure this bundle instead of building one; what a build costs stays.")
    ] = None,
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    rows: list[dict[str, Any]] = []
    out = work / "bundle" if bundle is None else bundle
    if bundle is None:
        shutil.rmtree(work, ignore_errors=True)
        rows.append(build(weights, data, out))
    base = (out / "model.safetensors").stat().st_size
    for path in sorted(out.iterdir()):
        rows.append({"what": f"disk: {path.name}", "bytes": path.stat().st_size})
    for budget in ("none", str(base), str(base // 2)):
        serve = [sys.executable, "-c", SERVE, str(out), budget]
        answer = subprocess.run(serve, capture_output=True, text=True, check=True)
        *numbers, load = answer.stdout.split()
        seconds, made, resident, anonymous, parameters, owned, count = map(float, numbers)
        taken = None if load == "None" else float(load)
        name = {"none": "no budget", str(base): "budget: one base model"}.get(budget, "budget: half a base model")
        rows += [
            {"what": f"from_pretrained ({name})", "seconds": seconds, "load": taken},
            {"what": f"all clusters served twice ({name}): a subgraph", "seconds": made, "count": count, "load": taken},
            {"what": f"resident memory added ({name})", "bytes": resident, "of_base": resident / parameters},
            {"what": f"of it not file-backed ({name})", "bytes": anonymous, "of_base": anonymous / parameters},
            {"what": f"owned by subgraphs ({name})", "bytes": owned, "of_base": owned / parameters},
        ]
    table = Table(NAME, COLUMNS, ("what",), loaded=loaded)
    for row in rows:
        table.add(**row)
        print(row)
    if bundle is None:
        table.forget_older()


def build(weights: Path, data: Path, out: Path) -> dict[str, object]:
    """Build from 10,000 scoring images in a process of its own, with the largest memory that it had."""
    command = [
        "build", "vgg16", "--keep-anyway", "--weights", weights, "--data", data, "--score", "train[:10000]",
        "--route", "train", "--calibrate", "test[:50%]", "--cut", "features.23", "--whole", "0.75", "--macs", "0.12",
        "--weight-cost", "32", "--max-loss", "1", "--threads", "2", "--work", out.with_name("steps"), "--out", out,
    ]  # fmt: skip
    beside, start = Beside(), time.perf_counter()
    program = "from sinf.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, command)])
    peak = _watch(process)
    if process.wait() != 0:
        raise SystemExit("the build failed")
    elapsed, load = time.perf_counter() - start, beside.load()
    return {"what": "build from 10,000 scoring images, two threads", "seconds": elapsed, "bytes": peak, "load": load}


def _watch(process: subprocess.Popen) -> int:
    """Largest resident memory of a process while it runs."""
    peak = 0

    def look() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM"):
                        peak = max(peak, int(line.split()[1]) * 1024)
            except OSError:
                pass
            time.sleep(0.5)

    watcher = threading.Thread(target=look)
    watcher.start()
    watcher.join()
    return peak


if __name__ == "__main__":
    typer.run(main)
