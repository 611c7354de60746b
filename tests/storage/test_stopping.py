"""A command that is stopped, in any way and at any time, leaves nothing half written, and the same command goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

from program import Program
from sinf.cli.app import app
from sinf.errors import StorageError
from sinf.models import load_model
from sinf.storage import files
from sinf.storage.files import exclusive, replacing, replacing_folder
from sinf.storage.steps import StepStore

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

#: A verb that is in the middle of two writes; cleaning up takes a while.
HOLD = """
import shutil, sys, time
from pathlib import Path
import typer
from sinf.storage import files
from sinf.cli import app, options
remove = shutil.rmtree
def slowly(*words, **options):
    time.sleep(0.5)
    remove(*words, **options)
shutil.rmtree = slowly
@app.app.command()
def hold(context: typer.Context, out: Path):
    options.write_alone(context, out)
    with files.replacing_folder(out) as partial, files.replacing(out.with_name("record.json")) as record:
        (partial / "half").write_text("half")
        record.write_text("half")
        print("ready", flush=True)
        time.sleep(60)
@app.app.command()
def talk():
    for number in range(100_000):
        print(number)
app.main()
"""

#: The program with times that are made up, by which a cascade is fastest: those that are measured differ every time.
OPTIMIZE = """
from times import taking
from sinf.cli import app
from sinf.pipelines import optimize_search
optimize_search.interleaved = taking(lambda name: 4.0 if name.startswith("cascade") else 9.0)
optimize_search.layer_precision = lambda config: None
optimize_search.Search._in_torch = property(lambda search: {optimize_search.OWN: search.own})
app.main()
"""


def start(*words: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, words)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, **options)  # type: ignore[call-overload]


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts the verb, and waits until it writes."""
    processes = []

    def begin() -> subprocess.Popen[str]:
        process = start("-c", HOLD, "hold", tmp_path / "out")
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGINT, signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGINT], 143),
    ],
)
def test_a_signal_is_one_line_and_leaves_nothing(
    tmp_path: Path, holding: Callable[[], subprocess.Popen[str]], signals: list[signal.Signals], code: int
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "before").write_text("whole")
    process = holding()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)  # the next one comes while things are cleaned up
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err == "interrupted; the same command goes on from the last step that was finished\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["before"]


