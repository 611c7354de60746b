"""Labels of some data as classes of a model: by name, by a file, by number, and errors where that is not certain."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from program import Program
from sinf.data.images import LabelledImages, load_images
from sinf.data.label_file import read_label_file
from sinf.data.labels import ModelClasses, are_numbers, match_labels
from sinf.errors import DataError
from tiny import picture, write_parquet

ANIMALS = ModelClasses.of(["great white shark", "Cardigan", "cardigan", "crane", "crane", "hot dog"], "a test")
SYNONYMS = ModelClasses(
    ANIMALS.names,
    "a test",
    (("n0001", "man-eater"), ("n0002",), ("n0003",), ("n0004",), ("n0005",), ("n0006", "frank")),
)


def of_labels(folder: Path, labels: list[int], names: list[str] | None) -> LabelledImages:
    return load_images(
        write_parquet(folder, [picture(n) for n in range(len(labels))], {"label": (labels, names)}), "train"
    )


def in_folders(folder: Path, *names: str, each: int = 2) -> LabelledImages:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for copy in range(each):
            (folder / name / f"{copy}.png").write_bytes(picture(10 * number + copy))
    return load_images(folder, "train")


def by_image(images: LabelledImages) -> dict[bytes, str]:
    return dict(zip(images.digests(), (images.class_names[label] for label in images.labels.tolist()), strict=True))


def test_folders_that_hold_some_of_the_classes_in_another_order(tmp_path: Path) -> None:
    images = in_folders(tmp_path, "hot_dog", "GreatWhiteShark", "Cardigan")
    matched = match_labels(images, 6, ANIMALS)
    assert matched.images.class_names == list(ANIMALS.names)
    before, after = by_image(images), by_image(matched.images)
    meant = {"hot_dog": "hot dog", "GreatWhiteShark": "great white shark", "Cardigan": "Cardigan"}
    assert {meant[before[image]] for image in before} == set(meant.values())
    assert after == {image: meant[name] for image, name in before.items()}
    assert "3 labels are 3 of the model's 6 classes" in str(matched.said)
    assert "a test" in str(matched.said)


def test_case_alone_parts_two_classes_where_labels_are_written_as_they_are(tmp_path: Path) -> None:
    matched = match_labels(in_folders(tmp_path, "Cardigan", "cardigan"), 6, ANIMALS).images
    assert matched.used_classes() == [1, 2]


@pytest.mark.parametrize(
    ("names", "says"), [(("CARDIGAN",), "CARDIGAN"), (("crane",), "crane"), (("cat", "dog"), "2 of 2")]
)
def test_labels_that_are_several_classes_or_none(tmp_path: Path, names: tuple[str, ...], says: str) -> None:
    for known in (ANIMALS, SYNONYMS):
        folder = tmp_path / known.source / str(len(known.others))
        with pytest.raises(DataError, match=says) as caught:
            match_labels(in_folders(folder, *names), 6, known)
        assert "--labels" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_two_labels_of_one_class_need_a_file(tmp_path: Path) -> None:
    images = in_folders(tmp_path, "hot dog", "hot_dog")
    with pytest.raises(DataError, match="like another"):
        match_labels(images, 6, ANIMALS)
    (tmp_path.parent / "labels.json").write_text('{"hot_dog": "hot dog", "hot dog": 5}')
    assert match_labels(images, 6, ANIMALS, file=tmp_path.parent / "labels.json").images.used_classes() == [5]


def test_synsets_and_synonyms(tmp_path: Path) -> None:
    images = in_folders(tmp_path, "n0006", "Man Eater")
    assert (
        sorted(by_image(match_labels(images, 6, SYNONYMS).images).values())
        == ["great white shark"] * 2 + ["hot dog"] * 2
    )
    with pytest.raises(DataError, match="n0006"):
        match_labels(images, 6, ANIMALS)


@given(order=st.permutations(range(6)), kept=st.sets(st.integers(0, 5), min_size=1))
def test_any_part_of_the_classes_in_any_order(order: list[int], kept: set[int]) -> None:
    """The law: an image's class has the name of its label, however the data numbers its classes."""
    names = [f"Class {number}" for number in range(6)]
    known = ModelClasses.of([f"class_{number}" for number in range(6)], "a test")
    shown = [names[number] for number in order]
    labels = torch.tensor([place for place, number in enumerate(order) if number in kept])
    images = _images(labels, shown)
    found = match_labels(images, 6, known).images
    assert [found.class_names[n] for n in found.labels.tolist()] == [f"class_{order[n]}" for n in labels.tolist()]


