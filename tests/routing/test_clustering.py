"""Clusters found in a base model: planted ones are found, whatever the order of images and classes."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import tiny
from program import Program, build_words
from sinf.bundle.semantic import Bundle
from sinf.cli import bundles, optimize
from sinf.cli import clusters as verb
from sinf.cli.verb import options_of
from sinf.data.clusters import from_file, to_file
from sinf.data.images import LabelledImages, Preprocessing, load_images
from sinf.errors import ConfigError, DataError, DataWarning
from sinf.measure.answers import answered_by
from sinf.models import BaseModel, ModelSpec, load_model
from sinf.routing import clustering
from sinf.routing.clustering import METHODS, SOURCES, counts, find_clusters, named, partition, similarity
from sinf.routing.routability import Observed, early_probabilities, estimate

GROUPS = ((0, 7, 9), (1, 4, 10), (2, 5, 11), (3, 6, 8))  # of 12 classes
SUPER = ["red", "green", "blue", "white"]
NAMES = [f"Klasse {c} é" for c in range(12)]
CENTRES = np.array([[200, 60, 60], [60, 190, 60], [60, 60, 200], [190, 190, 190]], float)  # colours of the groups
AMPLITUDES = np.array([0.0, 22.0, 44.0])  # of a chequered pattern, by the place of a class in its group
SIZE = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3)


def of_planted() -> Tensor:
    return torch.tensor([next(g for g, classes in enumerate(GROUPS) if c in classes) for c in range(12)])


def traits(label: int) -> tuple[np.ndarray, float]:
    """Colour and amplitude of a class."""
    group = int(of_planted()[label])
    return CENTRES[group], AMPLITUDES[GROUPS[group].index(label)]


class Hues(nn.Module):
    """The group by the mean colour, for sure; the class by how strong the pattern is, with doubt. The sign of the
    pattern is random, so that no linear function of early features tells the class."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 8, 2, stride=2, bias=False)
        self.head = nn.Linear(8, 12)
        colours = torch.tensor(np.array([traits(c)[0] for c in range(12)]) / 255 - 0.5).float() / 0.25
        strength = torch.tensor([traits(c)[1] for c in range(12)]).float() / 255 / 0.25
        signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 4
        with torch.no_grad():
            self.first.weight.copy_(torch.cat([torch.eye(3), -torch.eye(3)])[:, :, None, None])
            self.second.weight.zero_()
            self.second.weight[range(6), range(6)] = 0.25
            for place, sign in ((6, 1.0), (7, -1.0)):
                self.second.weight[place, :3], self.second.weight[place, 3:] = sign * signs / 3, -sign * signs / 3
            self.head.weight.copy_(torch.cat([4 * colours, -4 * colours, 24 * strength[:, None].repeat(1, 2)], 1))
            self.head.bias.copy_(-2 * colours.square().sum(1) - 12 * strength.square())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(torch.flatten(x, 2).mean(2))


def write_hues(folder: Path, count: int, seed: int, labels: list[int] | None = None) -> Path:
    """``count`` images, each nearly of the colour and amplitude of its class."""
    draw = np.random.default_rng(seed)
    labels = [number % 12 for number in range(count)] if labels is None else labels
    chequered = (-1.0) ** np.add.outer(np.arange(8), np.arange(8))[:, :, None]
    files = []
    for label in labels:
        colour, amplitude = traits(label)
        strength = draw.choice([-1, 1]) * (amplitude + draw.normal(0, 10))
        pixels = colour + draw.normal(0, 6, 3) + strength * chequered + draw.normal(0, 2, (8, 8, 3))
        stream = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "PNG")
        files.append(stream.getvalue())
    columns = {"label": (labels, NAMES), "super": ([int(of_planted()[c]) for c in labels], SUPER)}
    return tiny.write_parquet(folder, files, columns)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel(Hues().eval(), ModelSpec("hues", 12, SIZE))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return load_images(write_hues(tmp_path_factory.mktemp("hues"), 240, 0), "train")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    return load_images(write_hues(tmp_path_factory.mktemp("held"), 120, 1), "train")