def test_one_command_at_a_time_and_a_killed_one_leaves_no_lock(
    tmp_path: Path, holding: Callable[[], subprocess.Popen[str]]
) -> None:
    process, out = holding(), tmp_path / "out"
    (tmp_path / "link").symlink_to(out)
    for name in (out, tmp_path / "." / "out", tmp_path / "link"):
        with pytest.raises(StorageError, match="only one command at a time"), exclusive(name):
            pass
    with exclusive(tmp_path / "other"):
        pass
    process.kill()
    process.wait()
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".out.")]) == 2  # a lock, and half a folder
    with exclusive(out), replacing_folder(out) as partial:
        (partial / "file").write_text("whole")
    with exclusive(tmp_path / "record.json"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


WRITERS = [
    ["optimize", "vgg11", "--data", "none", "--out", "OUT"],
    ["clusters", "vgg11", "--data", "none", "--out", "OUT/clusters.json"],
    ["build", "vgg11", "--data", "none", "--out", "OUT"],
    ["prune", "vgg11", "--data", "none", "--macs", "0.5", "--out", "OUT"],
    ["train", "vgg11", "--data", "none", "--out", "OUT"],
    ["dynamic", "train", "vgg11", "--data", "none", "--out", "OUT"],
    ["tune", "OUT"],
    ["report", "none", "--data", "none", "--out", "OUT/page.html"],
    ["export", "none", "OUT"],
    ["export", "none", "OUT/model.onnx", "--layout", "single"],
    ["dynamic", "export", "none", "OUT/model.onnx"],
    ["demo", "--out", "OUT"],
]


def test_no_verb_that_writes_is_missing_here() -> None:
    """``predict`` writes beside its file and renames, whatever another does; ``tune`` writes into a bundle."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    inner = {f"dynamic {name}": each for name, each in commands["dynamic"].commands.items()}
    writing = {name for name, each in (commands | inner).items() if "out" in {param.name for param in each.params}}
    named = {" ".join(words[: 2 if words[0] == "dynamic" else 1]) for words in WRITERS}
    assert named == writing - {"predict"} | {"tune"}


@pytest.mark.parametrize("words", WRITERS, ids=" ".join)
def test_every_verb_that_writes_is_refused_at_once(sinf: Program, tmp_path: Path, words: list[str]) -> None:
    """Before anything is read: there is no such data, nor such a bundle."""
    out = tmp_path / "out"
    out.mkdir()
    given = [word.replace("OUT", str(out)) for word in words]
    with exclusive(next(Path(word) for word in given if word.startswith(str(out)))):
        assert "only one command at a time may write" in sinf.refused(*given)
    assert "only one command" not in sinf.refused(*given) if words[0] != "demo" else True


def test_what_was_moved_away_is_put_back(tmp_path: Path) -> None:
    """As after a kill between the two renames."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("whole")
    partial = files._beside(out)
    partial.mkdir()
    os.replace(out, partial.with_name(partial.name + ".old"))
    with exclusive(out):
        assert (out / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_beside_which_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a disk is mounted: the lock lies in it."""
    monkeypatch.setattr(os, "access", lambda *words: False)
    with exclusive(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        with pytest.raises(StorageError, match="only one command"), exclusive(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written.*writable place"), exclusive(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_interrupt_between_renames_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    rename, calls = os.replace, []

    def interrupted(*words: Path) -> None:
        calls.append(words)
        if len(calls) == 1 + place // 2 and place % 2 == 0:
            raise KeyboardInterrupt
        rename(*words)
        if len(calls) == 1 and place == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)

    def write() -> None:
        with replacing_folder(out) as partial:
            (partial / "file").write_text("new")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "file").read_text() == "old"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "step.safetensors"
    with replacing(path) as one:
        one.write_text("one")
        with replacing(path) as two:
            two.write_text("two")
        assert path.read_text() == "two"
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_shared_work_folder_loses_old_halves_only(tmp_path: Path) -> None:
    old, new, other = (files._beside(tmp_path / "step.safetensors") for _ in range(3))
    for path in (old, new, other):
        path.write_text("half")
    own = tmp_path / ".notes.partial"
    own.write_text("somebody's")
    os.utime(old, (0, 0))
    StepStore(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, other, own])


def test_nobody_reads_what_is_printed() -> None:
    """As of ``sinf results | head -1``: no traceback."""
    for words in (("-c", HOLD, "talk"), ("-m", "sinf", "--help")):
        read, write = os.pipe()
        os.close(read)
        process = start(*words, stdout=write)
        os.close(write)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (1, "")


@pytest.mark.slow  # two processes import torch and datasets
def test_a_build_that_is_killed_or_terminated_goes_on(sinf: Program, data: Path, tmp_path: Path) -> None:
    """Meanwhile the same command is refused; at the end nothing of all that is left."""
    torch.manual_seed(0)
    weights = tmp_path / "vgg11.safetensors"
    save_file(load_model("vgg11", classes=6, options={"width": 0.125}).module.state_dict(), weights)
    out = tmp_path / "results" / "bundle"
    words = [
        "build", "vgg11", "--keep-anyway", "--weights", weights, "--data", data, "--score", "train", "--route", "train",
        "--calibrate", "test", "--max-loss", "90", "--extractor", "0.8", "--out", out, "--threads", "1",
    ]  # fmt: skip
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
        process = start("-m", "sinf", *words)
        try:
            until = time.monotonic() + 300
            before = len(list(out.with_name("bundle.build").glob("*.safetensors")))
            while process.poll() is None and time.monotonic() < until:
                if len(list(out.with_name("bundle.build").glob("*.safetensors"))) > before:
                    break
                time.sleep(0.01)
            if number == signal.SIGKILL:
                assert "only one command at a time may write" in sinf.refused(*words)
            process.send_signal(number)
        finally:
            process.kill() if number == signal.SIGKILL else None
            _, err = process.communicate(timeout=300)
        assert process.returncode == code, err
    assert err.splitlines()[-1].startswith("interrupted; ")
    assert "Traceback" not in err
    sinf(*words)
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


@pytest.mark.slow  # a dozen processes import torch and datasets
def test_optimize_that_is_killed_ten_times_delivers_the_same(data: Path, tmp_path: Path) -> None:
    """At any moment, and goes on every time."""
    torch.manual_seed(0)
    weights = tmp_path / "vgg11.safetensors"
    save_file(load_model("vgg11", classes=6, options={"width": 0.125}).module.state_dict(), weights)
    words = [
        "-c", OPTIMIZE, "optimize", "vgg11", "--weights", weights, "--data", data, "--score", "train", "--calibrate",
        "test", "--max-loss", "90", "--images", "24", "--engine", "torch",
    ]  # fmt: skip

    def tensors(out: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted(out.rglob("*.safetensors"))]

    began = time.monotonic()
    _, err = start(*words, "--out", tmp_path / "whole" / "fast").communicate(timeout=300)
    assert (tmp_path / "whole" / "fast").is_dir(), err
    took, moments = time.monotonic() - began, random.Random(0)
    for _ in range(10):
        process = start(*words, "--out", tmp_path / "parts" / "fast")
        time.sleep(moments.uniform(0.0, took))
        process.kill()
        process.communicate(timeout=60)
    code = start(*words, "--out", tmp_path / "parts" / "fast")
    _, err = code.communicate(timeout=300)
    assert code.returncode == 0, err
    assert tensors(tmp_path / "parts" / "fast") == tensors(tmp_path / "whole" / "fast")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["fast"]
