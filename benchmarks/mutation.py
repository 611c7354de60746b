"""Mutation score: which share of small faults in a module do its tests notice?

    python benchmarks/mutation.py --when after                       # all modules; some 20 minutes of one core
    python benchmarks/mutation.py --module routing.threshold --module routing.router
    python benchmarks/mutation.py --sample 40 --seed 1               # 40 mutants of every module, drawn at random

A mutant is the module with one operation changed (DeMillo, Lipton & Sayward, Hints on Test Data Selection, 1978); it is
killed when a test of the module fails (mutants.py makes them).

Libraries are imported once and every mutant is a fork of that process, where its source takes the place of the module's
before sinf is imported. The tests run once on the module as it is, in a fork too, to learn which of them run which
statement: a mutant meets those alone, and one that none of them runs survives without a run. A test that fails on the
module as it is, is named and left out. A mutant that passes ``LIMIT`` times the time of its tests counts as a timeout.
``mutation_equivalent.csv`` holds mutants that compute the same as the module, each with the reason: they are counted
apart, and so are invalid ones (a call without a required argument). Survivors go to runs/mutation/.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import csv
import gc
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "sinf"
EQUIVALENT = Path(__file__).parent / "mutation_equivalent.csv"
LIMIT, LEAST_SECONDS = 5.0, 15.0
MEMORY = 8 << 30  # bytes of address space that a mutant may take beyond those of this process
PRELOADED = ("torch", "torch.fx", "sklearn.linear_model", "datasets", "PIL.Image", "safetensors.torch", "hypothesis",
             "pytest", "typer", "huggingface_hub")  # fmt: skip
QUICK = ("-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:unraisableexception")

#: What is not run for every mutant: engines other than torch need exports of many seconds, simulations many draws.
SLOW = ("-k", "not onnx and not openvino and not export and not stored and not promise_breaks and not best_of_many")

#: Tests of every module, the quickest first.
MODULES: dict[str, tuple[str, ...]] = {
    "routing.paired_test": ("tests/routing/test_paired_test.py",),
    "routing.threshold": ("tests/routing/test_threshold_formulas.py", "tests/routing/test_threshold.py"),
    "pipelines.calibration": ("tests/pipelines/test_calibration.py", "tests/bundle/test_semantic.py"),
    "routing.router": ("tests/routing/test_router.py", "tests/routing/test_grouping.py",
                       "tests/bundle/test_semantic.py", "tests/engine/test_conformance.py"),
    "routing.deferral": ("tests/routing/test_deferral.py", "tests/routing/test_threshold_formulas.py"),
    "bundle.semantic": ("tests/bundle/test_semantic.py", "tests/routing/test_grouping.py",
                        "tests/bundle/test_hostile_files.py"),
    "compress.least_squares": ("tests/compress/test_least_squares.py", "tests/compress/test_reconstruct.py"),
    "compress.reconstruct": ("tests/compress/test_reconstruct.py",),
    "compress.low_rank.solve": ("tests/compress/test_low_rank_solve.py", "tests/compress/test_low_rank.py"),
}  # fmt: skip

COLUMNS = ("when", "module", "mutants", "killed", "timeout", "survived", "not_run", "share", "equivalent", "invalid",
           "tests", "seconds", "sample", "seed", "device", "date", "commit", "versions")  # fmt: skip

# ---- forks


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from code that is given."""

    def __init__(self, module: str, path: Path, code: Any) -> None:
        self.name, self.path, self.code = f"sinf.{module}", path, code

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def exec_module(self, module: Any) -> None:
        exec(self.code, module.__dict__)


