"""``sinf optimize --clusters``: bundles of semantic clusters beside what else is tried. Times are made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from program import Program
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError
from sinf.measure.timing import pinned_threads
from sinf.pipelines import optimize as pipeline
from sinf.pipelines import optimize_search as searching
from sinf.pipelines.optimize_config import OptimizeConfig
from sinf.routing import clustering
from sinf.routing.threshold import NEVER
from times import taking

GROUPS = {"warm": [0, 2, 4], "cold": [1, 3, 5]}


@pytest.fixture
def words(weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The quickest run that makes a bundle of clusters, which is said to be the fastest of all."""

    def run(base: Any, scoring: Any, calibration: Any, config: OptimizeConfig, folder: Path, **options: Any) -> Any:
        """So narrow a network cannot be made as small as others."""
        small = replace(config, budgets=(0.6,), tails=(0.95,), routed_cuts=(0.5,), by_time=False)
        return optimizing(base, scoring, calibration, small, folder, **options)

    optimizing = pipeline.optimize
    monkeypatch.setattr(pipeline, "optimize", run)
    monkeypatch.setattr(searching, "interleaved", taking(lambda name: 2.0 if " clusters at " in name else 9.0))
    return [
        "optimize", "vgg11", "--weights", weights, "--data", data, "--score", "train", "--calibrate", "test",
        "--images", 24, "--max-loss", 90, "--engine", "torch", "--no-cascades", "--threads", 1,
        "--out", tmp_path / "fast", "--json", tmp_path / "found.json",
    ]  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[set[tuple[int, ...]] | None]:
    """The clusters that optimize() was asked for, which then does nothing."""
    seen: list[set[tuple[int, ...]] | None] = []

    def stop(base: Any, scoring: Any, calibration: Any, config: OptimizeConfig, folder: Path, **options: Any) -> Any:
        seen.append(None if config.clusters is None else set(config.clusters.members))
        raise ConfigError("stopped")

    monkeypatch.setattr(pipeline, "optimize", stop)
    return seen


def kinds(folder: Path) -> dict[str, int]:
    rows = json.loads((folder / "found.json").read_text())["rows"]
    return {kind: sum(row["kind"] == kind for row in rows) for kind in {row["kind"] for row in rows}}


def test_a_file_of_clusters(sinf: Program, words: list[object], tmp_path: Path) -> None:
    """What is delivered has the clusters of the file, and a threshold that lets subgraphs answer."""
    (tmp_path / "clusters.json").write_text(json.dumps(GROUPS))
    said = sinf(*words, "--clusters", tmp_path / "clusters.json")
    assert "2 clusters at" in " ".join(said.split())
    assert kinds(tmp_path).keys() == {"static", "semantic"}
    bundle = SemanticModel.from_pretrained(tmp_path / "fast").bundle
    assert set(bundle.clusters.members) == {(0, 2, 4), (1, 3, 5)}
    threshold = bundle.threshold
    assert threshold is not None
    assert threshold.value < NEVER


@pytest.mark.parametrize("option", [("--clusters", "column"), ("--cluster-column", "cluster")])
def test_a_column_of_clusters(
    sinf: Program, words: list[object], asked: list[set[tuple[int, ...]] | None], option: tuple[str, ...]
) -> None:
    assert sinf.call(*words, *option)[0] == 2
    assert asked == [{(0, 1), (2, 3), (4, 5)}]


def test_clusters_that_the_model_itself_shows(
    sinf: Program, words: list[object], asked: list[set[tuple[int, ...]] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of find_clusters, with the limit of the loss that was asked for, and it is said how many."""
    made: list[clustering.FoundClusters] = []

    def found(*arguments: Any, **options: Any) -> clustering.FoundClusters:
        assert options["max_loss"] == pytest.approx(0.9)
        made.append(original(*arguments, **options))
        return made[0]

    original = clustering.find_clusters
    monkeypatch.setattr(clustering, "find_clusters", found)
    code, _, err = sinf.call(*words, "--clusters", "found")
    assert code == 2
    assert f"clusters: {len(made[0].clusters)} found" in err
    assert asked == [set(made[0].clusters.members)]


def test_none_unless_asked_for(sinf: Program, words: list[object], tmp_path: Path) -> None:
    assert sinf.call(*words, "--clusters", "none")[0] == 0
    assert "semantic" not in kinds(tmp_path)


def test_a_file_that_is_not_there(sinf: Program, words: list[object], tmp_path: Path) -> None:
    assert "missing.json" in sinf.refused(*words, "--clusters", tmp_path / "missing.json")
    assert not (tmp_path / "fast").exists()


def test_the_threads_are_those_where_it_will_run(
    sinf: Program, words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes the candidates takes all that torch has."""
    seen: list[tuple[int, int]] = []

    def stop(base: Any, scoring: Any, calibration: Any, config: OptimizeConfig, folder: Path, **options: Any) -> Any:
        seen.append((config.threads, torch.get_num_threads()))
        raise ConfigError("stopped")

    monkeypatch.setattr(pipeline, "optimize", stop)
    with pinned_threads(3):
        for threads in (1, 2):
            assert sinf.call(*words, "--threads", threads)[0] == 2
    assert seen == [(1, 3), (2, 3)]