def groups(of_class: Tensor) -> set[frozenset[int]]:
    return {frozenset(torch.nonzero(of_class == g).flatten().tolist()) for g in of_class.unique()}


PLANTED = groups(of_planted())


# ---- what is found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", SOURCES)
def test_planted_clusters_are_found(
    base: BaseModel, images: LabelledImages, held_out: LabelledImages, source: str, method: str
) -> None:
    """Their number too: fewer leave more classes to tell apart, more would fall back."""
    found = find_clusters(base, images, check=held_out, source=source, method=method)
    assert groups(found.clusters.of_class()) == PLANTED
    assert found.classes_by_count[4] == min(found.classes_by_count.values())
    assert found.agreement == 1.0
    assert found.found == found.given  # which is the same partition
    assert (found.found.images, found.found.clusters, found.found.largest) == (120, 4, 3)
    assert found.found.mimic > 0.98
    assert found.found.base_right > 0.98
    assert found.found.fallback < 0.1
    assert found.found.classes < 4


def test_the_number_of_clusters_may_be_given(base: BaseModel, images: LabelledImages) -> None:
    for count in (2, 6, 11):
        found = find_clusters(base, images, count=count)
        assert len(found.clusters) == count
        assert list(found.classes_by_count) == [count]
        assert not found.held_out


def test_classes_that_cannot_be_told_apart_early_fall_back(base: BaseModel, images: LabelledImages) -> None:
    """Clusters across the planted groups are named by the base model, but hardly by early features at the limit."""
    observed = Observed(torch.randn(300, 12) * 5, torch.randn(300, 4), None, torch.arange(300) < 150)
    result = estimate(early_probabilities(observed), observed, torch.arange(12) // 3, 0.01)
    assert result.fallback > 0.9
    assert result.classes > 11
    assert result.mimic < 0.5


def test_without_labels_the_answers_of_the_base_model_serve(
    base: BaseModel, images: LabelledImages, held_out: LabelledImages
) -> None:
    """The clusters do not depend on labels at all, and wrong labels do no harm."""
    scrambled = images.select(list(range(len(images))))
    scrambled.labels = scrambled.labels.flip(0)
    found = find_clusters(base, scrambled, check=held_out, labels=False)
    assert groups(found.clusters.of_class()) == PLANTED
    assert found.found.base_right is None
    assert all(right is None for _, right, _, _ in found.found.by_cluster)
    assert found.found.mimic > 0.98


def test_images_without_labels_are_taken(base: BaseModel, images: LabelledImages, tmp_path: Path) -> None:
    pixels = images.pixels(SIZE).numpy()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    unlabelled = answered_by(base, load_images(tmp_path, "train", need_labels=False)).images
    found = find_clusters(base, unlabelled)
    assert groups(found.clusters.of_class()) == PLANTED
    assert (found.found.base_right, found.given) == (None, None)


def test_classes_with_few_or_no_images_are_grouped_and_said(base: BaseModel, tmp_path: Path) -> None:
    labels = [c for c in range(12) if c not in (7, 4) for _ in range(20)] + [4] * 2
    images = load_images(write_hues(tmp_path, 0, 2, labels), "train")
    with pytest.warns(DataWarning, match=r"2 of 12 classes have fewer than 5 images \(Klasse 4 é, Klasse 7 é\)"):
        found = find_clusters(base, images)
    assert found.few == (NAMES[4], NAMES[7])
    assert groups(found.clusters.of_class()) == PLANTED


# ---- laws


def draw_observed(seed: int, classes: int, count: int = 80) -> Observed:
    """Answers with a few groups in them, and features that tell something of the classes."""
    draw = torch.Generator().manual_seed(seed)
    towards = torch.randn(classes, classes, generator=draw) + 4 * torch.eye(classes)
    labels = torch.randint(classes, (count,), generator=draw)
    logits = (towards[labels] + 2 * torch.randn(count, classes, generator=draw)).double()
    features = torch.randn(classes, 6, generator=draw)[labels] + torch.randn(count, 6, generator=draw)
    return Observed(logits, features, labels, torch.rand(count, generator=draw) < 0.5)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(4, 9),
    source=st.sampled_from(SOURCES),
    count=st.integers(2, 3),
    random=st.randoms(use_true_random=False),
)
def test_order_of_images_and_of_classes_changes_nothing(
    seed: int, classes: int, source: str, count: int, random: object
) -> None:
    observed = draw_observed(seed, classes)
    rows, renamed = list(range(80)), list(range(classes))
    random.shuffle(rows)
    random.shuffle(renamed)
    other = Observed(
        observed.logits[rows][:, renamed],  # class i there is class renamed[i] here
        observed.features[rows],
        torch.tensor([renamed.index(label) for label in observed.labels[rows].tolist()]),
        observed.half[rows],
    )
    similarities = similarity(observed, source)
    torch.testing.assert_close(similarity(other, source), similarities[renamed][:, renamed])
    expected, ours = (partition(similarity(each, source), count, "agglomerative") for each in (observed, other))
    assert {frozenset(renamed[c] for c in group) for group in groups(ours)} == groups(expected)
    first = estimate(early_probabilities(observed), observed, expected, 0.05)
    second = estimate(early_probabilities(other), other, ours, 0.05)
    for name in ("base_right", "mimic", "fallback", "loss", "classes"):
        assert getattr(second, name) == pytest.approx(getattr(first, name), abs=1e-9), name