class _Rows:
    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def select(self, rows: list[int]) -> _Rows:
        return _Rows([self.rows[row] for row in rows])


def _images(labels: torch.Tensor, names: list[str]) -> LabelledImages:
    rows = _Rows(list(range(len(labels))))
    return LabelledImages(rows, name="data", image_column="img", labels=labels, class_names=names)


# ---- numbers


def test_a_model_without_names_takes_as_many_classes_as_they_are(tmp_path: Path) -> None:
    images = of_labels(tmp_path, [0, 2, 1], ["a", "b", "c"])
    for known in (
        None,
        ModelClasses.of(["0", "1", "2"], "a test"),
        ModelClasses.of(["LABEL_0", "LABEL_1", "LABEL_2"], "t"),
    ):
        matched = match_labels(images, 3, known)
        assert matched.images is images
        assert matched.said is None


def test_numbers_without_names_are_the_models(tmp_path: Path) -> None:
    """A table with some of 1,000 class numbers, of which the largest that occurs is not the last."""
    images = of_labels(tmp_path, [0, 997, 3], None)
    assert images.classes == 998
    plain = match_labels(images, 1000, None)
    assert plain.images.classes == 1000
    assert plain.images.labels.tolist() == [0, 997, 3]
    named = match_labels(images, 1000, ModelClasses.of([f"c{n}" for n in range(1000)], "a test"))
    assert named.images.class_names[997] == "c997"
    assert "numbers" in str(named.said)


def test_numbers_of_a_larger_set_need_a_file(tmp_path: Path) -> None:
    images = of_labels(tmp_path / "data", [0, 7, 7, 3], None)
    for known in (None, ANIMALS):
        with pytest.raises(DataError, match=r"0\.\.5.*--labels"):
            match_labels(images, 6, known)
    (tmp_path / "labels.json").write_text(json.dumps({"0": 5, "7": 0, "3": None}))
    matched = match_labels(images, 6, ANIMALS, file=tmp_path / "labels.json")
    assert matched.images.labels.tolist() == [5, 0, 0]
    assert "1 images of 1 labels are left out" in str(matched.said)


def test_fewer_names_than_a_nameless_model_has_classes(tmp_path: Path) -> None:
    images = in_folders(tmp_path / "data", "ant", "bee")
    with pytest.raises(DataError, match=r"'ant', 'bee'.*--labels"):
        match_labels(images, 4, None)
    (tmp_path / "labels.csv").write_text("label,class\nant,3\nbee,1\n")
    matched = match_labels(images, 4, None, file=tmp_path / "labels.csv").images
    assert matched.class_names == ["class 0", "bee", "class 2", "ant"]
    assert sorted(by_image(matched).values()) == ["ant", "ant", "bee", "bee"]


def test_folders_that_are_named_by_numbers(tmp_path: Path) -> None:
    """They are counted in the order of their names, as elsewhere, which is said; or by the numbers, if asked for."""
    images = in_folders(tmp_path, *(str(number) for number in range(12)), each=1)
    counted = match_labels(images, 12, None)
    assert counted.images is images
    assert "class 2 is 10" in str(counted.said)
    numbered = match_labels(images, 12, None, file="numbers").images
    assert by_image(numbered) == by_image(images)
    assert numbered.class_names == [str(number) for number in range(12)]


def test_names_that_are_numbers() -> None:
    assert are_numbers(["0", "1"])
    assert are_numbers(["LABEL_0", "LABEL_1"])
    assert not are_numbers(["1", "0"])


def test_named_classes_by_their_numbers(tmp_path: Path) -> None:
    images = of_labels(tmp_path, [0, 2, 1], ["requin", "corgi", "gilet"])
    with pytest.raises(DataError, match="requin"):
        match_labels(images, 6, ANIMALS)
    named = match_labels(images, 6, ANIMALS, file="numbers").images
    assert named.class_names == list(ANIMALS.names)
    assert named.labels.tolist() == [0, 2, 1]
    with pytest.raises(DataError, match="3 classes instead of 2"):
        match_labels(images, 2, None, file="numbers")


