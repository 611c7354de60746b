"""Every verb keeps its budget: measured in processes of their own, whose allocations fail beyond it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memory_child import COMMANDS

HERE = Path(__file__).parent
BUDGET = 1_200_000_000
LARGER = {"optimize": 1_600_000_000}  # many networks are open, a quarter of it

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "verb", ["channels", "ranks", "checked", "build", "dynamic", "eval", "train", "answers", "clusters", "profile"]
)
def test_what_a_verb_runs_keeps_its_budget(verb: str, tmp_path: Path) -> None:
    """Of a network whose early maps take more than the budget at the usual batch."""
    in_a_limited_process(verb, BUDGET, tmp_path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    in_a_limited_process("build", BUDGET, folder)
    return folder / "bundle"


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_command_keeps_its_budget(verb: str, bundle: Path, tmp_path: Path) -> None:
    """Of the same network, and of a bundle of it; what writes for other engines has more of them in memory."""
    own = shutil.copytree(bundle, tmp_path / "bundle")
    in_a_limited_process(verb, LARGER.get(verb, BUDGET), tmp_path, own)


def in_a_limited_process(verb: str, budget: int, *folders: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent / "src"), str(HERE)])}
    command = [sys.executable, str(HERE / "memory_child.py"), verb, str(budget), *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    said = next(line for line in done.stdout.splitlines() if line.startswith("memory: about"))
    assert "batches of" in said
    peak = int(done.stdout.split()[-1])
    assert peak < budget, f"{said}; {peak / 1e9:.2f} GB"
