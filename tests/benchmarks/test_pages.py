"""The Python of README, guide and other pages runs as it stands, and their tables are those of the results."""

from __future__ import annotations

import ast
import csv
import importlib
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shown import cells
from shown.limits import picked
from shown.optimized import optimized

from sinf import edge
from sinf.criteria import NAMES, group_statistics
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.network import attach
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError
from sinf.export.split import export_split
from sinf.graph.coupling import couple
from sinf.graph.trace import trace
from sinf.models import load_model
from sinf.pipelines import optimize_search as optimizing
from sinf.statistics import collect
from times import taking
from tiny import CLASSES, COLOUR, Residual, randomise

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_the_readme_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow network and few images of the names that it uses; times are made up."""
    monkeypatch.chdir(tmp_path)
    save_file(
        load_model("vgg16", classes=6, options={"width": 0.125}).module.state_dict(), "vgg16_cifar100.safetensors"
    )
    (tmp_path / "cifar100").symlink_to(data)
    monkeypatch.setattr(optimizing, "interleaved", taking(lambda name: 4.0))
    (code,) = blocks("README.md")
    assert len(ast.parse(code).body) == 5
    names: dict = {}
    few = "max_loss=0.9, images=24, budgets=(0.6,), by_time=False, cuts=()"
    exec(code.replace("max_loss=0.005", few), names)
    images = np.zeros((2, 3, 32, 32), np.float32)
    assert edge.load("fast/onnxruntime")(images).shape == (2, 6)
    assert names["sinf"].from_pretrained("fast")(torch.from_numpy(images)).shape == (2, 6)


def test_the_guide_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow network and few images of the names that the guide uses."""
    monkeypatch.chdir(tmp_path)
    save_file(
        load_model("vgg16", classes=6, options={"width": 0.125}).module.state_dict(), "vgg16_cifar100.safetensors"
    )
    (tmp_path / "cifar100").symlink_to(data)
    serving, code = blocks("docs/guide.md")
    compile(serving, "guide", "exec")  # tests/test_artefacts.py runs what it says
    code = code.replace("max_loss=0.01", "max_loss=0.9, route_draws=60, keep_anyway=True")
    names: dict = {}
    exec(code, names)
    assert (tmp_path / "bundle" / "config.json").is_file()


def test_the_page_of_criteria_runs() -> None:
    in_torch_pruning, own = blocks("docs/criteria.md")
    model, labels = randomise(Residual(width=10)), torch.arange(12) % CLASSES
    batches = [(torch.randn(12, *COLOUR.size), labels)]
    names: dict = {"model": model, "batches": batches}
    exec(in_torch_pruning.replace("3, 32, 32", "3, 8, 8"), names)
    assert (model.stem[0].out_channels, model.head.in_features) == (7, 7)
    exec(own, names)
    criterion, graph = names["Variance"](), trace(model, COLOUR)
    coupling = couple(graph)
    found = collect(graph, coupling, batches, classes=CLASSES, needs=criterion.needs)
    scores = criterion.score(group_statistics(graph, coupling, coupling.groups["inner.0.0"], found))
    assert scores.shape == (model.inner[0][0].out_channels,)
    assert bool((scores > 0).any())


def test_the_page_of_criteria_lists_them_all() -> None:
    table = (ROOT / "docs" / "criteria.md").read_text().split("## What they share")[0]
    listed = [name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for name in row.split(", ")]
    assert sorted(listed) == sorted(f"`{name}`" for name in NAMES)