def test_the_order_of_images_changes_nothing_from_end_to_end(base: BaseModel, images: LabelledImages) -> None:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    first, second = find_clusters(base, images), find_clusters(base, images.select(order))
    assert second.clusters == first.clusters
    assert second.found.fallback == pytest.approx(first.found.fallback)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(3, 9),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 300.0]),  # of logits: all the same, or so sure that classes share nothing
    source=st.sampled_from(SOURCES),
    method=st.sampled_from(METHODS),
    share=st.floats(0, 1),
)
def test_what_is_found_is_a_partition_of_all_classes(
    seed: int, classes: int, scale: float, source: str, method: str, share: float
) -> None:
    observed = draw_observed(seed, classes)
    observed = replace(observed, logits=scale * observed.logits)
    count = 2 + round(share * (classes - 3))
    similarities = similarity(observed, source)
    assert torch.equal(similarities, similarities.T)
    assert bool(((similarities > 0) & (similarities <= 1)).all())
    of_class = partition(similarities, count, method)
    clusters = named(of_class, similarities, ["x" * 900] * classes)  # refuses what is no partition
    assert len(clusters) == count
    assert clusters.classes == classes
    assert torch.equal(clusters.of_class(), of_class)
    assert max(map(len, clusters.names)) < 100


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), limits=st.lists(st.floats(0, 0.5), min_size=2, max_size=4))
def test_less_falls_back_where_more_may_be_lost(seed: int, limits: list[float]) -> None:
    observed = draw_observed(seed, 6)
    early, of_class = early_probabilities(observed), torch.arange(6) // 2
    results = [estimate(early, observed, of_class, limit) for limit in sorted(limits)]
    for low, high in pairwise(results):
        assert high.fallback <= low.fallback
        assert high.loss >= low.loss
        assert high.classes <= low.classes
    everything = estimate(early, observed, of_class, 1.0)
    assert everything.fallback <= 0.1  # images that are doubted more than all those of the other half
    assert everything.loss <= 1 - everything.mimic + 1e-9


