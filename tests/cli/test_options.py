"""Every option has one home: its help, default and type are those of a dataclass field, on the command line and in run
files."""

from __future__ import annotations

import ast
import inspect
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from program import Program, build_words
from sinf.cli import artefacts, bench, bundles, clusters, demo, dynamic, export, models, optimize, prune, report
from sinf.cli.app import app
from sinf.cli.help_pages import MOST
from sinf.cli.verb import options_of, verb
from sinf.dynamic import recipe as gates
from sinf.errors import ConfigError
from sinf.measure.limits import Limits
from sinf.option import POINTS, RUN, Option, numbers
from sinf.pipelines.build_config import BuildConfig
from sinf.pipelines.optimize_config import OptimizeConfig
from sinf.pipelines.prune_config import Amount, FineTuning, PruneConfig
from sinf.training.recipe import Distillation, TrainConfig

SOURCE = Path(__file__).parents[2] / "src" / "sinf"
FUNCTIONS = {
    "optimize": optimize.optimize, "profile": models.profile, "clusters": clusters.clusters, "train": models.train,
    "prune": prune.prune, "build": bundles.build, "eval": artefacts.evaluate, "predict": artefacts.predict,
    "bench": bench.bench, "tune": bench.tune, "results": bench.results,
    "report": report.report, "export": export.export, "demo": demo.demo,
    "dynamic train": dynamic.train, "dynamic eval": dynamic.evaluate, "dynamic bench": dynamic.bench,
    "dynamic export": dynamic.export,
}  # fmt: skip


def command(words: str) -> Any:
    found: Any = typer.main.get_command(app)
    for word in words.split():
        found = found.commands[word]
    return found


def test_no_verb_is_missing_here() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    inner = [f"dynamic {name}" for name in commands["dynamic"].commands]
    assert {*commands, *inner} - {"dynamic"} == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defaults_are_those_of_the_dataclasses(name: str) -> None:
    """What the command line takes where nothing is given makes what Python makes."""
    params = {each.name: each for each in command(name).params}
    for one in options_of(FUNCTIONS[name]).values():
        for each in [] if one is None else one.all():
            param = params[each.key]
            assert param.required == (each.default is inspect.Parameter.empty)
            if not param.required:
                assert each.value({each.key: param.default}) == each.default


@pytest.mark.parametrize(
    ("name", "config"),
    [("prune", PruneConfig()), ("build", BuildConfig()), ("optimize", OptimizeConfig()), ("train", TrainConfig()),
     ("dynamic train", gates.TrainConfig())],
)  # fmt: skip
def test_a_verb_without_options_has_the_config_that_python_makes(name: str, config: Any) -> None:
    group = options_of(FUNCTIONS[name])["config"]
    assert group is not None
    assert group.value({each.name: each.default for each in command(name).params}) == config