def test_the_page_on_engines_runs(built_cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the bundle that has the fewest parts: those in integers take a second each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").symlink_to(built_cascade)
    export_split(SemanticModel.from_pretrained("bundle"), "out")
    in_torch, in_integers, at_the_edge = blocks("docs/engines.md")
    names: dict = {"images": torch.randn(5, 3, 32, 32), "pixels": torch.zeros(5, 32, 32, 3, dtype=torch.uint8).numpy()}
    exec(in_torch, names)
    assert names["logits"].shape == (5, 6)
    exec(in_integers, names)
    assert names["router"](names["images"]).shape == (5, 6)
    exec(at_the_edge, names)
    assert names["routed"].logits.shape == (5, 6)


def test_the_page_on_dynamic_pruning_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of_a_bundle, attaching = blocks("docs/dynamic.md")
    names: dict = {"images": torch.randn(2, 3, 32, 32)}
    exec(attaching, names)
    assert len(names["network"].sites) == 18
    base = load_model("resnet20", classes=10)
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    network = attach(base)
    DynamicBundle.of(network, base.spec, before, [str(i) for i in range(10)], {}).save("bundle")
    exec(of_a_bundle, names)
    assert names["logits"].shape == (2, 10)
    assert names["chosen"].remaining.shape == (2, 18)


# ---- tables of the pages, and what measures them


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Scripts of benchmarks and reproduce, by name."""
    names: set[str] = set()
    for folder in ("benchmarks", "reproduce"):
        monkeypatch.syspath_prepend(str(ROOT / folder))

    def load(name: str) -> ModuleType:
        names.add(name)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


def test_pages_show_the_results(scripts: Callable[[str], ModuleType]) -> None:
    """Written again they would not change: a page that was edited by hand or forgotten fails."""
    pages = scripts("pages")
    for page in pages.PAGES:
        assert pages.written(page.read_text()) == page.read_text(), f"{page.name}: run python benchmarks/pages.py"


def test_every_table_is_on_a_page_and_every_marker_has_a_table(scripts: Callable[[str], ModuleType]) -> None:
    pages = scripts("pages")
    markers = [m for page in pages.PAGES for m in re.findall(r"<!-- table: (.*?) -->", page.read_text())]
    assert sorted(set(markers)) == sorted(pages.TABLES)


@pytest.mark.parametrize(
    ("page", "file", "column"),
    [
        ("README.md", "optimize_vgg16_cpu.csv", "loss"),
        ("results.md", "headline_vgg16_cpu.csv", "time_saved"),
        ("results.md", "tradeoff_resnet56_cpu.csv", "base_ms"),
        ("engines.md", "engines_vgg16_cpu.csv", "ms"),
        ("dynamic.md", "dynamic_time_resnet56_cpu.csv", "time_saved"),
        ("dynamic.md", "dynamic_train_resnet20_cifar10.csv", "loss"),
        ("trust.md", "promise.csv", "broken"),
        ("trust.md", "mutation.csv", "share"),
    ],
)
def test_a_changed_result_is_a_stale_page(
    page: str, file: str, column: str, scripts: Callable[[str], ModuleType], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One number of it, in any row that is shown."""
    pages = scripts("pages")
    shutil.copytree(cells.RESULTS, tmp_path / "results")
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    text = next(each for each in pages.PAGES if each.name == page).read_text()
    assert pages.written(text) == text
    rows = cells.read(file)
    row = next(each for each in rows if each[column] and each.get("what", "time") in ("time", "optimize"))
    row[column] = str(float(row[column]) + 1) if column != "broken" else str(int(row[column]) + 1)
    with (tmp_path / "results" / file).open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(row))
        writer.writeheader()
        writer.writerows(rows)
    assert pages.written(text) != text
    (tmp_path / "results" / file).unlink()
    assert pages.written(text) != text


def test_the_tests_that_a_page_names_are_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "trust.md").read_text())
    assert len(named) > 50
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


class Recorded:
    """The folder of results, which tells what was read there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.read = folder, dict[str, None]()

    def __truediv__(self, name: str) -> Path:
        self.read[name] = None
        return self.folder / name

    def glob(self, pattern: str) -> Iterator[Path]:
        return self.folder.glob(pattern)


def files_shown(pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the results that tables of pages are written from."""
    recorded = Recorded(cells.RESULTS)
    with monkeypatch.context() as during:
        during.setattr(cells, "RESULTS", recorded)
        for table in pages.TABLES.values():
            table()
    return list(recorded.read)


