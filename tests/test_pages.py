"""The Python of README, guide and other pages runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sinf.criteria import NAMES, group_statistics
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.network import attach
from sinf.engine.torch_engine import SemanticModel
from sinf.export.split import export_split
from sinf.models import load_model
from sinf.models.trace import trace
from sinf.statistics import collect
from sinf.subgraph.coupling import couple
from tiny import CLASSES, COLOUR, Residual, randomise

ROOT = Path(__file__).parents[1]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_the_readme_runs(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sinf-demo").mkdir()
    (tmp_path / "sinf-demo" / "bundle").symlink_to(built)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md")
    names: dict = {"images": torch.randn(5, 3, 32, 32)}
    exec(code, names)
    assert names["logits"].shape == (5, 6)
    assert torch.equal(names["routed"].logits, names["logits"])


def test_the_guide_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow network and few images of the names that the guide uses."""
    monkeypatch.chdir(tmp_path)
    save_file(
        load_model("vgg16", classes=6, options={"width": 0.125}).module.state_dict(), "vgg16_cifar100.safetensors"
    )
    (tmp_path / "cifar100").symlink_to(data)
    (code,) = blocks("docs/guide.md")
    code = code.replace("max_loss=0.01", "max_loss=0.9, route_draws=60")
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


def test_the_page_on_engines_runs(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").symlink_to(built)
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
