"""What every verb shares: help that can be read, code of one's own in the current folder, warnings once."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from program import Program, build_words
from sinf.bundle.semantic import Bundle
from sinf.cli.app import _WarningsOnce, app
from sinf.errors import DataWarning
from sinf.pipelines.build import BuildConfig
from sinf.routing.router import part_name

ROOT = Path(__file__).parents[2]


def verbs() -> list[list[str]]:
    names = typer.main.get_command(app)
    found: list[list[str]] = []
    for name, command in names.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [[name]] if inner is None else [[name, each] for each in inner]
    return found


@pytest.mark.parametrize("page", ["--help", "--help-all"])
@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_no_line_of_help_is_a_fragment(
    sinf: Program, monkeypatch: pytest.MonkeyPatch, verb: list[str], page: str
) -> None:
    """In 80 columns, every line that goes on in the next one says more than a few words."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = sinf(*verb, page).splitlines()
    assert max(map(len, lines)) <= 80
    wrapped = [
        line
        for line, after in pairwise(lines)
        if after.startswith(" " * 8) and line.startswith(" ") and not line.strip().startswith("--") and line.strip()
    ]
    starts = [len(line) - len(line.lstrip()) for line in lines if line.startswith(" " * 8)]
    assert max(starts, default=0) <= 40
    assert [line for line in wrapped if len(line.strip()) < 25] == []


def test_the_list_of_verbs_ends_no_sentence_in_dots(sinf: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "..." not in sinf("--help").split("Commands:")[1]


def test_help_needs_no_library_for_tables() -> None:
    code = (
        "import sys; sys.argv = ['sinf', '--help']\nfrom sinf.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "print(sorted({'rich', 'torch', 'numpy'} & set(sys.modules)))"
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": ""}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert found.stdout.splitlines()[-1] == "[]"


# ---- the current folder

FACTORY = """
from torch import nn

def {name}():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
"""


def test_a_factory_in_the_current_folder(sinf: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for ``python -m sinf``; the program itself does not have that folder on its path."""
    (tmp_path / "own_networks_of_a_user").mkdir()
    (tmp_path / "own_networks_of_a_user" / "small.py").write_text(FACTORY.format(name="make"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p not in ("", str(tmp_path))])
    words = ("profile", "own_networks_of_a_user.small:make", "--size", "3,16,16", "--json", tmp_path / "out.json")
    assert "MACs" in sinf(*words)


def test_the_current_folder_stands_in_for_no_library(
    sinf: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colorsys.py").write_text("raise SystemExit('foreign code')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert "no factory" in sinf.refused("profile", "colorsys:make")


# ---- warnings


def test_warnings_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Of other libraries once for a place in their code, whatever the text; ours once for a text."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = _WarningsOnce()
        for layer in range(100):
            warnings.warn(f"layer{layer}.weight: copying", stacklevel=1)
        for turn in range(4):
            warnings.warn(f"classes {turn // 2}", DataWarning, stacklevel=1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 4
    assert [line for line in lines if line.startswith("warning: ")] == ["warning: classes 0", "warning: classes 1"]
    assert sum("copying" in line for line in lines) == 1


# ---- what --macs means


def test_macs_are_macs(sinf: Program, data: Path, weights: Path, tmp_path: Path) -> None:
    """A budget of a person's own is one of MACs alone, and what was kept is printed of both."""
    words = [*build_words(data, weights, tmp_path / "out"), "--macs", 0.5, "--json", tmp_path / "out.json"]
    text = sinf(*words)
    record = json.loads((tmp_path / "out.json").read_text())
    assert 0.3 < record["tail_macs"] <= 0.5
    bundle = Bundle.load(tmp_path / "out")
    macs, keep = bundle.network().tail_macs, bundle.network().coupling.keep_all()
    for cluster in range(len(bundle.clusters)):
        assert macs.total(bundle.parts[part_name(cluster)].keep) <= 0.5 * macs.total(keep)
    assert f"{100 * record['tail_macs']:.1f} % of the tail's MACs" in text
    assert f"{100 * record['tail_weights']:.1f} % of its weights" in text


def test_a_price_of_weights_is_asked_for(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[float] = []

    def stop(*given: object, **options: object) -> None:
        costs.extend(each.price for each in given if isinstance(each, BuildConfig))
        raise StoppedError

    class StoppedError(Exception):
        pass

    monkeypatch.setattr("sinf.pipelines.build.build", stop)
    words = [word for word in build_words(data, weights, tmp_path / "out") if word not in ("--extractor", "0.8")]
    for change in ((), ("--macs", 0.3), ("--whole", 0.9), ("--macs", 0.3, "--weight-cost", 8)):
        with pytest.raises(StoppedError):
            sinf(*words, *change)
    assert costs == [32, 0, 0, 8]
