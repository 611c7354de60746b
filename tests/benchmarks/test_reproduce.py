"""The page of the paper's tables says what the results say."""

from __future__ import annotations

import csv
import importlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sinf.criteria import best_criterion

ROOT = Path(__file__).parents[2]
PAPER = ("tradeoff", "criteria", "static", "clusters", "overlap")
NAMES = (*PAPER, "peers", "variants", "compaction", "recipes")


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    """The scripts, with folders of their own for results and pictures."""
    monkeypatch.syspath_prepend(str(ROOT / "reproduce"))
    names = ("common", *NAMES, "page")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    scripts = {name: importlib.import_module(name) for name in names}
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(scripts["common"], "DOCS", tmp_path)
    monkeypatch.setattr(scripts["common"], "RESULTS", tmp_path / "results")
    yield scripts
    for name in names:
        sys.modules.pop(name, None)


def write(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def row(criterion: str, loss: float, **changes: object) -> dict[str, object]:
    """One of the table of criteria."""
    common = {
        "method": "static", "allocation": "uniform", "budget": 0.5, "weights": "plain", "macs_saved": 0.49, "seed": 0,
        "params_active": 900, "base_top1": 0.7,
    }  # fmt: skip
    made = common | {"criterion": criterion, "loss": loss} | changes
    return made | {"top1": float(str(made["base_top1"])) - loss / 100}


def test_every_published_number_has_a_source() -> None:
    with (ROOT / "reproduce" / "published.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["figure"] for r in rows} == {*PAPER, "compaction"}
    for r in rows:
        assert r["source"]
        assert r["value"] == "" or float(r["value"]) > 0


def test_nothing_measured_is_said(reproduce: dict[str, ModuleType]) -> None:
    for name in NAMES:
        text = reproduce[name].section().text
        assert "nan" not in text
        if name in ("static", "overlap", "variants", "compaction"):
            assert "Not measured yet" in text


def test_the_page_is_that_of_the_results(reproduce: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """python reproduce/page.py was run after the last measurement."""
    monkeypatch.setattr(reproduce["common"], "RESULTS", ROOT / "benchmarks" / "results")
    text = (ROOT / "docs" / "reproduce.md").read_text()
    for name in NAMES:
        section = reproduce[name].section()
        assert section.text in text, f"{name}: run python reproduce/page.py"
        for picture in section.pictures:
            assert (ROOT / "docs" / picture).is_file()


def test_dcs_against_the_best_other_in_every_setting(reproduce: dict[str, ModuleType], tmp_path: Path) -> None:
    rows = [row("dcs", 5.0), row("tvs", 8.0), row("fisher", 7.0), row("l1", 4.0), row("random", 1.0)]
    rows += [row("dcs", 9.0, budget=0.3), row("tvs", 6.0, budget=0.3)]
    write(tmp_path / "results" / "criteria_vgg16.csv", rows)
    text = reproduce["criteria"].section().text
    assert "| other discriminative scores | 3.65 | +2.00 | -0.50 | 2 |" in text
    assert "| the best of all others |  | -1.00 | -2.00 | 2 |" in text
    assert "| l1 | 4.0 |" in text
    assert "| random | **1.0** |" in text


def test_ours_beside_each_over_all_settings(reproduce: dict[str, ModuleType], tmp_path: Path) -> None:
    """Settings in which a criterion is missing do not count."""
    rows = []
    for weights, losses in (
        ("plain", {"joint": 5.0, "residual": 9.0, "l1": 4.5}),
        ("reconstructed", {"joint": 4.0, "residual": 2.0, "l1": 6.0}),
        ("recalibrated", {"joint": 90.0, "l1": 1.0}),
    ):
        rows += [row(name, loss, weights=weights) for name, loss in losses.items()]
    write(tmp_path / "results" / "criteria_vgg16.csv", rows)
    text = reproduce["criteria"].section().text
    assert "over 2 settings" in text
    lines = (
        "| ours | 3.50 |  |  |",
        "| joint | 4.50 | 1 | 0 |",
        "| l1 | 5.25 | 1 | 0 |",
        "| residual | 5.50 | 1 | 0 |",
    )
    assert "\n".join(lines) in text


def test_ours_is_what_is_taken_where_no_criterion_is_named(reproduce: dict[str, ModuleType]) -> None:
    ours = reproduce["criteria"].OURS
    assert ours == {weights: best_criterion(weights == "reconstructed") for weights in ours}


def test_means_over_seeds(reproduce: dict[str, ModuleType], tmp_path: Path) -> None:
    write(
        tmp_path / "results" / "criteria_vgg16.csv", [row("random", 4.0), row("random", 8.0, seed=1), row("dcs", 7.0)]
    )
    assert "| random | **6.0** |" in reproduce["criteria"].section().text


def test_static_dcs_beside_tvs(reproduce: dict[str, ModuleType], tmp_path: Path) -> None:
    write(tmp_path / "results" / "criteria_vgg16.csv", [row("dcs", 5.0), row("tvs", 8.0, params_active=1000)])
    assert "| vgg16 | uniform | 51 % | plain | 5.00 | 8.00 | +3.00 | +10.00 % |" in reproduce["static"].section().text


def test_gains_within_clusters_are_over_the_whole_base_model(reproduce: dict[str, ModuleType], tmp_path: Path) -> None:
    inside = row("dcs", 2.0, method="semantic-truecluster", base_top1=0.8)
    write(tmp_path / "results" / "criteria_vgg16.csv", [row("dcs", 5.0), inside])
    text = reproduce["clusters"].section().text
    assert "| vgg16 | 5.73 | 70.00 | 80.00 (+10.00) |" in text
    assert "| 51 %, uniform | 78.00 (+8.00) |  |  |" in text


def test_clusters_cut_by_cut(reproduce: dict[str, ModuleType], tmp_path: Path) -> None:
    cut = {"cut": "features.23", "tail_share": 0.392, "base_top1": 0.8}
    rows = [
        cut | {"scored_on": scored, "weights": weights, "top1": top1}
        for scored, weights, top1 in ((40, "plain", 0.6), (40, "reconstructed", 0.81), (200, "low-rank", 0.82))
    ]
    write(tmp_path / "results" / "cuts_vgg16.csv", rows)
    text = reproduce["clusters"].section().text
    assert "| base, limited | plain | reconstructed | low-rank |" in text
    assert "| `features.23` | 39 % | 40 | 80.00 | 60.00 (-20.00) | 81.00 (+1.00) |  |" in text
    assert "| `features.23` | 39 % | 200 | 80.00 |  |  | 82.00 (+2.00) |" in text


def test_one_smaller_network(reproduce: dict[str, ModuleType], tmp_path: Path) -> None:
    common = {"model": "vgg16", "ratio": 4.02, "time_saved": 0.61, "minutes": 12.34}
    ours = common | {"method": "static", "criterion": "residual", "epochs": 0, "loss": 0.5, "load": 0.01}
    theirs = common | {"method": "static-torch-pruning", "criterion": "l1", "epochs": 3, "loss": 2.25, "load": ""}
    write(tmp_path / "results" / "static_vgg16_cpu.csv", [ours, theirs])
    text = reproduce["compaction"].section().text
    assert "vgg19 loses 1.76 at 1.51 times fewer MACs" in text
    assert "| vgg16 | sinf, residual | 4.02 | 0 | 0.50 | 61.0 % | 12.3 |" in text
    assert "| vgg16 | torch-pruning, l1 | 4.02 | 3 | 2.25 |  | 12.3 |" in text  # beside what, nobody knows


def test_the_row_within_the_papers_loss_is_picked_on_calibration_images(
    reproduce: dict[str, ModuleType], tmp_path: Path
) -> None:
    """The second row would be within the limit on the images of the report, but not on those that choose."""
    rows = [
        {"method": "semantic", "calibration_loss": chosen, "loss": loss, "cost": 1 - saved, "time_saved": saved}
        for chosen, loss, saved in ((1, 1.2, 0.2), (3.8, 3, 0.4), (3, 4, 0.35), (5, 5, 0.5))
    ]
    write(tmp_path / "results" / "tradeoff_vgg16_cpu.csv", rows)
    text = reproduce["tradeoff"].section().text
    assert "| vgg16 | routed | 29 % at 3.75 | 35.0 % at 4.00 | 35.0 % at 4.00 |" in text
    assert "| vgg16 | static | 29 % at 3.75 | not measured | not measured |" in text


def epoch(number: int, top1: float) -> dict[str, object]:
    """One of a log of a training."""
    said = {"what": "epoch", "epoch": number, "epochs": 6, "loss": 1.23456, "top1": top1, "on": "test[:20%]"}
    return said | {"seconds": 800, "start": "vgg16", "name": "", "sha256": ""}


def test_a_training_is_shown_epoch_by_epoch_and_with_its_end(reproduce: dict[str, ModuleType], tmp_path: Path) -> None:
    path = tmp_path / "results" / "trained_vgg19_cifar100.csv"
    assert "| vgg19 | 8.38 | not trained |" in reproduce["clusters"].section().text
    write(path, [epoch(1, 0.5), epoch(2, 0.6)])
    text = reproduce["recipes"].section().text
    assert "**vgg19**: What VGG16 has starts from its weights" in text
    assert "has begun" in text
    assert "| vgg19 | 8.38 | in training |" in reproduce["clusters"].section().text
    assert "It has done epoch 2 of 6." in text
    assert "| 2 | 1.235 | 60.00 % | 800 |" in text
    end = epoch(0, 0.7012) | {"what": "weights", "on": "test", "name": "model.safetensors", "sha256": "ab" * 32}
    write(path, [epoch(1, 0.5), end])
    text = reproduce["recipes"].section().text
    assert "has begun" not in text
    assert "After 6 epochs 70.12 % of the 10,000 test images are right (`model.safetensors`, sha256 `abab" in text
    assert "| vgg19 | routed | 35 % at 0.17 | trained, not measured |" in reproduce["tradeoff"].section().text
    assert "| resnet50 | routed | 15 % at 6.75 | not trained |" in reproduce["tradeoff"].section().text


def test_the_recipe_on_the_page_is_that_of_make_bench(
    reproduce: dict[str, ModuleType], script: Callable[..., ModuleType], tmp_path: Path
) -> None:
    commands = script("run").commands(Path("shared"), Path("runs"))
    (words,) = [c.arguments for c in commands if c.name == "sinf" and c.arguments[0] == "train"]
    paths = {
        "CIFAR100": "shared/data/cifar100",
        "vgg16_cifar100.safetensors": "shared/weights/vgg16_cifar100.safetensors",
    }
    shown = [paths.get(word, word) for word in shlex.split(reproduce["recipes"].VGG19)[1:]]
    assert sorted(map(str, words)) == sorted(shown)


def test_variants_of_dcs_and_costs(reproduce: dict[str, ModuleType], tmp_path: Path) -> None:
    rows = [row("dcs", 5.0, weights="reconstructed"), row("reach", 3.0, weights="reconstructed")]
    rows += [row("dcs", 6.0, weights="reconstructed", seed=1)]
    write(tmp_path / "results" / "dcs_vgg16.csv", rows)
    cost = {"criterion": "dcs", "images": 1250, "clusters": 1, "seconds": 12.34, "bytes": 5e6}
    write(tmp_path / "results" / "scoring_vgg16_cpu.csv", [cost])
    text = reproduce["variants"].section().text
    assert "| `dcs` | the paper's score | 5.50 |" in text
    assert "| dcs | 1250 | 1 | 12.3 | 5 |" in text


def test_a_function_is_taken_out_of_a_script_that_cannot_be_imported(
    reproduce: dict[str, ModuleType], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit\n\ndef twice(x):\n    return 2 * helper(x, async=True)\n")
    space = reproduce["peers"].functions(script, "twice", helper=lambda x, non_blocking: x + non_blocking)
    assert space["twice"](3) == 8


def test_what_only_a_gpu_has_is_left_out(reproduce: dict[str, ModuleType], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("class Moved:\n    def __init__(self, x):\n        self.x = x.cuda().float()\n")
    moved = reproduce["peers"].functions(script, "Moved", without=(".cuda()",))["Moved"]
    assert moved(torch.ones(2, dtype=torch.int64)).x.dtype is torch.float32


def test_others_low_rank_beside_ours(reproduce: dict[str, ModuleType], tmp_path: Path) -> None:
    common = {"model": "vgg16", "part": "file.py", "images": 512}
    theirs = common | {"criterion": "low-rank", "code": "them/code", "macs_saved": 0.334, "loss": 0.9}
    score = common | {"criterion": "l1", "code": "them/code", "rank_correlation": 0.5, "rank_correlation_least": 0.25}
    score |= {"same_half": 0.75, "same_half_least": 0.5, "macs_saved": "", "loss": "", "budget": ""}
    halves = {"same_half": "", "same_half_least": "", "rank_correlation": "", "rank_correlation_least": ""}
    rows = [score, *(theirs | halves | {"budget": budget} for budget in (0.666667, 0.25))]
    write(tmp_path / "results" / "peers_vgg16.csv", rows)
    ours = {"criterion": "low-rank", "budget": 0.666667, "epochs": 0, "loss": 0.4375}
    write(tmp_path / "results" / "static_vgg16_cpu.csv", [ours, ours | {"epochs": 3, "loss": 0.1}])
    text = reproduce["peers"].section().text
    assert "| l1 | them/code | file.py | 512 | 0.500 | 0.250 | 75 % | 50 % |" in text
    assert "from 512 train images, as their script takes them" in text
    assert "| them/code | 1.5 | 33.4 % | 0.90 | 0.44 |" in text
    assert "| them/code | 4 | 33.4 % | 0.90 |  |" in text


def test_the_half_that_two_scores_keep(reproduce: dict[str, ModuleType]) -> None:
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert reproduce["peers"].same_half(scores, 10 * scores) == 1
    assert reproduce["peers"].same_half(scores, -scores) == 0
    assert reproduce["peers"].same_half(scores, torch.tensor([4.0, 1.0, 2.0, 1.5])) == 0.5
