"""Dynamic bundles: saved and loaded, refused when damaged, and what they say about images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sinf
from gated import stir
from sealed import rewrite
from sinf.data.images import LabelledImages, load_images
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.cost import Spread
from sinf.dynamic.model import DynamicModel, evaluate
from sinf.dynamic.network import GateConfig, attach
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import BundleError
from sinf.models import BaseModel, load_model
from tiny import CLASSES, coloured_images, randomise

NAMES = ["red", "orange", "green", "teal", "blue", "violet"]


@pytest.fixture(scope="module")
def bundle() -> DynamicBundle:
    torch.manual_seed(0)
    base = load_model("resnet20", classes=CLASSES, options={"width": 0.5})
    base = BaseModel(randomise(base.module), base.spec)
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    network = stir(attach(base, GateConfig(sites=("layer1.0.conv1", "layer2.1.conv1"))).eval())
    with torch.no_grad():
        network.model.fc.bias += 0.1  # as training would
        _, seen = network.observe(torch.randn(8, 3, 32, 32))
    for index, saliency in enumerate(seen.saliencies):
        network.gate(index).set_remaining(0.5, saliency.mean(0).detach())
    return DynamicBundle.of(network, base.spec, before, NAMES, {"epochs": "1"})


@pytest.fixture
def saved(bundle: DynamicBundle, tmp_path: Path) -> Path:
    bundle.save(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return coloured_images(tmp_path_factory.mktemp("images"), 30, seed=3)


def test_what_is_loaded_is_what_was_saved(bundle: DynamicBundle, saved: Path) -> None:
    x = torch.randn(3, 3, 32, 32)
    loaded = sinf.from_pretrained(saved)
    assert isinstance(loaded, DynamicModel)
    assert torch.equal(loaded(x), DynamicModel(bundle)(x))
    assert torch.allclose(loaded(x), loaded.choose(x).logits, atol=1e-4)
    loaded.save_pretrained(saved)
    assert torch.allclose(sinf.from_pretrained(saved)(x), loaded(x), atol=1e-5)


def test_the_base_model_is_that_before_training(bundle: DynamicBundle) -> None:
    model, x = DynamicModel(bundle), torch.randn(2, 3, 32, 32)
    base = load_model("resnet20", classes=CLASSES, options={"width": 0.5}).module
    base.load_state_dict(bundle.base_state)
    assert torch.allclose(model.base(x), base(x), atol=1e-4)
    assert not torch.equal(bundle.base_state["fc.bias"], bundle.state["model.fc.bias"])


def test_a_batch_is_masked_or_goes_one_by_one(bundle: DynamicBundle) -> None:
    x = torch.randn(4, 3, 32, 32)
    one, other = DynamicModel(bundle, batches="each")(x), DynamicModel(bundle, batches="mask")(x)
    assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("name", ["model.safetensors", "dynamic.safetensors", "README.md"])
def test_a_damaged_bundle_is_refused(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match="damaged"):
        sinf.from_pretrained(saved)
    (saved / name).unlink()
    with pytest.raises(BundleError, match="missing"):
        sinf.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": ["layer1.0.conv1"]}, "stand where they were trained"),
        ({"gates": {"nothing": 1}}, "gates"),
        ({"sinf_format": 99}, "format"),
        ({"model": {"name": "os:getcwd", "classes": 6, "options": {}}}, "preprocessing"),
    ],
    ids=["sites", "gates", "format", "model"],
)
def test_a_bundle_that_contradicts_itself_is_refused(saved: Path, change: dict, message: str) -> None:
    rewrite(saved / "config.json", change)
    with pytest.raises(BundleError, match=message):
        sinf.from_pretrained(saved)


def test_the_code_of_others_is_not_run_unasked(saved: Path) -> None:
    model = json.loads((saved / "config.json").read_text())["model"]
    rewrite(saved / "config.json", {"model": model | {"name": "os:getcwd"}})
    with pytest.raises(BundleError, match="runs that code"):
        sinf.from_pretrained(saved)


def test_one_method_is_not_taken_for_the_other(saved: Path, built: Path) -> None:
    with pytest.raises(BundleError, match="method dynamic"):
        SemanticModel.from_pretrained(saved)
    with pytest.raises(BundleError, match="method semantic"):
        DynamicModel.from_pretrained(built)
    assert isinstance(sinf.from_pretrained(built), SemanticModel)


def test_a_folder_with_other_files_is_not_replaced(bundle: DynamicBundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="only a bundle"):
        bundle.save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@torch.no_grad()
def test_evaluation_counts_input_by_input(bundle: DynamicBundle, images: LabelledImages) -> None:
    model = DynamicModel(bundle)
    result = evaluate(model, images, batch=7)
    right, macs = 0, []
    for x, y in images.batches(bundle.spec.preprocessing, 1):
        _, seen = model.network.observe(x)
        right += int(model(x).argmax(1) == y)
        macs.append(model.network._count.total(model.network.keep(seen)[0]) + model.network.gate_macs())
    assert result.top1 == right / 30
    assert result.macs.mean == pytest.approx(sum(macs) / 30)
    ends = torch.tensor(macs, dtype=torch.float64).quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    assert [result.macs.p5, result.macs.p95] == pytest.approx(ends)
    assert result.macs_saved == pytest.approx(1 - sum(macs) / 30 / result.base_macs)
    assert sum(result.macs_by_difficulty[:2]) == pytest.approx(2 * result.macs.mean, rel=0.1)
    assert list(result.remaining) == ["layer1.0.conv1", "layer2.1.conv1"]


def test_spread() -> None:
    spread = Spread.of(torch.arange(101.0))
    assert (spread.mean, spread.p5, spread.median, spread.p95) == (50, 5, 50, 95)


def test_data_can_be_read_again(saved: Path, data: Path) -> None:
    """The workflow of semantic bundles, in Python."""
    model = sinf.from_pretrained(saved)
    test = load_images(data, "test")
    assert evaluate(model, test).images == 60
    times = sinf.latency(model.base, model, torch.randn(2, 3, 32, 32), pairs=2, warmup=0)
    assert times.mean > 0