def test_an_estimate_by_hand() -> None:
    """Clusters {0, 1} and {2, 3}. Half of the images set the threshold of the others; here they are the same."""
    early = torch.tensor([[0.6, 0.4, 0, 0], [0, 0, 0.9, 0.1], [0.5, 0.2, 0.3, 0], [0.1, 0.5, 0.4, 0]])
    answers = torch.tensor([0, 2, 2, 1])  # of the base model: the third image is routed elsewhere
    logits = 9 * torch.nn.functional.one_hot(answers, 4).double()
    observed = Observed(logits.repeat(2, 1), torch.zeros(8, 1), answers.repeat(2), torch.arange(8) < 4)
    result = estimate(early.double().repeat(2, 1), observed, torch.tensor([0, 0, 1, 1]), 0.0)
    # Doubts are 0, 0, 0.3 and 0.4: nothing may be lost, so what is doubted as much as the third image falls back.
    assert (result.fallback, result.loss, result.mimic, result.base_right) == (0.5, 0, 0.75, 1)
    assert result.classes == (2 + 2 + 4 + 4) / 4
    assert result.by_cluster == ((0.5, 1.0, 1.0, 0.5), (0.5, 1.0, 0.5, 0.5))
    wrong = replace(observed, labels=torch.tensor([0, 2, 3, 1]).repeat(2))  # the base model is wrong there anyway
    result = estimate(early.double().repeat(2, 1), wrong, torch.tensor([0, 0, 1, 1]), 0.0)
    assert (result.fallback, result.loss, result.base_right) == (0, 0, 1)


def test_numbers_that_are_tried() -> None:
    assert counts(3) == [2]
    assert counts(12) == list(range(2, 12))
    assert counts(100)[:10] == list(range(2, 12))
    assert counts(1000)[-1] < 1000
    assert len(counts(1000)) < 60


# ---- errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": "weights"}, "the source must be one of confusion, logits, features"),
        ({"method": "k-means"}, "the method must be one of agglomerative, spectral"),
        ({"count": 1}, r"must be in 2\.\.11"),
        ({"count": 12}, r"must be in 2\.\.11"),
        ({"max_loss": 3}, "fraction"),
        ({"memory": 1000}, "fit into memory"),
    ],
)
def test_what_cannot_be_is_refused(base: BaseModel, images: LabelledImages, options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_clusters(base, images, **options)


def test_images_must_fit_the_model_and_be_enough(
    base: BaseModel, images: LabelledImages, tiny_images: LabelledImages
) -> None:
    with pytest.raises(DataError, match="6 instead of 12"):
        find_clusters(base, tiny_images)
    with pytest.raises(DataError, match="6 instead of 12"):
        find_clusters(base, images, check=tiny_images)
    with pytest.raises(DataError, match="at least 20"):
        find_clusters(base, images.select(list(range(12))))
    with pytest.raises(DataError, match="at least 20 different"):
        find_clusters(base, images.select([0] * 100))
    two = BaseModel(base.module, ModelSpec("two", 2, SIZE))
    with pytest.raises(ConfigError, match="at least 3 classes"):
        find_clusters(two, images)


# ---- the file


ANY_NAMES = st.lists(st.text(max_size=8), min_size=3, max_size=7, unique=True)


@settings(max_examples=40)
@given(
    names=ANY_NAMES, twice=st.booleans(), seed=st.integers(0, 100), ending=st.sampled_from([".json", ".csv", ".CSV"])
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], twice: bool, seed: int, ending: str
) -> None:
    """Class names of any script, with commas, quotes and line ends, and names that two classes share."""
    names = [*names, names[0]] if twice else names
    of_class = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)) % 3
    clusters = named(of_class, torch.rand(len(names), len(names)), names)
    path = tmp_path_factory.mktemp("file") / f"clusters{ending}"
    to_file(clusters, names, path)
    read = from_file(path, names)
    assert dict(zip(read.names, read.members, strict=True)) == dict(zip(clusters.names, clusters.members, strict=True))


def test_a_file_of_another_kind_is_refused_before_the_work(
    sinf: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb.options.Data, "images", lambda *words: pytest.fail("images were opened"))
    says = sinf.refused("clusters", "vgg11", "--data", tmp_path, "--out", tmp_path / "clusters.xlsx")
    assert ".json or .csv" in says


