"""What `sinf prune` wrote, run as its user runs it, beside the times that were printed.

    python benchmarks/as_saved.py CIFAR100 --work runs/as_saved

`sinf prune` prints the time of the folder that it writes beside those of the user's own model. Then a process in which
sinf cannot be imported loads the folder by its own load.py, and the user's model by the user's own code, and times both
in turns: one thread, without gradients, as many rounds as were printed of, each model a few times before the run that
counts (sinf/measure/timing.py says why).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import newcomer
import torch
import typer
from foreign import networks
from table import Table

from sinf.measure.timing import Latency, OtherProcesses, summary

HERE = Path(__file__).parent
PAIRS = 200
COLUMNS = (
    "network", "batch", "threads", "pairs", "printed_own_ms", "printed_ms", "printed_saved", "own_ms", "own_ms_low",
    "own_ms_high", "ms", "ms_low", "ms_high", "time_saved", "time_saved_low", "time_saved_high", "load", "device",
    "date", "versions",
)  # fmt: skip
OUTSIDER = """
import json, sys, time
sys.modules["sinf"] = None  # an import of it fails
folder, size, batch, pairs = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sys.path.insert(0, folder)
import torch
from load import load
torch.set_num_threads(1)
models, x = [make().eval(), load(folder)], torch.randn(batch, *size)
took, times = [0.01, 0.01], [[], []]
with torch.no_grad():
    for pair in range(-pairs // 10, pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            for _ in range(min(8, int(0.01 / took[which]))):
                models[which](x)
            start = time.perf_counter()
            models[which](x)
            took[which] = time.perf_counter() - start
            if pair >= 0:
                times[which].append(1000 * took[which])
print(json.dumps(times))
"""
TIMM = """
import timm
from safetensors.torch import load_file
def make():
    model = timm.create_model("mobilenetv3_small_100", num_classes=100)
    model.load_state_dict(load_file({weights!r}))
    return model
"""


@dataclass(frozen=True)
class Case:
    """A network on the command line, and in the user's own code; commands run in ``folder``."""

    name: str
    words: tuple[str, ...]
    code: str
    size: tuple[int, int, int]
    folder: Path


def cases(data: Path, work: Path) -> Iterator[Case]:
    few = ("--score", "train[:4000]", "--test", "test[:1000]")
    compact = next(each for each in networks(work, data) if each.name == "mobilenetv3-small")
    code = TIMM.format(weights=compact.words[compact.words.index("--weights") + 1])
    yield Case(compact.name, (*compact.words, "--data", str(data), *few), code, (3, 64, 64), work)
    own = work / "own"
    newcomer.prepare(own)
    words = ("mynet:make", *newcomer.FED.split(), "--data", "photos", "--score", "train", "--test", "test")
    yield Case("own, of a file", words, "from mynet import make", (3, 32, 32), own)


def main(
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder for what is made.")],
    loaded: Annotated[bool, typer.Option(help="Write rows even if other processes ran meanwhile.")] = False,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    table = Table("as_saved_cpu.csv", COLUMNS, ("network", "batch"), loaded=loaded, threads=1)
    for case in cases(data.absolute(), work.absolute()):
        out, record = case.folder / "smaller", case.folder / "smaller.json"
        prune = ["prune", *case.words, "--macs", 0.7, "--method", "channels", "--keep-anyway", "--pairs", PAIRS]
        run(["-m", "sinf", *prune, "--threads", 1, "--out", out, "--json", record], case.folder)
        printed = json.loads(record.read_text())
        for own, ours in zip(printed["own_times"], printed["times"], strict=True):
            found = outside(case, out, ours["batch"], ours["pairs"])
            row = table.add(
                network=case.name, batch=ours["batch"], pairs=found.pairs,
                printed_own_ms=own["median"], printed_ms=ours["median"],
                printed_saved=1 - (1 - ours["time_saved"]) / (1 - own["time_saved"]),
                own_ms=found.base_median, own_ms_low=found.base_median_low, own_ms_high=found.base_median_high,
                ms=found.median, ms_low=found.median_low, ms_high=found.median_high, time_saved=found.time_saved,
                time_saved_low=found.low, time_saved_high=found.high,
                load=max(own["load"] or 0.0, ours["load"] or 0.0, found.load or 0.0),
            )  # fmt: skip
            print(row, flush=True)


def outside(case: Case, folder: Path, batch: int, pairs: int) -> Latency:
    """The user's own model beside what the folder's load.py makes, in a process without sinf."""
    others, start = OtherProcesses(), time.perf_counter()
    said, used = run(["-c", case.code + OUTSIDER, folder, json.dumps(case.size), batch, pairs], case.folder)
    load = others.load()
    if load is not None:
        load = max(0.0, load - used / (time.perf_counter() - start))
    times = torch.tensor(json.loads(said.splitlines()[-1]), dtype=torch.float64)
    return replace(summary(times, batch, 1), load=load)


def run(words: list[Any], folder: Path) -> tuple[str, float]:
    """What a command of Python says in a folder, and the processor time that it took."""
    path = os.pathsep.join([str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{words}\n{done.stdout}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    typer.run(main)
