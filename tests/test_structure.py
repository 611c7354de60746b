"""The house of design.md: data flows left to right, rooms are small, imports are cheap."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sinf"
LINES = 450

# Rooms from left to right, as data flows; those on one line may import each other, if that makes no circle.
HOUSE = [
    {"errors", "version", "option", "registry"},
    {"storage", "machine"},
    {"data"},
    {"graph"},
    {"models"},
    {"statistics"},
    {"criteria"},
    {"compress", "training"},
    {"routing"},
    {"bundle"},
    {"engine"},
    {"measure"},
    {"dynamic"},
    {"load", "edge"},
    {"export"},
    {"pipelines"},
    {"report"},
    {"cli"},
]
POSITION = {f"sinf.{name}": place for place, names in enumerate(HOUSE) for name in names}
LEAVES = {"report", "cli"}


@cache
def modules() -> dict[str, Path]:
    """Dotted names of all modules below ``sinf``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(), str(modules()[name]))


def imported(name: str) -> set[str]:
    """Modules of ``sinf`` that a module imports, anywhere in its text."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: write imports from sinf, not relative ones"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules() else node.module or "")
    return {target for target in found if target in modules()} - {name}


def room(name: str) -> str | None:
    return name.split(".")[1] if "." in name else None


def position(name: str) -> int:
    """Where a module's room stands, from left to right; the public face sees all."""
    return len(HOUSE) if name in ("sinf", "sinf.__main__") else POSITION.get(f"sinf.{room(name)}", -1)


def test_every_room_has_its_place() -> None:
    homeless = [name for name in modules() if position(name) < 0]
    assert homeless == [], "put a new room in HOUSE, where data reaches it"


def test_no_import_runs_right_to_left() -> None:
    wrong = [
        f"{name} imports {target}"
        for name in modules()
        for target in imported(name)
        if position(target) > position(name)
    ]
    assert wrong == []


def test_nothing_but_the_command_line_imports_a_leaf() -> None:
    wrong = [
        f"{name} imports {target}"
        for name in modules()
        for target in imported(name)
        if room(target) in LEAVES and room(name) not in {room(target), "cli", "__main__"}
    ]
    assert wrong == []


def test_no_circle_of_imports() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(imported(name)):
                visit(target, (*path, name))
            done.add(name)

    for name in modules():
        if name != "sinf":
            visit(name, ())


def test_imports_are_read_correctly() -> None:
    """The tests above see what is there."""
    assert "sinf.graph.trace" in imported("sinf.graph.cut")
    assert "sinf.models.vgg" in imported("sinf.models.load")
    assert "sinf.errors" in imported("sinf.data.images")


def test_no_room_is_too_large() -> None:
    assert [name for name, path in modules().items() if len(path.read_text().splitlines()) > LINES] == []


def test_user_input_is_not_checked_by_assert() -> None:
    lines = [
        f"{name}, line {node.lineno}"
        for name in modules()
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Assert)
    ]
    assert lines == []


#: Words of no variable (design.md, section 1): a name is a noun of the field that says what a thing is.
RETIRED = {
    "alike", "believed", "common", "felt", "found", "judge", "known", "look", "looked", "made_gram", "ours", "places",
    "seen", "strips", "tried",
}  # fmt: skip
#: Fields that are keys of JSON files which users have.
STORED = {"sinf.measure.energy: ours", "sinf.measure.stages: ours", "sinf.routing.clustering: found"}


def names_given(node: ast.AST) -> list[str]:
    """What a node assigns, takes as a parameter or defines."""
    if isinstance(node, ast.Name):
        return [node.id] if isinstance(node.ctx, ast.Store) else []
    if isinstance(node, ast.Attribute):
        return [node.attr] if isinstance(node.ctx, ast.Store) else []
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    return []


def test_names_are_nouns_of_the_field() -> None:
    wrong = [
        f"{modules()[name].relative_to(ROOT)}, line {node.lineno}: {given}"  # type: ignore[attr-defined]
        for name in modules()
        for node in ast.walk(tree(name))
        for given in names_given(node)
        if given.strip("_").lower() in RETIRED and f"{name}: {given}" not in STORED
    ]
    assert wrong == [], "say what it is: layers, candidates, latencies, base_right"


PICKLES = {"pickle", "dill", "cloudpickle"}