class Observer:
    """Plugin of pytest: which tests run, which lines of the module each of them runs, how long it takes, how it ends.

    Lines that a fixture runs count for every test that asks for the fixture, whichever was the first.
    """

    def __init__(self, path: Path, only: set[str] | None) -> None:
        self.path, self.only = str(path), only
        self.within: list[str] = []
        self.lines: dict[str, set[int]] = collections.defaultdict(set)
        self.fixtures: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.failed: dict[str, str] = {}
        self.invalid = False

    def pytest_sessionstart(self) -> None:
        from hypothesis import Phase, settings

        # An example that fails is enough: it need not be made smaller.
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutation", parent=settings.get_profile("sinf"), phases=phases)
        settings.load_profile("mutation")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.only is not None:
            items[:] = [item for item in items if item.nodeid in self.only]
        for item in items:
            self.fixtures[item.nodeid] = [f"fixture {name}" for name in getattr(item, "fixturenames", ())]

    def called(self, frame: Any, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename == self.path else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        for context in self.within or ("import",):
            self.lines[context].add(frame.f_lineno)
        return self._line

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        with self._inside(f"fixture {fixturedef.argname}"):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        with self._inside(item.nodeid):
            return (yield)

    @contextlib.contextmanager
    def _inside(self, context: str) -> Iterator[None]:
        self.within.append(context)
        try:
            yield
        finally:
            self.within.pop()

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        self.seconds[item.nodeid] += call.duration
        if call.excinfo is not None and call.excinfo.typename != "Skipped":
            error = call.excinfo.value
            self.invalid |= isinstance(error, TypeError) and "required" in str(error) and "argument" in str(error)
            self.failed[item.nodeid] = f"{call.excinfo.typename}: {str(error)[:200]}"

    def lines_of(self, test: str) -> set[int]:
        return set().union(self.lines["import"], self.lines[test], *(self.lines[f] for f in self.fixtures[test]))


@dataclass(frozen=True)
class Ended:
    """How a fork ended: what it returned, or None when it died, and whether that was for its time."""

    answer: Any
    timeout: bool


def apart(work: Callable[[Path], Any], seconds: float | None = None) -> Ended:
    """Run ``work`` in a fork, with a folder that is removed after it, and ``seconds`` of processor time."""
    reading, writing = os.pipe()
    folder = Path(tempfile.mkdtemp(prefix="sinf-mutant-"))
    sys.stdout.flush()
    process = os.fork()
    if not process:
        _child(work, folder, seconds, writing)
    os.close(writing)
    try:
        data, late = _read(reading, None if seconds is None else time.monotonic() + 8 * seconds)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        shutil.rmtree(folder, ignore_errors=True)
    timeout = late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU)
    return Ended(json.loads(data) if data else None, timeout and not data)


def _child(work: Callable[[Path], Any], folder: Path, seconds: float | None, writing: int) -> None:
    try:
        os.setsid()
        tempfile.tempdir = str(folder)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if seconds is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 5))
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
        answer = json.dumps(work(folder)).encode()
        while answer:
            answer = answer[os.write(writing, answer) :]
    finally:
        os._exit(0)


def _read(reading: int, deadline: float | None) -> tuple[bytes, bool]:
    """All that a fork writes, and whether it was still silent at the deadline."""
    data = b""
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reading], [], [], left)[0]:
            return b"", True
        part = os.read(reading, 1 << 16)
        if not part:
            return data, False
        data += part


def run_tests(module: str, tests: tuple[str, ...], folder: Path, code: Any, only: set[str] | None) -> Observer:
    """The tests of a module, whose code is given; ``only`` some of them, until the first fails, or all."""
    path = path_of(module)
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    sys.meta_path.insert(0, Instead(module, path, code))
    observer = Observer(path, only)
    options = [*QUICK, f"--basetemp={folder / 'pytest'}", "--rootdir", str(ROOT)]
    if only is None:
        sys.settrace(observer.called)
    status = pytest.main([*options, *(["-x"] if only is not None else []), *tests], plugins=[observer])
    sys.settrace(None)
    if status and not observer.failed:
        observer.failed["import"] = str(status)
    return observer


def path_of(module: str) -> Path:
    return SOURCE.joinpath(*module.split(".")).with_suffix(".py")


# ---- the run


@dataclass(frozen=True)
class Tests:
    """The tests of a module that pass on it: their seconds, and the lines that each of them runs."""

    arguments: tuple[str, ...]
    seconds: dict[str, float]
    lines: dict[str, set[int]]
    failed: dict[str, str]

    @staticmethod
    def of(module: str) -> Tests:
        arguments = (*(path for path in MODULES[module] if (ROOT / path).exists()), *SLOW)
        code = compile(path_of(module).read_text(), path_of(module), "exec")

        def work(folder: Path) -> dict[str, Any]:
            seen = run_tests(module, arguments, folder, code, None)
            lines = {test: sorted(seen.lines_of(test)) for test in seen.seconds}
            return {"seconds": seen.seconds, "lines": lines, "failed": seen.failed}

        known = apart(work).answer
        if not known or "import" in known["failed"] or not known["seconds"]:
            raise SystemExit(f"the tests of {module} cannot be run: {known and known['failed']}")
        passed = known["seconds"].keys() - known["failed"].keys()
        lines = {test: set(known["lines"][test]) for test in known["seconds"] if test in passed}
        return Tests(arguments, known["seconds"], lines, known["failed"])

    def running(self, mutant: Mutant) -> set[str]:
        return {test for test, lines in self.lines.items() if not lines.isdisjoint(mutant.lines)}