# ---- the verbs


@pytest.mark.parametrize("cut", [(), ("--cut", "features.7")])
def test_a_build_takes_the_clusters_that_the_model_itself_shows(
    sinf: Program, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: tuple[str, ...]
) -> None:
    """They are those of find_clusters, for the limit of the loss and the cut of the build; how many is said."""
    made: list[clustering.FoundClusters] = []

    def finding(*arguments: Any, **options: Any) -> clustering.FoundClusters:
        assert options["max_loss"] == pytest.approx(0.9)
        made.append(find_clusters(*arguments, **options))
        return made[0]

    monkeypatch.setattr(clustering, "find_clusters", finding)
    words = [*build_words(data, weights, tmp_path / "bundle"), "--criterion", "l1", *cut]
    code, _, err = sinf.call(*words, "--clusters", "found")
    assert code == 0, err
    assert f"clusters: {len(made[0].clusters)} found" in err
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.clusters == made[0].clusters
    assert bundle.cut == made[0].cut
    assert not cut or bundle.cut == cut[1]


def test_one_option_of_two_verbs() -> None:
    help_of = [options_of(each)["clusters"].option.help for each in (bundles.build, optimize.optimize)]
    assert len(set(help_of)) == 1


def test_clusters_of_an_image_folder_are_built(sinf: Program, tmp_path: Path) -> None:
    """From images sorted by class to a bundle, with a network of another library and of ours."""
    for split, seed in (("train", 0), ("test", 1)):
        source = tiny.coloured_images(tmp_path / f"table{seed}", 60, seed)
        pixels = source.pixels(Preprocessing((3, 32, 32), (0.5,) * 3, (0.25,) * 3)).numpy()
        for number, (picture, label) in enumerate(zip(pixels, source.labels.tolist(), strict=True)):
            folder = tmp_path / "data" / split / ["Äpfel", "b, c", "3", "d", "e", "f"][label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{number}.png")
    torch.manual_seed(0)
    weights = tmp_path / "vgg11.safetensors"
    save_file(load_model("vgg11", classes=6, options={"width": 0.125}).module.state_dict(), weights)
    file = tmp_path / "clusters.csv"
    words = ["--data", tmp_path / "data", "--split", "train", "--threads", 1]
    text = sinf(
        "clusters", "vgg11", "--weights", weights, *words, "--check", "test", "--out", file, "--count", 5,
        "--json", tmp_path / "found.json",
    )  # fmt: skip
    for word in ("Äpfel", "b, c", "falls back", "classes an image", "60 images held out", "sinf build"):
        assert word in " ".join(text.split())
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["found"]["clusters"] == 5
    assert record["given"] is None
    names = load_images(tmp_path / "data", "train").class_names
    assert list(from_file(file, names).names) == record["clusters"]["names"]
    sinf(
        "build", "vgg11", "--weights", weights, "--data", tmp_path / "data", "--score", "train", "--route", "train",
        "--calibrate", "test", "--max-loss", 90, "--keep-anyway", "--route-draws", 60, "--clusters", file,
        "--out", tmp_path / "bundle",
    )  # fmt: skip
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert [each["name"] for each in config["clusters"]] == list(from_file(file, names).names)
    code, _, err = sinf.call(
        "build", "vgg11", "--weights", weights, "--data", tmp_path / "data", "--score", "train", "--route", "train",
        "--calibrate", "test", "--out", tmp_path / "other",
    )  # fmt: skip
    assert code == 2
    assert "--clusters found" in err.splitlines()[-1]


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "torchvision:squeezenet1_1"])
def test_networks_of_other_libraries_are_taken(name: str, tiny_images: LabelledImages) -> None:
    shape = {"size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    base = load_model(name, classes=6, pretrained=False, **shape)
    found = find_clusters(base, tiny_images)
    assert found.clusters.classes == 6
    assert found.given.clusters == 3
