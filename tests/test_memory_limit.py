"""Every verb keeps its budget: measured in processes of their own, whose allocations fail beyond it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb", ["channels", "ranks", "checked", "build", "dynamic", "eval", "train", "answers", "clusters", "profile"]
)
def test_a_verb_keeps_its_budget(verb: str, tmp_path: Path) -> None:
    """Of a network whose early maps take more than the budget at the usual batch."""
    budget = 1_200_000_000
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent / "src"), str(HERE)])}
    command = [sys.executable, str(HERE / "memory_child.py"), verb, str(budget), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    said, peak = done.stdout.strip().splitlines()[0], int(done.stdout.split()[-1])
    assert said.startswith("memory: about")
    assert "batches of" in said
    assert peak < budget