def outcome(module: str, tree: ast.Module, mutant: Mutant, tests: Tests) -> tuple[str, str]:
    """killed, timeout, survived, not_run or invalid; and what killed it."""
    only = tests.running(mutant)
    if not only:
        return "not_run", ""

    def work(folder: Path) -> dict[str, Any]:
        mutant.apply()
        code = compile(ast.fix_missing_locations(tree), path_of(module), "exec")
        seen = run_tests(module, tests.arguments, folder, code, only)
        return {"failed": seen.failed, "invalid": seen.invalid}

    ended = apart(work, LEAST_SECONDS + LIMIT * sum(tests.seconds[test] for test in only))
    if ended.timeout:
        return "timeout", ""
    if ended.answer is None:
        return "killed", "the process died"
    by = "; ".join(f"{test} ({why})" for test, why in ended.answer["failed"].items())
    return ("invalid" if ended.answer["invalid"] else "killed" if by else "survived"), by


def equivalent() -> set[tuple[str, ...]]:
    """Keys of the mutants that compute the same."""
    if not EQUIVALENT.exists():
        return set()
    with EQUIVALENT.open(newline="") as file:
        return {
            tuple(row[c] for c in ("module", "text", "operator", "before", "after")) for row in csv.DictReader(file)
        }


def measure(module: str, sample: int | None, seed: int, report: Path) -> dict[str, Any]:
    """Counts of a module's mutants; survivors are printed, and all ends are written to ``report``."""
    begun = processor_seconds()
    tests = Tests.of(module)
    for test, why in tests.failed.items():
        print(f"left out, it fails on the module as it is: {test}: {why}")
    tree, every = mutants(path_of(module).read_text())
    chosen = sorted(random.Random(seed).sample(range(len(every)), min(sample or len(every), len(every))))
    same, counts = equivalent(), collections.Counter[str]()
    print(f"{module}: {len(chosen)} of {len(every)} mutants, {len(tests.lines)} tests", flush=True)
    with report.open("w") as file:
        for number, index in enumerate(chosen, 1):
            mutant = every[index]
            key = (module, mutant.text, mutant.operator, mutant.before, mutant.after)
            ended, by = ("equivalent", "") if key in same else outcome(module, tree, mutant, tests)
            counts[ended] += 1
            print(f"{ended}\t{path_of(module).relative_to(ROOT)}:{mutant}\t{by}", file=file, flush=True)
            if ended in ("survived", "not_run"):
                print(f"  {ended} {path_of(module).name}:{mutant}", flush=True)
            if number % 50 == 0:
                spent = processor_seconds() - begun
                print(f"  {number} of {len(chosen)}, {spent:.0f} s, {spent / number:.2f} s each", flush=True)
    caught, lived = counts["killed"] + counts["timeout"], counts["survived"] + counts["not_run"]
    return {
        "module": module, "mutants": caught + lived, "killed": counts["killed"], "timeout": counts["timeout"],
        "survived": lived, "not_run": counts["not_run"], "share": caught / max(1, caught + lived),
        "equivalent": counts["equivalent"], "invalid": counts["invalid"], "tests": len(tests.lines),
        "seconds": processor_seconds() - begun, "sample": sample or "", "seed": seed if sample else "",
    }  # fmt: skip


def processor_seconds() -> float:
    """Of all forks that ended; wall time would tell what else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def record(row: dict[str, Any]) -> None:
    """Put a row into the table, in a fork: it imports sinf."""

    def work(folder: Path) -> bool:
        sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]
        from table import Table

        Table("mutation.csv", COLUMNS, ("when", "module")).add(**row)
        return True

    if not apart(work).answer:
        raise SystemExit(f"the row cannot be written: {row}")


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "src", "tests") else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--when", default="now", help="Name of the run in benchmarks/results/mutation.csv.")
    parser.add_argument("--module", action="append", choices=MODULES, help="A module; all of them by default.")
    parser.add_argument("--sample", type=int, help="How many mutants of a module, drawn at random; all by default.")
    parser.add_argument("--seed", type=int, default=0, help="Of that draw.")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in PRELOADED:
        importlib.import_module(name)
    compiled = tempfile.TemporaryDirectory(prefix="sinf-mutation-")  # of sources as they are, shared by all forks
    sys.pycache_prefix, sys.dont_write_bytecode = compiled.name, False
    if threading.active_count() > 1 or any(name.split(".")[0] == "sinf" for name in sys.modules):
        raise SystemExit("a fork needs one thread, and no module of sinf")
    gc.freeze()  # what is here now is not searched again by every fork
    folder = ROOT / "runs" / "mutation"
    folder.mkdir(parents=True, exist_ok=True)
    for module in options.module or MODULES:
        row = measure(module, options.sample, options.seed, folder / f"{options.when}_{module}.txt")
        record(row | {"when": options.when, "commit": commit()})
        print(f"{module}: {100 * row['share']:.1f} % of {row['mutants']} killed, {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