def test_no_star_import_and_no_pickle() -> None:
    wrong = []
    for name in modules():
        for node in ast.walk(tree(name)):
            what: set[str] = set()
            if isinstance(node, ast.ImportFrom):
                what = {alias.name for alias in node.names} & {"*"} | {node.module or ""} & PICKLES
            elif isinstance(node, ast.Import):
                what = {alias.name for alias in node.names} & PICKLES
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                what = {node.attr} & {"load", "save"}  # safetensors instead
            wrong += [f"{name}, line {node.lineno}: {each}" for each in sorted(what)]
    assert wrong == []


def test_torchvision_and_timm_are_never_imported_by_name() -> None:
    """They are optional: only what loads a user's model asks for them, with an error when they are missing."""
    for name in modules():
        for node in ast.walk(tree(name)):
            targets = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            targets += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = {target.split(".")[0] for target in targets}
            assert not names & {"torchvision", "timm", "transformers"}, name
            assert "torch_pruning" not in names or name == "sinf.criteria.torch_pruning"


def test_names_of_strangers_reach_no_console_of_richs_own() -> None:
    """Its brackets are styles there; a bar has names of ours alone."""
    users = [name for name in modules() if "rich.console" in modules()[name].read_text()]
    assert users == ["sinf.cli.progress", "sinf.report.terminal"]


def run_python(code: str) -> str:
    """Output of a fresh interpreter that sees the package."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout


def test_the_edge_runtime_needs_no_torch() -> None:
    """Nor anything else that is large: what it imports from sinf imports none of it."""
    heavy = {"torch", "datasets", "sklearn", "onnx", "onnxruntime"}
    assert run_python(f"import sys, sinf.edge; print(sorted({heavy} & set(sys.modules)))").strip() == "[]"


HEAVY = "print(sorted({'torch', 'datasets', 'sklearn', 'numpy'} & set(sys.modules)))"


def test_importing_sinf_does_no_work() -> None:
    assert run_python(f"import sys, sinf; {HEAVY}").strip() == "[]"


def test_every_public_name_is_there() -> None:
    import sinf

    for name in getattr(sinf, "__all__", []):
        assert getattr(sinf, name) is not None


needs_cli = pytest.mark.skipif("sinf.cli" not in modules(), reason="there is no sinf.cli yet")


@needs_cli
def test_importing_the_command_line_does_no_work() -> None:
    assert run_python(f"import sys, sinf.cli; {HEAVY}").strip() == "[]"


def test_names_of_criteria_cost_nothing() -> None:
    lines = run_python(f"import sys; from sinf.criteria import NAMES; print(len(NAMES)); {HEAVY}").split("\n")
    assert int(lines[0]) > 10
    assert lines[1] == "[]"


def test_torch_pruning_is_imported_only_when_asked_for() -> None:
    code = "import sys, sinf.criteria.torch_pruning; print('torch_pruning' in sys.modules)"
    assert run_python(code).strip() == "False"


@needs_cli
@pytest.mark.parametrize("words", [[], ["build"]])
def test_help_does_no_work(words: list[str]) -> None:
    code = f"""
import sys
from sinf.cli import main
sys.argv = ["sinf", *{words}, "--help"]
try:
    main()
except SystemExit as end:
    print("code", end.code or 0)
{HEAVY}
"""
    lines = run_python(code).strip().splitlines()
    assert lines[-2:] == ["code 0", "[]"]
    assert ("--criterion" if words else "build") in "\n".join(lines)


# ---- what is beside the package


def test_what_is_tested_is_pinned() -> None:
    """Every direct dependency has a version in constraints.txt, and torch and torchvision belong together."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    names = {name.lower().replace("_", "-") for name in pins}
    for requirement in wanted:
        name = requirement.split(">")[0].split("=")[0].strip().lower().replace("_", "-")
        assert name in names
    assert (pins["torch"], pins["torchvision"]) == ("2.13.0", "0.28.0")


@pytest.mark.parametrize("name", ["Makefile", ".ci/run", "pyproject.toml", "constraints.txt"])
def test_the_build_names_no_machine(name: str) -> None:
    text = (ROOT / name).read_text()
    for word in (
        "http://",
        "https://",
        "--index-url",
        "--extra-index-url",
        "--find-links",
        "/home/",
        "/opt/",
    ):
        assert word not in text