def test_what_python_writes_is_what_the_command_line_says(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[PruneConfig] = []

    def stop(base: object, scoring: object, config: PruneConfig, *given: object, **options: object) -> None:
        configs.append(config)
        raise ConfigError("stopped")

    monkeypatch.setattr("sinf.pipelines.prune.prune", stop)
    words = ["prune", "vgg11", "--weights", weights, "--data", data, "--test", "test", "--out", tmp_path / "out"]
    words += ["--latency", 0.6, "--precision", "int8", "--engine", "onnxruntime", "--max-loss", 3, "--threads", 1]
    sinf.refused(*words, "--finetune", 2, "--batch", 30, "--teacher-weight", 0.5, "--memory", "6GB")
    assert configs == [
        PruneConfig(
            Amount(latency=0.6, engine="onnxruntime", precision="int8"),
            limits=Limits(max_loss=0.03),
            finetuning=FineTuning(finetune=2, batch=30),
            distillation=Distillation(0.5),
            memory=6_000_000_000,
        )
    ]


def test_what_python_writes_is_what_the_command_line_says_of_a_build(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[BuildConfig] = []

    def stop(base: object, images: object, groups: object, config: BuildConfig, *given: object, **options: Any) -> None:
        configs.append(config)
        raise ConfigError("stopped")

    monkeypatch.setattr("sinf.pipelines.build.build", stop)
    words = build_words(data, weights, tmp_path / "out")
    timed = ("--time-in", "openvino", "--time-precision", "bf16", "--time-batch", 8)
    for change in (("--macs", 0.2, "--weight-cost", 8), ("--ratios", "0.1,0.4", *timed)):
        sinf.refused(*words, *change)
    common: dict[str, Any] = {
        "extractor": 0.8, "max_loss": 0.9, "route_draws": 240, "keep_anyway": True, "threads": 1,
    }  # fmt: skip
    assert configs == [
        BuildConfig(macs=0.2, weight_cost=8, **common),
        BuildConfig(ratios=(0.1, 0.4), time_in="openvino", time_precision="bf16", time_batch=8, **common),
    ]


def test_no_help_is_written_twice() -> None:
    """Every option of a command has one home, and no two homes say the same."""
    for name, function in FUNCTIONS.items():
        made = {each.key for one in options_of(function).values() if one is not None for each in one.all()}
        assert {each.name for each in command(name).params} - made <= {"config", "json", "help_all"}
    said: Counter[str] = Counter()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                said.update([ast.unparse(node.args[0])] if called == "Option" and node.args else [])
                assert called not in ("typer.Option", "typer.Argument") or path.name == "verb.py"
    assert [text for text, count in said.items() if count > 1] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_first_page_is_short(sinf: Program, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of options under no heading of their own there are a dozen at most, and none is left unsaid."""
    monkeypatch.setenv("COLUMNS", "80")
    text = sinf(*name.split(), "--help")
    first = text.split("\nOptions:\n")[1].split("\n\n")[0]
    assert sum(line.startswith("  -") for line in first.splitlines()) <= MOST
    for each in command(name).params:
        assert each.param_type_name == "argument" or each.name == "help_all" or each.opts[0] in text
    whole = sinf(*name.split(), "--help-all")
    assert "More, with" not in whole
    for each in command(name).params:
        if each.help and each.name != "help_all":
            assert " ".join(each.help.split())[:12] in " ".join(whole.split())


def test_no_help_imports_torch() -> None:
    words = [["--help"], *([*name.split(), "--help-all"] for name in FUNCTIONS)]
    code = f"""
import sys
from sinf.cli import main
for words in {words}:
    sys.argv = ["sinf", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code
print(sorted({{"torch", "numpy", "datasets", "sklearn", "rich"}} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "[]"


# ---- run files


@dataclass(frozen=True)
class Outside:
    """Nothing of it is an option."""

    needed: int


@dataclass(frozen=True)
class Inner:
    count: Annotated[int, Option("Count.")] = 3
    secret: int = 4


@dataclass(frozen=True)
class Options:
    data: Annotated[str, Option("Images.")]
    max_loss: Annotated[float, Option("Loss.", unit=POINTS)] = 0.02
    size: Annotated[tuple[int, ...] | None, Option("Size.", unit=numbers(int, 3))] = None
    precisions: Annotated[tuple[str, ...], Option("Precision.", flag="precision")] = ("f32",)
    cascades: Annotated[bool, Option("Also cascades.", RUN)] = True
    inner: float = 3.0
    held: Inner | None = field(default_factory=Inner)
    outside: Outside | None = None


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Options]:
    """Runs a verb of these options, and returns what reached it; its record is in ``record.json``."""
    seen: list[Options] = []

    def small(options: Options) -> dict[str, Any]:
        seen.append(options)
        return {"seen": len(seen)}

    small.__annotations__ = {"options": Options, "return": dict}
    program = typer.Typer()
    program.command()(verb(small, runs=True))

    def call(*words: object) -> Options:
        typer.main.get_command(program)(
            [*map(str, words), "--json", str(tmp_path / "record.json")], standalone_mode=False
        )
        return seen[-1]

    return call


def write(path: Path, record: object) -> Path:
    path.write_text(json.dumps(record))
    return path


def test_units_and_names_of_the_command_line(run: Callable[..., Options]) -> None:
    assert run("--data", "x") == Options("x")
    words = ("--max-loss", 1.5, "--size", "3,64,32", "--precision", "f32", "--precision", "int8", "--no-cascades")
    assert run("--data", "x", *words) == Options("x", 0.015, (3, 64, 32), ("f32", "int8"), False)


def test_options_of_what_a_dataclass_holds_are_its_own(run: Callable[..., Options], tmp_path: Path) -> None:
    assert run("--data", "x", "--count", 8) == Options("x", held=Inner(8))
    assert run("--config", write(tmp_path / "run.json", {"data": "x", "count": 9})) == Options("x", held=Inner(9))


def test_a_run_file_stands_for_options_and_these_count_instead(run: Callable[..., Options], tmp_path: Path) -> None:
    record = {"data": "y", "max_loss": 1, "precision": ["int8", "bf16"], "cascades": False}
    path = write(tmp_path / "run.json", record)
    assert run("--config", path) == Options("y", 0.01, None, ("int8", "bf16"), False)
    words = ("--max-loss", 3, "--cascades", "--data", "z", "--precision", "f32")
    assert run("--config", path, *words) == Options("z", 0.03)


def test_what_json_writes_makes_the_same_run(run: Callable[..., Options], tmp_path: Path) -> None:
    first = run("--data", "x", "--max-loss", 0.7, "--size", "3,8,8", "--precision", "int8", "--no-cascades")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["config"] == {
        "data": "x", "max_loss": 0.7, "size": "3,8,8", "precision": ["int8"], "cascades": False, "count": 3,
    }  # fmt: skip
    assert run("--config", write(tmp_path / "again.json", record)) == first
    assert json.loads((tmp_path / "record.json").read_text())["config"] == record["config"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"max_los": 1}', "call it max_loss"),
        ('{"inner": 1.0}', "--help-all"),
        ('{"json": "x"}', "'json'"),
        ("[1]", "by name"),
        ("{", "JSON file"),
        ("[" * 10**5, "levels"),
        ('{"data": NaN}', "NaN"),
        ('{"data": "x", "data": "y"}', "twice"),
        ('{"' + "x" * 10**5 + '": 1}', "options of this verb"),
        ('{"cascades": [true]}', "what the option takes"),
        ('{"max_loss": {"a": 1}}', "what the option takes"),
    ],
    ids=lambda value: value[:20],
)
def test_a_run_file_that_is_none(run: Callable[..., Options], tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        run("--config", tmp_path / "run.json", "--data", "x")
    assert len(str(caught.value)) < 1000
    with pytest.raises(ConfigError, match="nowhere"):
        run("--config", tmp_path / "nowhere.json", "--data", "x")


def test_a_value_of_another_type_is_refused(sinf: Program, tmp_path: Path) -> None:
    path = write(tmp_path / "run.json", {"model": "vgg11", "data": "x", "out": "y", "max_loss": "much"})
    code, _, err = sinf.call("prune", "--config", path)
    assert code == 2
    assert "--max-loss" in err


def test_any_value_of_any_option_is_taken_or_refused(sinf: Program, tmp_path: Path) -> None:
    """Never a traceback; there is no such data, so nothing is done."""
    values: list[object] = [None, True, -1, 10**30, 1e308, 0.5, "", "x", [], [[]], {}, ["x"], [1]]
    options = {"model": "vgg11", "data": str(tmp_path / "none"), "out": str(tmp_path / "out"), "macs": 0.5}
    draw = random.Random(0)
    for each in command("prune").params:
        for value in [] if each.name in ("config", "json", "help_all") else draw.sample(values, 2):
            path = write(tmp_path / "run.json", options | {each.name: value})
            code, _, err = sinf.call("prune", "--config", path)
            assert code == 2, (each.name, value)
            assert "Traceback" not in err
            assert not (tmp_path / "out").exists()


def test_build_takes_a_run_file(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[BuildConfig] = []

    def stop(*given: object, **options: object) -> None:
        configs.extend(each for each in given if isinstance(each, BuildConfig))
        raise ConfigError("stopped")

    monkeypatch.setattr("sinf.pipelines.build.build", stop)
    words = build_words(data, weights, tmp_path / "out")
    sinf.refused(*words, "--ratios", "0.1,0.4", "--memory", "6GB", "--no-reconstruct")
    record = {
        "model": "vgg11", "weights": str(weights), "data": str(data), "score": "train", "route": "train",
        "calibrate": "test", "max_loss": 90, "extractor": 0.8, "out": str(tmp_path / "out"), "threads": 1,
        "keep_anyway": True, "route_draws": 240, "ratios": "0.1,0.4", "memory": "6GB", "reconstruct": False,
    }  # fmt: skip
    path = write(tmp_path / "run.json", record)
    sinf.refused("build", "--config", path)
    assert configs[0] == configs[1]
    sinf.refused("build", "--config", path, "--seed", 3)
    assert configs[2] == replace(configs[0], seed=3)


def test_the_record_of_a_verb_makes_it_do_the_same(sinf: Program, data: Path, weights: Path, tmp_path: Path) -> None:
    words = ("clusters", "vgg11", "--weights", weights, "--data", data, "--split", "train", "--check", "test")
    sinf(*words, "--count", 2, "--max-loss", 5, "--json", tmp_path / "first.json")
    sinf("clusters", "--config", tmp_path / "first.json", "--json", tmp_path / "second.json")
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second"))
    assert first.pop("command").startswith("sinf clusters vgg11 --weights ")
    assert second.pop("command").startswith("sinf clusters --config ")
    assert first == second
    assert (first["config"]["count"], first["config"]["max_loss"]) == (2, 5)
