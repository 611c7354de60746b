"""A compressor from outside the package goes where those of the package go: see also test_conformance.py here and in
engine."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sparsity
from outsider import outsider
from scopes import WHOLE, run_in, scope_of
from sinf.compress.compressor import compress
from sinf.compress.methods import make_compressor
from sinf.compress.select import Budget
from sinf.data.images import LabelledImages
from sinf.engine.torch_engine import SemanticModel
from sinf.export.single import export_single
from sinf.export.split import export_split
from sinf.graph.cost import MacCount
from sinf.models import load_model
from sinf.pipelines.candidates import Static
from sinf.pipelines.optimize import OptimizeConfig
from sinf.pipelines.optimize_search import Search, place_of
from times import times_of
from tiny import Mixed, coloured_images

LINES = 120


def test_it_is_one_small_file() -> None:
    assert len(Path(sparsity.__file__).read_text().splitlines()) <= LINES


def test_it_is_a_candidate(tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "_least", lambda *rungs_and_share: 0.9)  # half of every layer is as little as can stay
    torch.manual_seed(0)
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    other = coloured_images(tmp_path, 30, seed=1)
    with outsider() as name:
        config = OptimizeConfig(
            engine="torch", methods=(name,), budgets=(0.7,), cuts=(0.3,), tails=(0.95,), images=24, max_loss=0.5,
            by_time=False,
        )  # fmt: skip
        with closing(place_of(config, tiny_images, base.spec.preprocessing)) as place:
            search = Search(base, tiny_images, other, other, config, tmp_path / "work", lambda *said: None, place)
            designs = list(search.designs())
    methods = [design.method for design in designs if isinstance(design, Static)]
    assert name in methods
    assert len(designs) > len(methods), search.left_out  # and a cascade of it


def test_it_is_exported(built_sparse: Path, tmp_path: Path) -> None:
    """Exports compare their answers with the bundle's before they are written."""
    model = SemanticModel.from_pretrained(built_sparse)
    export_single(model, tmp_path / "out.onnx")
    export_split(model, tmp_path / "split")
    assert (tmp_path / "out.onnx").exists()
    assert (tmp_path / "split" / "manifest.json").exists()


def test_it_spends_a_budget_of_time(tmp_path: Path) -> None:
    """The layer that takes nearly all of it becomes sparse, and no other."""
    scope, _ = scope_of(Mixed(["residual", "residual", "plain"]))
    able = [name for name in scope.coupling.mixers.values() if sparsity.can_be_sparse(scope.graph.get_submodule(name))]
    for slow in (able[0], able[-1]):
        times = times_of(MacCount(scope.graph, scope.coupling), {slow: 1000.0})
        with outsider() as name:
            compressor = make_compressor(name, SimpleNamespace(criterion_name="residual", round_to=1))
            rule = Budget(0.9, times=times)
            assert set(compress(compressor, [scope], [(rule, WHOLE)], run_in(tmp_path))[0].layers) == {slow}
