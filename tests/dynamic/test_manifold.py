"""What sub-networks say of the manifold: similarities, difficulty, and the picture of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from gated import stir
from sinf.data.images import LabelledImages
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.manifold import Similarity, explore
from sinf.dynamic.model import DynamicModel
from sinf.dynamic.network import GateConfig, attach
from sinf.errors import DataError
from sinf.models import BaseModel, load_model
from sinf.report import dynamic_figure
from tiny import CLASSES, coloured_images, randomise


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return coloured_images(tmp_path_factory.mktemp("images"), 30, seed=3)


def model(kind: str) -> DynamicModel:
    torch.manual_seed(0)
    base = load_model("resnet20", classes=CLASSES, options={"width": 0.5})
    base = BaseModel(randomise(base.module), base.spec)
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    network = attach(base, GateConfig(kind)).eval()
    if kind == "manidp":
        stir(network)
        _, seen = network.observe(torch.randn(16, 3, 32, 32))
        for index, saliency in enumerate(seen.saliencies):
            network.gate(index).set_remaining(0.5, saliency.mean(0).detach())
    else:
        for index in range(len(network.sites)):
            network.gate(index).set_remaining(0.5, torch.empty(0))
    return DynamicModel(DynamicBundle.of(network, base.spec, before, [str(i) for i in range(CLASSES)], {}))


def test_inputs_of_static_gates_all_keep_the_same(images: LabelledImages) -> None:
    found = explore(model("static"), images, pairs=50)
    for similarity in (found.before, found.after):
        assert torch.allclose(similarity.kept, torch.ones(50))
        assert similarity.correlation == 0.0
    assert float(found.macs.std()) < 1e-12


def test_numbers_agree_with_what_the_model_chooses(images: LabelledImages) -> None:
    dynamic = model("manidp")
    found = explore(dynamic, images, pairs=200)
    assert found.cross_entropy.shape == found.macs.shape == (len(images),)
    assert found.remaining.shape == (images.classes, len(dynamic.network.sites))
    x = torch.cat([batch for batch, _ in images.batches(dynamic.bundle.spec.preprocessing)])
    chosen = dynamic.choose(x)
    assert torch.allclose(found.macs, chosen.macs / dynamic.network.base_macs)
    third = chosen.remaining[images.labels == 3].mean(0)
    assert torch.allclose(found.remaining[3], third)
    assert 0 < float(found.after.kept.min()) <= float(found.after.kept.max()) <= 1 + 1e-6
    assert float(found.after.kept.std()) > 0
    assert not dynamic.network.wants_features


def test_correlation() -> None:
    x = torch.linspace(0, 1, 10)
    assert Similarity(x, 2 * x).correlation == pytest.approx(1)
    assert Similarity(x, -x).correlation == pytest.approx(-1)


def test_one_image_has_no_other(images: LabelledImages) -> None:
    with pytest.raises(DataError, match="two images"):
        explore(model("static"), images.select([0]))


def test_the_picture(images: LabelledImages, tmp_path: Path) -> None:
    names = [str(i) for i in range(CLASSES)]
    for kind in ("manidp", "static"):
        path = dynamic_figure.draw(explore(model(kind), images), names, tmp_path / "new" / f"{kind}.png")
        assert Image.open(path).size[0] >= 1000


def test_classes_without_images_are_left_out_of_the_picture(images: LabelledImages) -> None:
    from matplotlib import pyplot as plt

    some = images.select(torch.nonzero(images.labels < 2).flatten().tolist())
    figure, axis = plt.subplots()
    dynamic_figure._use(figure, axis, explore(model("manidp"), some), [f"class {i}" for i in range(CLASSES)])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["class 0", "class 1"]
    assert torch.as_tensor(axis.images[0].get_array().filled(torch.nan)).isfinite().all()
    plt.close(figure)
