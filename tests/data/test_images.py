"""Labelled images from parquet shards and image folders, and every way in which they can be wrong."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sinf.data.images import LabelledImages, Preprocessing, load_images
from sinf.errors import DataError, DataWarning
from tiny import COLOUR, GREY, picture, tiny_data, write_parquet

NAMES = ["ant", "bee", "cat"]
LABELS = [0, 1, 2, 0, 1, 2]


def pictures(count: int = 6) -> list[bytes]:
    return [picture(seed) for seed in range(count)]


def shards(folder: Path, **columns: tuple[list[int], list[str] | None]) -> Path:
    return write_parquet(folder, pictures(), columns or {"label": (LABELS, NAMES)})


# ---- opening


def test_parquet_folder(tmp_path: Path) -> None:
    images = load_images(shards(tmp_path), "train")
    assert (len(images), images.classes, images.class_names) == (6, 3, NAMES)
    assert images.labels.tolist() == LABELS
    assert images.labels.dtype == torch.int64
    assert images.cluster_of_class is None


def test_image_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(NAMES):
            (tmp_path / split / name).mkdir(parents=True)
            for copy in range(2 if split == "train" else 1):
                (tmp_path / split / name / f"{copy}.png").write_bytes(picture(10 * number + copy))
    images = load_images(tmp_path, "train")
    assert images.class_names == NAMES
    assert sorted(images.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    for pixels, label in zip(images.pixels(COLOUR), images.labels.tolist(), strict=True):
        files = (tmp_path / "train" / NAMES[label]).iterdir()
        assert sum(np.array_equal(pixels, np.asarray(Image.open(file))) for file in files) == 1
    assert len(load_images(tmp_path, "test")) == 3


def test_split_syntax(tmp_path: Path) -> None:
    write_parquet(tmp_path, pictures(4), {"label": ([0, 1, 2, 0], NAMES)})
    write_parquet(tmp_path, pictures(2), {"label": ([1, 2], NAMES)}, split="test")
    assert load_images(tmp_path, "train[:50%]").labels.tolist() == [0, 1]
    assert load_images(tmp_path, "train[50%:]").labels.tolist() == [2, 0]
    assert load_images(tmp_path, "train[3:]+test").labels.tolist() == [0, 1, 2]


def test_rows_of_a_slice_are_those_of_the_whole(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    whole, part = load_images(folder, "train"), load_images(folder, "train[2:4]")
    assert torch.equal(part.pixels(COLOUR), whole.pixels(COLOUR)[2:4])


@pytest.mark.parametrize(
    ("source", "split", "word"),
    [
        ("nowhere/at/all", "train", "must exist"),
        ("/nowhere", "train", "must exist"),
        ("no-such-data-set", "train", "no-such-data-set"),
        (".", "train", "cannot be opened"),
        ("shards", "validation", "validation"),
        ("shards", "train[:oops]", "oops"),
        ("shards/train-00000-of-00001.parquet", "train", "folder"),
    ],
)
def test_data_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, split: str, word: str
) -> None:
    shards(tmp_path / "shards")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if source == "." else tmp_path)
    with pytest.raises(DataError, match=word) as caught:
        load_images(source, split)
    assert "\n" not in str(caught.value)


def test_empty_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\[:0\].*(no data|0 images)"):
        load_images(shards(tmp_path), "train[:0]")


def test_empty_shard(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        load_images(write_parquet(tmp_path, [], {"label": ([], NAMES)}), "train")


def test_truncated_shard(tmp_path: Path) -> None:
    shard = shards(tmp_path) / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be opened") as caught:
        load_images(tmp_path, "train")
    assert "\n" not in str(caught.value)


# ---- columns


def test_the_label_column_is_the_one_with_most_classes(tmp_path: Path) -> None:
    coarse = ([0, 0, 1, 0, 0, 1], ["insect", "mammal"])
    images = load_images(shards(tmp_path, coarse=coarse, fine=(LABELS, NAMES)), "train")
    assert images.class_names == NAMES
    assert images.cluster_names == ["insect", "mammal"]
    assert images.cluster_of_class.tolist() == [0, 0, 1]


def test_given_columns(tmp_path: Path) -> None:
    columns = {
        "fine": (LABELS, NAMES),
        "other": ([1, 0, 1, 1, 0, 1], ["no", "yes"]),
        "plain": ([0, 0, 1, 0, 0, 1], None),
    }
    folder = write_parquet(tmp_path, pictures(), columns, image_column="photo")
    images = load_images(folder, "train", image_column="photo", label_column="other", cluster_column="other")
    assert images.class_names == ["no", "yes"]
    clustered = load_images(folder, "train", label_column="fine", cluster_column="plain")
    assert clustered.cluster_of_class.tolist() == [0, 0, 1]
    assert clustered.cluster_names == ["0", "1"]


def test_integer_labels_without_names(tmp_path: Path) -> None:
    images = load_images(shards(tmp_path, target=([0, 3, 1, 2, 0, 3], None)), "train")
    assert images.class_names == ["0", "1", "2", "3"]


def test_a_column_that_gives_a_class_two_clusters_is_no_cluster_column(tmp_path: Path) -> None:
    folder = shards(tmp_path, fine=(LABELS, NAMES), colour=([0, 0, 1, 1, 0, 1], ["red", "green"]))
    assert load_images(folder, "train", label_column="fine").cluster_of_class is None
    with pytest.raises(DataError, match="colour"):
        load_images(folder, "train", cluster_column="colour")


def test_a_class_without_images_has_no_cluster(tmp_path: Path) -> None:
    folder = shards(tmp_path, fine=([0, 0, 2, 2, 0, 2], NAMES), coarse=([1, 1, 0, 0, 1, 0], ["x", "y"]))
    assert load_images(folder, "train", cluster_column="coarse").cluster_of_class.tolist() == [1, -1, 0]


@pytest.mark.parametrize("role", ["image", "label", "cluster"])
def test_missing_column(tmp_path: Path, role: str) -> None:
    with pytest.raises(DataError, match=rf"no {role} column 'nothing'.*img, label"):
        load_images(shards(tmp_path), "train", **{f"{role}_column": "nothing"})


def test_no_label_column_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no label column"):
        load_images(shards(tmp_path, weight=([3, 1, 4, 1, 5, 9], None)), "train")


def test_no_image_column_at_all(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"label": LABELS}), tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="no image column"):
        load_images(tmp_path, "train")


def test_an_image_column_that_holds_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label"):
        load_images(shards(tmp_path), "train", image_column="label")


# ---- labels


@pytest.mark.parametrize("bad", [3, -1, 99])
def test_label_out_of_range(tmp_path: Path, bad: int) -> None:
    with pytest.raises(DataError, match=rf"row 4: a label must be in 0\.\.2 \(got {bad}\)"):
        load_images(shards(tmp_path, label=([0, 1, 2, 0, bad, 2], NAMES)), "train")


def test_negative_label_without_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1"):
        load_images(shards(tmp_path, label=([0, -1, 2, 0, 1, 2], None)), "train")


def test_missing_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 5"):
        load_images(shards(tmp_path, label=([0, 1, 2, 0, 1, None], NAMES)), "train")


def test_empty_class(tmp_path: Path) -> None:
    images = load_images(shards(tmp_path, label=([0, 0, 2, 2, 0, 2], NAMES)), "train")
    with pytest.raises(DataError, match=r"scoring needs images of every class.*bee"):
        images.require_every_class("scoring")
    with pytest.warns(DataWarning, match="train: calibration says nothing of 1 of 3 classes: bee, which have no"):
        assert images.warn_of_empty_classes("calibration") == images.empty_classes() == ["bee"]
    full = load_images(shards(tmp_path / "full"), "train")
    full.require_every_class("scoring")
    assert full.warn_of_empty_classes("calibration") == []  # a warning would be a failure here


def test_many_empty_classes_are_counted(tmp_path: Path) -> None:
    names = [f"class{i}" for i in range(40)]
    images = load_images(shards(tmp_path, label=([0, 1, 2, 0, 1, 2], names)), "train")
    with pytest.warns(DataWarning, match=r"37 of 40 classes: class3, class4, class5, class6, class7, \.\.\., which"):
        assert len(images.warn_of_empty_classes("the evaluation")) == 37


# ---- pixels


def test_undecodable_image_is_named(tmp_path: Path) -> None:
    broken = pictures()
    broken[3] = broken[3][:40]
    images = load_images(write_parquet(tmp_path, broken, {"label": (LABELS, NAMES)}), "train")
    with pytest.raises(DataError, match="row 3: the image cannot be decoded"):
        images.pixels(COLOUR)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    images = load_images(write_parquet(tmp_path, [*pictures(5), content], {"label": (LABELS, NAMES)}), "train")
    with pytest.raises(DataError, match="row 5"):
        images.pixels(COLOUR)


def test_undecodable_file_of_an_image_folder_is_named(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.png").write_bytes(picture())
    (tmp_path / "train" / "bee" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"bee/0\.png"):
        load_images(tmp_path, "train").pixels(COLOUR)


def test_a_row_is_named_as_in_the_file_after_a_selection(tmp_path: Path) -> None:
    broken = pictures()
    broken[4] = b"broken"
    images = load_images(write_parquet(tmp_path, broken, {"label": (LABELS, NAMES)}), "train")
    with pytest.raises(DataError, match="row 4"):
        images.select([5, 4]).pixels(COLOUR)


def test_a_path_of_the_data_is_a_file_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parquet file may name its images instead of holding them: no device is read without an end, no pipe is waited
    for, and nothing is fetched. An image that is there is one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("something was fetched"))
    (tmp_path / "there.png").write_bytes(picture())
    os.mkfifo(tmp_path / "pipe")
    paths = [str(tmp_path / "there.png"), "/dev/zero", str(tmp_path / "pipe"), "https://example.org/0.png", "", "."]
    file = shards(tmp_path / "data") / "train-00000-of-00001.parquet"
    table = pq.read_table(file)
    named = pa.array([{"bytes": None, "path": path} for path in paths], table.schema.field("img").type)
    pq.write_table(table.set_column(table.schema.get_field_index("img"), table.schema.field("img"), named), file)
    images = load_images(tmp_path / "data", "train")
    good = images.select([0])
    assert good.pixels(COLOUR).shape[0] == len(good.digests()) == 1
    for row in range(1, len(paths)):
        with pytest.raises(DataError, match=f"row {row}.*image cannot be decoded.*no such file"):
            images.select([row]).pixels(COLOUR)
        with pytest.raises(DataError, match=r"image cannot be read.*no such file"):
            images.select([row]).digests()


def test_an_image_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's guard against decompression bombs is an error of its own kind."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    with pytest.raises(DataError, match="decoded"):
        COLOUR.decode(picture(), "a bomb")


def test_sixteen_bits_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(buffer, "PNG")
    with pytest.raises(DataError, match=r"deep\.png: images must have 8 bits"):
        COLOUR.decode(buffer.getvalue(), "deep.png")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA"])
def test_any_8_bit_mode_becomes_colour(mode: str) -> None:
    assert COLOUR.decode(picture(mode=mode), "image").shape == (8, 8, 3)


def test_grey(tmp_path: Path) -> None:
    images = load_images(shards(tmp_path), "train")
    pixels = images.pixels(GREY)
    assert pixels.shape == (6, 8, 8, 1)
    expected = np.asarray(Image.fromarray(COLOUR.decode(picture(0), "image")).convert("L"))
    np.testing.assert_array_equal(pixels[0, :, :, 0], expected)
    batch, _ = next(images.batches(GREY, 4))
    assert batch.shape == (4, 1, 8, 8)


@pytest.mark.parametrize(
    ("size", "kept"),
    [((16, 8), (4, 0, 12, 8)), ((8, 24), (0, 8, 8, 16)), ((9, 8), (0, 0, 8, 8)), ((8, 8), (0, 0, 8, 8))],
)
def test_the_centre_is_cropped(size: tuple[int, int], kept: tuple[int, int, int, int]) -> None:
    source = picture(3, size)
    expected = np.asarray(Image.open(io.BytesIO(source)).crop(kept))
    np.testing.assert_array_equal(COLOUR.decode(source, "image"), expected)


@pytest.mark.parametrize("size", [(32, 32), (4, 4), (30, 17), (1, 50), (7, 3)])
def test_other_sizes_are_resized_to_the_models(size: tuple[int, int]) -> None:
    wide = Preprocessing((3, 8, 12), COLOUR.mean, COLOUR.std)
    assert wide.decode(picture(0, size), "image").shape == (8, 12, 3)


def test_resizing_keeps_a_plain_colour() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 20), (10, 20, 30)).save(buffer, "PNG")
    assert np.unique(COLOUR.decode(buffer.getvalue(), "image").reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]


def test_normalising(tmp_path: Path) -> None:
    images = load_images(shards(tmp_path), "train")
    batch, labels = next(images.batches(COLOUR, 6))
    scaled = images.pixels(COLOUR).double() / 255
    expected = (scaled - torch.tensor(COLOUR.mean)) / torch.tensor(COLOUR.std)
    torch.testing.assert_close(batch.double(), expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous()
    assert labels.tolist() == LABELS


def test_batches_are_in_order_and_lose_nothing(tmp_path: Path) -> None:
    images = load_images(shards(tmp_path), "train")
    batches = list(images.batches(COLOUR, 4))
    assert [len(x) for x, _ in batches] == [4, 2]
    assert torch.cat([y for _, y in batches]).tolist() == LABELS
    assert torch.equal(torch.cat([x for x, _ in batches]), COLOUR.normalise(images.pixels(COLOUR)))


def test_what_is_too_large_to_keep_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shards(tmp_path)
    kept = list(load_images(folder, "train").batches(COLOUR, 4))
    monkeypatch.setattr("sinf.data.images._CACHE_BYTES", 0)
    streamed = load_images(folder, "train")
    assert all(torch.equal(a[0], b[0]) for a, b in zip(kept, streamed.batches(COLOUR, 4), strict=True))
    assert streamed._cache is None


def test_another_preprocessing_is_not_answered_from_the_cache(tmp_path: Path) -> None:
    images = load_images(shards(tmp_path), "train")
    assert images.pixels(COLOUR).shape[-1] == 3
    assert images.pixels(GREY).shape[-1] == 1


# ---- selecting


def same(a: LabelledImages, b: LabelledImages) -> bool:
    return a.labels.tolist() == b.labels.tolist() and torch.equal(a.pixels(COLOUR), b.pixels(COLOUR))


def test_select_keeps_the_given_order(tmp_path: Path) -> None:
    images = tiny_data(tmp_path)
    part = images.select([7, 2, 2])
    assert part.labels.tolist() == [1, 2, 2]
    assert torch.equal(part.pixels(COLOUR), images.pixels(COLOUR)[[7, 2, 2]])
    assert same(images.select([7, 2, 2]), part)  # now from the cache
    assert same(part.select([1]), images.select([2]))


def test_sample_is_balanced_and_repeats(tmp_path: Path) -> None:
    images = tiny_data(tmp_path, count=60)
    part = images.sample(12, seed=3)
    assert torch.bincount(part.labels).tolist() == [2] * 6
    assert same(part, images.sample(12, seed=3))
    assert not same(part, images.sample(12, seed=4))
    assert len(images.sample(100)) == 60
    assert len(images.sample(7)) == 7


def test_sample_of_uneven_classes_takes_what_there_is(tmp_path: Path) -> None:
    folder = shards(tmp_path, label=([0, 0, 0, 0, 1, 2], NAMES))
    assert torch.bincount(load_images(folder, "train").sample(5).labels).tolist() == [3, 1, 1]
