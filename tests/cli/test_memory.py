"""Every verb has a budget of memory: it says what it takes, and refuses what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from program import Program
from sinf.cli import demo
from sinf.cli.app import app

TOO_SMALL = "600MB"  # less than Python and torch take
NO_MODEL = {"results"}  # which reads records, and runs no model


def test_every_verb_has_one() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    verbs = {name: each for name, each in commands.items() if name != "dynamic"}
    verbs |= {f"dynamic {name}": each for name, each in commands["dynamic"].commands.items()}
    without = {name for name, each in verbs.items() if "memory" not in {param.name for param in each.params}}
    assert without == NO_MODEL


def profile(folders: dict[str, Path], weights: Path, out: Path) -> tuple[object, ...]:
    return ("profile", "vgg11", "--weights", weights)


def profile_of_a_bundle(folders: dict[str, Path], weights: Path, out: Path) -> tuple[object, ...]:
    return ("profile", folders["semantic"])


def dynamic_export(folders: dict[str, Path], weights: Path, out: Path) -> tuple[object, ...]:
    return ("dynamic", "export", folders["dynamic"], out / "out.onnx")


@pytest.mark.parametrize("words_of", [profile, profile_of_a_bundle, dynamic_export])
def test_what_an_error_names_is_enough(
    sinf: Program, words_of: Callable[..., tuple[object, ...]], folders: dict[str, Path], weights: Path, tmp_path: Path
) -> None:
    words = words_of(folders, weights, tmp_path)
    line = sinf.refused(*words, "--memory", TOO_SMALL)
    assert "must fit into memory" in line
    assert not (tmp_path / "out.onnx").exists()
    enough = re.search(r"--memory (\S+GB)", line)
    assert enough is not None
    code, _, err = sinf.call(*words, "--memory", enough[1])
    assert code == 0, err
    assert [each.startswith("memory: ") for each in err.splitlines()].count(True) == 1


def test_the_demo_says_it_before_it_begins(sinf: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = sinf.refused("demo", "--out", tmp_path / "out", "--memory", TOO_SMALL)
    assert "answers must fit into memory" in line
    given: list[int] = []

    def stop(
        base: object, scoring: object, calibration: object, config: object, *rest: object, **options: object
    ) -> None:
        given.append(config.memory)  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr("sinf.pipelines.optimize.optimize", stop)
    _, _, err = sinf.call("demo", "--out", tmp_path / "out", "--memory", "3GB")
    assert "memory: about" in err
    assert given == [3 * 10**9]


def test_the_page_of_the_demo_is_built_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sinf.cli.options import Machine
    from sinf.pipelines import build

    given: list[int] = []
    monkeypatch.setattr(
        build, "build", lambda base, images, clusters, config, *rest, **options: given.append(config.memory)
    )
    demo._build(tmp_path / "bundle", Machine(threads=1, memory=3 * 10**9))
    assert given == [3 * 10**9]
