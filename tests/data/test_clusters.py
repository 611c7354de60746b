"""Clusters are a partition of the classes; whatever is not one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinf.data.clusters import Clusters, from_column, from_file
from sinf.data.images import LabelledImages
from sinf.errors import ClusterError

NAMES = ["apple", "pear", "cat", "dog"]


def labelled(cluster_of_class: list[int] | None, cluster_names: list[str] | None = None) -> LabelledImages:
    mapping = None if cluster_of_class is None else torch.tensor(cluster_of_class)
    return LabelledImages(
        None,
        name="orchard",
        image_column="img",
        labels=torch.arange(4),
        class_names=NAMES,
        cluster_of_class=mapping,
        cluster_names=cluster_names,
    )


def write(folder: Path, record: object) -> Path:
    path = folder / "clusters.json"
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return path


# ---- from a column


def test_clusters_of_a_column(tiny_images: LabelledImages) -> None:
    clusters = from_column(tiny_images)
    assert clusters == Clusters(("warm", "leaf", "cold"), ((0, 1), (2, 3), (4, 5)))
    assert (len(clusters), clusters.classes) == (3, 6)
    assert torch.equal(clusters.of_class(), tiny_images.cluster_of_class)


def test_cluster_that_no_class_has_is_left_out() -> None:
    clusters = from_column(labelled([2, 0, 2, 0], ["pets", "tools", "fruit"]))
    assert clusters == Clusters(("pets", "fruit"), ((1, 3), (0, 2)))


def test_column_must_be_there() -> None:
    with pytest.raises(ClusterError, match=r"orchard.*cluster file"):
        from_column(labelled(None))


def test_column_must_tell_the_cluster_of_every_class() -> None:
    with pytest.raises(ClusterError, match="no image of cat in orchard"):
        from_column(labelled([0, 1, -1, 0], ["fruit", "pets"]))


def test_column_with_one_cluster_is_refused() -> None:
    with pytest.raises(ClusterError, match="at least two"):
        from_column(labelled([0, 0, 0, 0], ["all"]))


# ---- from a file


def test_file_with_names_and_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, {"pets": ["dog", 2], "fruit": [1, "apple"]})
    assert from_file(path, NAMES) == Clusters(("pets", "fruit"), ((2, 3), (0, 1)))
    assert from_file(str(path), NAMES).of_class().tolist() == [1, 1, 0, 0]


@settings(max_examples=15)
@given(mapping=st.lists(st.integers(0, 3), min_size=4, max_size=12).filter(lambda m: len(set(m)) > 1))
def test_any_partition_survives_a_file(tmp_path_factory: pytest.TempPathFactory, mapping: list[int]) -> None:
    names = [f"class {i}" for i in range(len(mapping))]
    record: dict[str, list[str]] = {}
    for name, cluster in zip(names, mapping, strict=True):
        record.setdefault(f"cluster {cluster}", []).append(name)
    clusters = from_file(write(tmp_path_factory.mktemp("partition"), record), names)
    assert clusters.names == tuple(record)
    assert clusters.classes == len(mapping)
    assert [clusters.names[c] for c in clusters.of_class().tolist()] == [f"cluster {c}" for c in mapping]
    assert sorted(c for classes in clusters.members for c in classes) == list(range(len(mapping)))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"fruit": ["apple", "pear"], "pets": ["cat"]}, "dog in none"),
        ({"fruit": ["apple", "pear", "cat"], "pets": ["cat", "dog"]}, "cat in several"),
        ({"fruit": ["apple", "pear", "pear"], "pets": ["cat", "dog"]}, "pear in several"),
        ({"fruit": ["apple", 0, "pear"], "pets": ["cat", "dog"]}, "apple in several"),
        ({"fruit": ["apple", "plum"], "pets": ["cat", "dog"]}, "cluster 'fruit'.*'plum'"),
        ({"fruit": [0, 1], "pets": [2, 4]}, r"cluster 'pets'.*got 4"),
        ({"fruit": [0, 1], "pets": [2, -1]}, r"cluster 'pets'.*got -1"),
        ({"fruit": [0, 1.0], "pets": [2, 3]}, r"got 1\.0"),
        ({"fruit": [["apple"]], "pets": [2, 3]}, r"cluster 'fruit'"),
        ({"fruit": ["apple", "pear", "cat", "dog"], "pets": []}, "none in pets"),
        ({}, "apple in none"),
        ([["apple", "pear"], ["cat", "dog"]], "object of lists"),
        ({"fruit": "apple", "pets": ["cat"]}, "object of lists"),
        ("not json", "readable JSON"),
        ("", "readable JSON"),
        ('{"fruit": [0, 1], "fruit": [2, 3]}', "'fruit' stands there twice"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        from_file(write(tmp_path, record), NAMES)


def test_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"nowhere\.json"):
        from_file(tmp_path / "nowhere.json", NAMES)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ClusterError, match=r"binary\.json"):
        from_file(tmp_path / "binary.json", NAMES)
    with pytest.raises(ClusterError, match="readable"):
        from_file(tmp_path, NAMES)


# ---- the object itself


@pytest.mark.parametrize(
    ("names", "members", "message"),
    [
        (("fruit", "fruit"), ((0,), (1,)), "name of its own.*fruit"),
        (("fruit",), ((0,), (1,)), "name of its own"),
        (("fruit", "pets"), ((0,), ()), "none in pets"),
        ((), (), "must be a cluster"),
        (("fruit", "pets"), ((0, 1), (1, 2)), "class 1 in several"),
        (("fruit", "pets"), ((0,), (2,)), "class 1 in none"),
    ],
)
def test_clusters_must_be_a_partition(
    names: tuple[str, ...], members: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        Clusters(names, members)
