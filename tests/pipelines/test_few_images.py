"""Classes with few or no images, and images without labels: what works works, and what it costs is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from program import Program, build_words
from sinf.bundle.semantic import Bundle
from sinf.criteria import NAMES, group_statistics, make_criterion
from sinf.data.clusters import from_column
from sinf.data.images import LabelledImages, load_images
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import DataError, DataWarning
from sinf.graph.coupling import couple
from sinf.graph.trace import trace
from sinf.measure.accuracy import evaluate
from sinf.models import load_model
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.routing.predictor import RouterConfig
from sinf.statistics import collect
from tiny import CLASSES, COLOUR, Concat, randomise

HALVES = ("--score", "train[:70%]", "--test", "train[70%:]")
SHORT = ("--images", 40, "--pairs", 2, "--keep-anyway", "--threads", 1)


def without(images: LabelledImages, *classes: int) -> LabelledImages:
    return images.select(torch.nonzero(~torch.isin(images.labels, torch.tensor(classes))).flatten())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with nothing but images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.png").write_bytes(tiny.picture(number, (32, 32)))
    return folder


# ---- classes without images


@pytest.mark.parametrize("missing", [(2,), (0, 1), (1, 3, 5)])
@pytest.mark.parametrize("across", [False, True])
def test_a_build_without_images_of_some_classes(
    tiny_images: LabelledImages, tmp_path: Path, missing: tuple[int, ...], across: bool
) -> None:
    """Also of all classes of a cluster; every input gets an answer among all classes."""
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    part, other = without(tiny_images, *missing), tiny.coloured_images(tmp_path, 60, seed=1)
    config = BuildConfig(
        cut_at=0.5, max_loss=0.9, route_draws=120, router=RouterConfig(epochs=1, hidden=8), macs=0.5,
        across_clusters=across, keep_anyway=True,
    )  # fmt: skip
    with pytest.warns(DataWarning) as caught:
        build(base, Images(part, part, other), from_column(tiny_images), config, tmp_path / "bundle")
    said = [str(each.message) for each in caught]
    for purpose, cost in (("scoring", "may be removed"), ("routing", "wrong route")):
        line = next(text for text in said if purpose in text)
        assert f"{len(missing)} of 6 classes" in line
        assert tiny_images.class_names[missing[0]] in line
        assert cost in line
    bundle = Bundle.load(tmp_path / "bundle")
    assert len(bundle.class_names) == 6
    assert evaluate(SemanticModel(bundle), other).images == 60


def test_few_images_on_the_command_line(sinf: Program, data: Path, weights: Path, tmp_path: Path) -> None:
    """Three images of six classes: one line says which classes have none."""
    code, _, err = sinf.call(*build_words(data, weights, tmp_path / "out"), "--score", "train[:3]")
    assert code == 0, err
    assert sum("scoring says nothing of 3 of 6 classes" in line for line in err.splitlines()) == 1
    words = ("prune", "vgg11", "--weights", weights, "--data", data, "--test", "test", "--macs", 0.9, *SHORT)
    code, _, err = sinf.call(
        *words, "--score", "train[:9]+train[12:15]", "--method", "channels", "--out", tmp_path / "p"
    )
    assert code == 0, err


# ---- images without labels


def test_a_folder_of_images_alone(photos: Path) -> None:
    with pytest.raises(DataError, match="no label column"):
        load_images(photos, "train")
    images = load_images(photos, "train[:50%]", need_labels=False)
    assert (len(images), images.labelled) == (20, False)
    assert images.shuffled
    assert images.sample(7).labelled is False
    with pytest.raises(DataError, match="needs labels"):
        images.require_labels("this")


def test_splits_without_labels(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        (tmp_path / split).mkdir()
        for number in range(count):
            (tmp_path / split / f"{number}.png").write_bytes(tiny.picture(number))
    assert [len(load_images(tmp_path, split, need_labels=False)) for split in ("train", "test")] == [3, 2]


@pytest.mark.parametrize("method", ["channels", "ranks"])
def test_pruning_needs_no_labels(sinf: Program, photos: Path, weights: Path, tmp_path: Path, method: str) -> None:
    words = [
        "prune",
        "vgg11",
        "--weights",
        weights,
        "--data",
        photos,
        "--score",
        "train[:70%]",
        "--test",
        "train[70%:]",
    ]
    code, out, err = sinf.call(*words, "--macs", 0.8, "--method", method, "--out", tmp_path / "out", *SHORT)
    assert code == 0, err
    assert "no labels: the base model's own answers" in err
    assert "100.00 %" in out  # the base model agrees with itself


@pytest.mark.parametrize("change", [("--criterion", "dcs"), ("--criterion", "taylor"), ("--finetune", 1)])
def test_what_needs_labels_says_so(
    sinf: Program, photos: Path, weights: Path, tmp_path: Path, change: tuple[object, ...]
) -> None:
    words = [
        "prune",
        "vgg11",
        "--weights",
        weights,
        "--data",
        photos,
        "--score",
        "train[:70%]",
        "--test",
        "train[70%:]",
    ]
    code, _, err = sinf.call(*words, "--macs", 0.8, "--method", "channels", "--out", tmp_path / "out", *SHORT, *change)
    assert code == 2
    assert "label" in err.splitlines()[-1]
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    code, _, err = sinf.call(*build_words(photos, weights, tmp_path / "bundle"))
    assert code == 2
    assert "no label column" in err


@pytest.mark.parametrize("name", NAMES)
def test_criteria_know_whether_they_read_labels(name: str) -> None:
    """One that says it does not gives the same importances for any labels."""
    criterion, model = make_criterion(name), randomise(Concat()).requires_grad_(False)
    x, labels = torch.randn(24, *COLOUR.size), torch.arange(24) % CLASSES
    graph = trace(model, COLOUR)
    coupling = couple(graph)
    group, scores = coupling.free_groups()[0], []
    for each in (labels, torch.zeros_like(labels)):
        sums = collect(graph, coupling, [(x, each)], classes=CLASSES, needs=criterion.needs, pool=criterion.pool)
        scores.append(criterion.score(group_statistics(graph, coupling, group, sums)))
    assert criterion.reads_labels or torch.equal(*scores)
    assert criterion.reads_labels == (name in ("dcs", "taylor", "taylor-squared", "fisher", "tvs", "chip", "hrank"))