def test_make_bench_measures_every_file_that_a_page_shows(
    scripts: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are there, and files that pages ask for, are what the commands of benchmarks/run.py write."""
    pages, run = scripts("pages"), scripts("run")
    asked = set(files_shown(pages, monkeypatch))
    written = {name for command in run.commands(tmp_path, tmp_path / "runs") for name in command.writes}
    there = {path.name for path in cells.RESULTS.iterdir()}
    assert asked <= written
    assert there <= written, "a result that no command of benchmarks/run.py measures"


#: Columns that are times of commands, on pages where what is compared is a time.
TIMES = {"newcomer_cpu.csv": ("seconds",), "resources_vgg16_cpu.csv": ("seconds",), "foreign_cpu.csv": ("seconds",)}


def test_what_a_page_shows_was_timed_on_an_idle_machine(
    scripts: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files_shown(scripts("pages"), monkeypatch):
        for row in cells.read(name):
            times = ("ms", "base_ms", "time_saved", *TIMES.get(name, ()))
            load, timed = row.get("load"), any(row.get(key) for key in times)
            assert not load or float(load) <= cells.IDLE, (name, row)
            assert load or not timed, (name, row)


def test_a_limit_has_its_loss_and_its_time_with_their_intervals() -> None:
    """In the table of the README: every row of a limit says what was asked, and both intervals."""
    lines = [line for line in optimized().splitlines() if line.startswith("| **")]
    assert lines
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert re.match(r"\*\*[\d.]+ points?\b", cells[0])
        if cells[1] != "nothing pays":
            assert re.fullmatch(r"-?[\d.]+ \(-?[\d.]+ \.\. -?[\d.]+\)", cells[1])
            assert re.fullmatch(r"-?[\d.]+ % \(-?[\d.]+ % \.\. -?[\d.]+ %\)", cells[4])


def test_rows_without_reconstruction_are_by_the_criterion_that_is_best_then(
    scripts: Callable[[str], ModuleType],
) -> None:
    """At more than one budget, of every network."""
    candidates = scripts("candidates")
    for name in candidates.PLANS:
        made = candidates.plans(name, ["semantic-noreconstruct"])
        assert len({dict(plan.changes)["subgraph"] for plan in made}) == len(made) > 1
        assert {plan.build_config("features.3").criterion_name for plan in made} == {"joint"}


def test_commands_take_what_they_are_given(scripts: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Every option of a command is one of its script, and those that can leave rows out are told to by --keep."""
    for command in scripts("run").commands(tmp_path, tmp_path / "runs"):
        line = command.line(keep=True)
        if command.name == "sinf":
            continue
        text = Path(line[1]).read_text()
        for word in line[2:]:
            if word.startswith("--"):
                name = word.removeprefix("--").replace("-", "_")
                assert f'"{word}"' in text or re.search(rf"^    {name}: ", text, flags=re.MULTILINE), (line, word)
        assert ("--keep" in line) == (re.search(r"^    keep: ", text, flags=re.MULTILINE) is not None)


def test_nothing_is_picked_by_the_report_images() -> None:
    """Other losses and times of the report leave every picked row picked."""
    draw = random.Random(0)
    for _ in range(50):
        rows = [
            {
                "limit": draw.choice(("", "1", "2")), "cost": f"{draw.random():.3f}",
                "calibration_loss": f"{3 * draw.random():.3f}", "loss": f"{3 * draw.random():.3f}",
                "time_saved": f"{draw.random():.3f}", "top1": f"{draw.random():.3f}",
            }
            for _ in range(6)
        ]  # fmt: skip
        other = [row | {name: f"{draw.random():.3f}" for name in ("loss", "time_saved", "top1")} for row in rows]
        for limit in (1.0, 2.0):
            first, second = picked(rows, limit), picked(other, limit)
            assert (first is None) == (second is None)
            if first is not None:
                assert rows.index(first) == other.index(second)


class _Made:
    """A network without routes, or a routed one: what each limit makes of it, and what that loses on the report."""

    def __init__(self, name: str, cost: float, loss: float, on_report: float, fitting_cost: float = 0.0) -> None:
        self.plan, self.cost, self.loss, self.on_report, self.fitting_cost = name, cost, loss, on_report, fitting_cost

    def at(self, asked: float, confidence: float | None = None, on_fitting: bool = False) -> SimpleNamespace:
        if asked < self.loss and self.fitting_cost:
            raise ConfigError("no threshold", got=asked)
        return SimpleNamespace(
            plan=self.plan, cost=self.fitting_cost if on_fitting else self.cost, calibration_loss=self.loss,
            loss=self.on_report, confidence=confidence, on_fitting=on_fitting,
        )  # fmt: skip


def test_the_cheapest_within_the_limit_on_calibration_images_is_chosen(scripts: Callable[[str], ModuleType]) -> None:
    candidates = scripts("candidates")
    made = [_Made("small", 0.4, 1.1, 0.2), _Made("middle", 0.6, 0.9, 2.5), _Made("large", 0.9, 0.1, 0.1)]
    assert candidates.choose_static(made, 1.0).plan == "middle"  # whatever it turns out to lose
    assert candidates.choose_static(made, 0.05) is None


def test_with_a_confidence_the_plan_is_chosen_on_other_images_than_the_threshold(
    scripts: Callable[[str], ModuleType],
) -> None:
    """Choosing among plans on the images that set the threshold would void the guarantee."""
    candidates = scripts("candidates")
    made = [_Made("a", 0.5, 0.5, 0.0, fitting_cost=0.8), _Made("b", 0.6, 0.5, 0.0, fitting_cost=0.7)]
    assert candidates.choose_routed(made, 1.0).plan == "a"
    certain = candidates.choose_routed(made, 1.0, 0.95)
    assert (certain.plan, certain.confidence, certain.on_fitting) == ("b", 0.95, False)
    assert candidates.choose_routed(made, 0.1) is None


def test_the_interval_of_a_loss_is_a_bootstrap_over_images(scripts: Callable[[str], ModuleType]) -> None:
    """Close to the normal one of 5,000 images of which 3 % lose and 2 % gain."""
    candidates = scripts("candidates")
    losses = torch.zeros(5000)
    losses[:150], losses[150:250] = 1, -1
    choice = candidates.Choice(candidates.Plan("static", 0.5), 1.0, None, 1.0, 0.5, losses, 0.7, 0.5, 1.0)
    low, high = choice.interval()
    spread = 1.96 * 100 * float(losses.std()) / 5000**0.5
    assert choice.loss == pytest.approx(1.0)
    assert low == pytest.approx(1 - spread, abs=0.05)
    assert high == pytest.approx(1 + spread, abs=0.05)
