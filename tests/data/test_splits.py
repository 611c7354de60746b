"""Which rows a split names: parts of one split are disjoint, whole together, the same everywhere, with all classes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from program import Program
from sinf.data.clusters import from_column
from sinf.data.images import LabelledImages, load_images
from sinf.data.splits import in_class_order, open_splits, read_expression, row_order, select_rows
from sinf.errors import DataError, DataWarning
from sinf.models import load_model
from sinf.pipelines.build import BuildConfig, Images, build
from tiny import picture, write_parquet

CLASSES, EACH = 10, 30


def image_folder(folder: Path, *splits: str, classes: tuple[str, ...] = ("ant", "bee", "cat"), each: int = 4) -> Path:
    """``split/class/file`` (``class/file`` without splits), every image another one."""
    seed = 0
    for split in splits or ("",):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for copy in range(each):
                (folder / split / name / f"{copy:02d}.png").write_bytes(picture(seed, (2, 2)))
                seed += 1
    return folder


@pytest.fixture(scope="module")
def sorted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = tuple(f"class{i}" for i in range(CLASSES))
    return image_folder(tmp_path_factory.mktemp("sorted"), "test", classes=classes, each=EACH)


@pytest.fixture(scope="module")
def sorted_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    labels = [i // EACH for i in range(CLASSES * EACH)]
    names = [f"class{i}" for i in range(CLASSES)]
    return write_parquet(folder, [picture(i, (2, 2)) for i in range(len(labels))], {"label": (labels, names)}, "test")


def rows(images: LabelledImages) -> list[bytes]:
    return images.digests()


# ---- class order


@pytest.mark.parametrize("source", ["sorted_folder", "sorted_shards"])
def test_half_of_a_split_stored_class_by_class_holds_every_class(source: str, request: pytest.FixtureRequest) -> None:
    """And about equally many of each: chi-square of 10 classes, at the level of one in a thousand."""
    folder = request.getfixturevalue(source)
    for split in ("test[:50%]", "test[50%:]", "test[:100]", "test[-100:]"):
        images = load_images(folder, split)
        counts = torch.bincount(images.labels, minlength=CLASSES).double()
        assert images.empty_classes() == []
        assert float(((counts - len(images) / CLASSES) ** 2 / (len(images) / CLASSES)).sum()) < 27.9
        assert images.shuffled is not None
        assert "class order" in images.shuffled or "image folder" in images.shuffled


def test_rows_in_another_order_are_what_datasets_gives(tmp_path: Path) -> None:
    """Published results rest on parts of rows that are stored in random order: those stay."""
    import datasets

    labels = np.random.default_rng(0).permutation(np.arange(200) % 10).tolist()
    folder = write_parquet(tmp_path, [picture(i, (2, 2)) for i in range(200)], {"label": (labels, None)})
    stored = load_images(folder, "train")
    assert stored.shuffled is None
    for split in ("train[:50%]", "train[-30:]", "train[:10]+train[33%:66%]"):
        expected = datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split=split)
        assert load_images(folder, split).labels.tolist() == expected["label"][:]


@given(st.lists(st.integers(0, 5), min_size=2, max_size=300), st.integers(0, 2**32 - 1))
def test_random_order_is_left_alone(labels: list[int], seed: int) -> None:
    drawn = np.random.default_rng(seed).permutation(labels)
    assert not in_class_order(torch.from_numpy(drawn))


@given(st.integers(2, 40), st.integers(15, 40), st.integers(1, 4), st.booleans())
def test_class_order_is_noticed(classes: int, each: int, shards: int, backwards: bool) -> None:
    """Also when every shard is sorted by itself, and from the last class to the first."""
    shard = torch.arange(classes).repeat_interleave(each)
    labels = torch.cat([shard] * shards)
    assert in_class_order(labels.flip(0) if backwards else labels)


@given(st.integers(2, 20), st.integers(20, 100), st.integers(0, 2**32 - 1))
def test_halves_of_other_classes_are_noticed(classes: int, each: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    first = draw.permutation(np.arange(classes * each) % classes)
    second = classes + draw.permutation(np.arange(classes * each) % classes)
    assert in_class_order(torch.from_numpy(np.concatenate([first, second])))


def test_a_rare_class_at_the_end_is_noticed() -> None:
    assert in_class_order(torch.tensor([0] * 990 + [1] * 10))


@pytest.mark.parametrize("labels", [[], [3], [3, 3, 3], [0, 1, 2] * 50, list(range(100))])
def test_what_has_no_class_order(labels: list[int]) -> None:
    """One class, classes in turn, and no class twice."""
    assert not in_class_order(torch.tensor(labels, dtype=torch.int64))


# ---- parts


bound = st.one_of(st.none(), st.integers(-350, 350))
percent = st.integers(0, 100)
LENGTHS = {"train": 300, "test": 77}


def numbers(expression: str, shuffled: bool) -> list[int]:
    """Rows that an expression names, of splits of 300 and 77."""
    parts = read_expression(expression, LENGTHS, "tables")
    return [
        row
        for name, part in parts
        for row in row_order(LENGTHS[name], shuffled=shuffled)[part.start : part.stop].tolist()
    ]


@given(st.booleans(), st.integers(-320, 320), st.sampled_from(["", "%"]))
def test_two_parts_are_disjoint_and_the_whole(ordered: bool, at: int, unit: str) -> None:
    at = at % 101 if unit else at
    first, second = numbers(f"train[:{at}{unit}]", ordered), numbers(f"train[{at}{unit}:]", ordered)
    assert first + second == numbers("train", ordered)
    assert sorted(first + second) == list(range(300))


@given(st.booleans(), st.lists(percent, max_size=5), st.sampled_from(["", "(pct1_dropremainder)"]))
def test_folds_share_nothing(ordered: bool, cuts: list[int], rounding: str) -> None:
    edges = [0, *sorted(cuts), 100]
    folds = [numbers(f"train[{a}%:{b}%]{rounding}", ordered) for a, b in itertools.pairwise(edges)]
    whole = list(itertools.chain(*folds))
    assert whole == numbers("train", ordered)
    assert whole == numbers("+".join(f"train[{a}%:{b}%]{rounding}" for a, b in itertools.pairwise(edges)), ordered)


@given(st.booleans(), st.lists(st.tuples(st.sampled_from(["train", "test"]), bound, bound), min_size=1, max_size=3))
def test_a_slice_is_that_of_a_list(ordered: bool, parts: list[tuple[str, int | None, int | None]]) -> None:
    """As in Python, over the rows in the order in which the split is read."""
    expression, expected = [], []
    for name, start, stop in parts:
        expression.append(f"{name}[{'' if start is None else start}:{'' if stop is None else stop}]")
        expected += numbers(name, ordered)[start:stop]
    assert numbers("+".join(expression), ordered) == expected


def test_unsorted_rows_keep_their_order() -> None:
    assert numbers("train", False) == list(range(300))
    assert numbers("all", False) == [*range(300), *range(77)]
    assert numbers("train", True) != list(range(300))


@pytest.mark.parametrize("expression", ["train", "train[5:9]+test[-3:]", "test[77:]+train[298:]", "train[9:3]", "all"])
def test_the_table_holds_the_rows_that_are_named(expression: str) -> None:
    """Of a split in class order and one that is not; parts may be empty."""
    import datasets

    labels = {"train": [i // EACH for i in range(300)], "test": [i % 7 for i in range(77)]}
    columns = {name: {"label": values, "row": list(range(len(values)))} for name, values in labels.items()}
    tables = {name: datasets.Dataset.from_dict(each) for name, each in columns.items()}
    selected = select_rows(tables, expression, "label", "tables")
    parts = read_expression(expression, LENGTHS, "tables")
    expected = [
        row
        for name, part in parts
        for row in row_order(LENGTHS[name], shuffled=name == "train")[part.start : part.stop].tolist()
    ]
    assert selected.numbers.tolist() == selected.table["row"][:] == expected
    assert selected.shuffled == "train: rows were in class order"


def test_the_order_never_changes() -> None:
    """It is what test[:50%] means: results are compared across versions and machines."""
    assert row_order(10, shuffled=True).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]
    assert sorted(row_order(1000, shuffled=True).tolist()) == list(range(1000))


def test_the_order_does_not_depend_on_how_files_were_written(tmp_path: Path, sorted_folder: Path) -> None:
    files = sorted(path.relative_to(sorted_folder) for path in sorted_folder.rglob("*.png"))
    for index in np.random.default_rng(0).permutation(len(files)):
        target = tmp_path / "elsewhere" / files[index]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sorted_folder / files[index], target)
        os.utime(target, (int(index), int(index)))
    for split in ("test", "test[:31%]"):
        assert rows(load_images(tmp_path / "elsewhere", split)) == rows(load_images(sorted_folder, split))


def test_an_error_names_the_row_as_it_is_stored(sorted_shards: Path) -> None:
    images = load_images(sorted_shards, "test[:3]")
    assert images._rows.tolist() == row_order(CLASSES * EACH, shuffled=True)[:3].tolist()


# ---- image folders


def test_a_folder_without_splits_is_one_that_can_be_parted(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, each=20)
    parts = [load_images(folder, split) for split in ("train[:80%]", "train[80%:]")]
    assert [len(part) for part in parts] == [48, 12]
    assert not set(rows(parts[0])) & set(rows(parts[1]))
    assert all(part.empty_classes() == [] for part in parts)
    with pytest.raises(DataError, match=r"'test\[:50%\]'.*its splits are: train.*train\[:80%\] and train\[80%:\]"):
        load_images(folder, "test[:50%]")


@pytest.mark.parametrize("word", ["train", "test", "crash_test", "steam-train", "validation"])
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, word: str) -> None:
    """CIFAR-100 has a class ``train``: by its name alone its test images became training images."""
    folder = image_folder(tmp_path / "splits", "train", "test", classes=("ant", word))
    train, test = load_images(folder, "train"), load_images(folder, "test")
    assert (len(train), len(test)) == (8, 8)
    assert not set(rows(train)) & set(rows(test))
    assert torch.bincount(train.labels).tolist() == torch.bincount(test.labels).tolist() == [4, 4]
    alone = load_images(image_folder(tmp_path / "alone", classes=("ant", word)), "train")
    assert (alone.class_names, len(alone)) == (["ant", word], 8)


def test_names_of_splits(tmp_path: Path) -> None:
    """Those of ``datasets``, and any other as it is."""
    folder = image_folder(tmp_path, "training", "val", "held_out")
    assert sorted(open_splits(str(folder))) == ["held_out", "train", "validation"]


def test_a_folder_of_one_class_with_images_in_one_split_only(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, "train", "test")
    shutil.rmtree(folder / "test" / "bee")
    (folder / "test" / "dog").mkdir()
    (folder / "test" / ".cache").mkdir()
    images = load_images(folder, "test")
    assert images.class_names == ["ant", "bee", "cat", "dog"]
    assert images.empty_classes() == ["bee", "dog"]


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (["train/0.png", "test/0.png"], "folder of their class"),
        (["0.png", "1.png"], "class/file"),
        (["ant/0.png", "train/bee/0.png"], "ant/0.png and train/bee/0.png"),
        (["train/a/b/c/0.png"], "class/file"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path: Path, files: list[str], word: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(picture())
    with pytest.raises(DataError, match=word):
        load_images(tmp_path, "train")


def test_metadata_is_left_to_datasets(tmp_path: Path) -> None:
    """Labels in a file, not in names of folders; the order is that of the file, and is shuffled as of all folders."""
    for number in range(4):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / "train" / f"{number}.png")
    lines = ["file_name,label", *(f"{number}.png,{number // 2}" for number in range(4))]
    (tmp_path / "train" / "metadata.csv").write_text("\n".join(lines))
    images = load_images(tmp_path, "train")
    assert images.labels.tolist() == [number // 2 for number in row_order(4, shuffled=True).tolist()]


# ---- what is said of it


def test_the_program_says_what_was_shuffled_and_which_classes_are_empty(
    sinf: Program, built: Path, tmp_path: Path
) -> None:
    """On the screen, each in one line, and the classes in the result."""
    folder = image_folder(tmp_path / "images", "test", classes=("red", "orange", "green", "teal", "blue", "violet"))
    shutil.rmtree(folder / "test" / "teal")
    (folder / "test" / "teal").mkdir()
    words = ("--data", folder, "--split", "test[:90%]", "--threads", 1, "--json", tmp_path / "result.json")
    for verb in (("eval",), ("bench", "--pairs", 2, "--batch", 1, "--no-stages", "--no-energy")):
        code, _, err = sinf.call(verb[0], built, *verb[1:], *words)
        assert code == 0
        assert f"{folder} test[:90%]: rows are shuffled by seed 0 first (test: an image folder)" in err.splitlines()
        lines = [line for line in err.splitlines() if line.startswith("warning: ")]
        assert len(lines) == 1
        assert "says nothing of 1 of 6 classes: teal, which have no image" in lines[0]
        assert json.loads((tmp_path / "result.json").read_text())["empty_classes"] == ["teal"]


def test_a_build_warns_of_classes_that_it_was_not_calibrated_on(tiny_images: LabelledImages) -> None:
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    calibration = tiny_images.select([row for row in range(30) if tiny_images.labels[row] != 2])
    images = Images(tiny_images, tiny_images, calibration)
    with pytest.warns(DataWarning, match="calibration says nothing of 1 of 6 classes: green"), pytest.raises(DataError):
        build(base, images, from_column(tiny_images), BuildConfig(), "never written")  # the images are shared