def test_clusters_go_with_their_classes(tmp_path: Path) -> None:
    columns = {"label": ([0, 1, 2, 0], ["hot dog", "crane (3)", "Cardigan"]), "kind": ([1, 0, 0, 1], ["bird", "food"])}
    images = load_images(write_parquet(tmp_path, [picture(n) for n in range(4)], columns), "train")
    found = match_labels(images, 6, ANIMALS).images
    assert found.cluster_of_class is not None
    assert found.cluster_of_class.tolist() == [-1, 0, -1, 0, -1, 1]


# ---- the file


@given(
    table=st.dictionaries(
        st.text(min_size=1, max_size=9), st.none() | st.integers(0, 99) | st.just("crane"), min_size=1
    )
)
def test_a_file_in_both_forms(tmp_path_factory: pytest.TempPathFactory, table: dict) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "l.json").write_text(json.dumps(table))
    with (folder / "l.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["label", "class"], *([k, "" if v is None else v] for k, v in table.items())])
    assert read_label_file(folder / "l.json") == table
    readable = {key: value for key, value in table.items() if key.strip()}
    if len(readable) == len(table) and not any(set(key) & set("\r\n\0") for key in table):
        assert read_label_file(folder / "l.csv") == table


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.json", "[1]"), ("l.json", '{"a": 1.5}'), ("l.json", '{"a": -1}'), ("l.json", "{"), ("l.csv", "a,1,2\n"),
        ("l.csv", "a,1\na,2\n"), ("l.csv", "a\n"), ("none.json", None),
    ],
)  # fmt: skip
def test_files_that_say_nothing_clear(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        read_label_file(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["cat", "crane", 6, "6"])
def test_a_file_that_names_no_class(tmp_path: Path, target: str | int) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({"ant": target}))
    with pytest.raises(DataError, match="ant"):
        match_labels(in_folders(tmp_path / "data", "ant"), 6, ANIMALS, file=tmp_path / "labels.json")


# ---- on the command line


def test_data_with_some_of_the_classes_prunes(sinf: Program, tmp_path: Path, weights: Path, data: Path) -> None:
    """Four of a pruned model's six classes, in another order and spelling; what is saved has the model's."""
    base = tmp_path / "base"
    words = ["--macs", 0.9, "--method", "channels", "--images", 40, "--pairs", 2, "--keep-anyway", "--threads", 1]
    sinf("prune", "vgg11", "--weights", weights, "--data", data, "--test", "test", "--out", base, *words)
    photos = tmp_path / "photos"
    for name in ("Violet", "_teal", "red", "ORANGE"):
        (photos / name).mkdir(parents=True)
        for copy in range(8):
            (photos / name / f"{copy}.png").write_bytes(picture(copy, (40, 36)))
    own = [
        "prune",
        base,
        "--data",
        photos,
        "--score",
        "train[:80%]",
        "--test",
        "train[80%:]",
        "--out",
        tmp_path / "out",
    ]
    code, _, err = sinf.call(*own, *words)
    assert code == 0, err
    assert "4 labels are 4 of the model's 6 classes" in err
    assert "2 of 6 classes: green, blue" in err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["classes"] == ["red", "orange", "green", "teal", "blue", "violet"]
    (photos / "pink").mkdir()
    (photos / "pink" / "0.png").write_bytes(picture(1))
    code, _, err = sinf.call(*own[:-1], tmp_path / "other", "--score", "train", *words)
    assert code == 2
    assert "'pink'" in err.splitlines()[-1]


def test_what_sinf_wrote_is_scored_by_names(tiny_images: LabelledImages, capsys: pytest.CaptureFixture[str]) -> None:
    """Data with as many classes in another order was scored wrongly in silence."""
    from sinf.cli import options

    order = [3, 0, 5, 1, 4, 2]
    classes = [tiny_images.class_names[c] for c in order]
    found = options.labelled_as(classes, tiny_images, None)
    assert found.class_names == classes
    assert [order[label] for label in found.labels.tolist()] == tiny_images.labels.tolist()
    with pytest.raises(DataError):
        options.labelled_as(["red", "green"], tiny_images, None)
