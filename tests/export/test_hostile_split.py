"""Split exports that are damaged, edited or made to harm: one line of ours, or the answers that they gave before."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from sealed import EDITS, edited, forge, positions, rewrite, rewrite_digests
from sinf import edge
from sinf.bundle.plain import PlainModel
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import BundleError, SinfError
from sinf.export.plain import export_network
from sinf.export.split import export_split

KEY = bytes(range(16))
LEGAL = {"thresholds", "preprocessing", "tails"}


@pytest.fixture(scope="module")
def exported(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "split"
    export_split(SemanticModel.from_pretrained(built), folder)
    return folder


@pytest.fixture(scope="module")
def network(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of one network, as ``sinf optimize`` writes it too."""
    folder = tmp_path_factory.mktemp("exports") / "network"
    export_network(PlainModel.from_pretrained(folders["static"]), folder, promise="nothing")
    return folder


@pytest.fixture(params=["exported", "network"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "split"))


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "split"))


def answers(folder: Path) -> list[np.ndarray]:
    model, draw = edge.load(folder), np.random.default_rng(0)
    if isinstance(model, edge.EdgeNetwork):
        return [model(draw.normal(size=(6, 3, 32, 32)).astype(np.float32))]
    return list(model.route(draw.normal(size=(6, *model.size)).astype(np.float32)))


def outcome(folder: Path) -> list[np.ndarray] | None:
    """What an export answers, or None where it is refused by one line of ours."""
    try:
        return answers(folder)
    except SinfError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 1000
    return None


def same(ours: list[np.ndarray] | None, expected: list[np.ndarray]) -> bool:
    return ours is not None and all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))


def try_edits(folder: Path, count: int | None) -> None:
    path, expected = folder / edge.MANIFEST, answers(folder)
    manifest = json.loads(path.read_text())
    listed = [(place, edit) for place in positions(manifest) for edit in EDITS]
    for place, edit in listed if count is None else random.Random(0).sample(listed, count):
        record = edited(manifest, place, edit)
        path.write_text(json.dumps(record))
        assert record == manifest or outcome(folder) is None, (place, edit)
        path.write_text(forge(record))
        said = outcome(folder)
        assert said is None or LEGAL.intersection(place) or same(said, expected), (place, edit)


def flip_bytes(folder: Path, count: int) -> None:
    draw, expected, files = random.Random(0), answers(folder), sorted(folder.iterdir())
    for _ in range(count):
        path = draw.choice(files)
        before = path.read_bytes()
        content = bytearray(before)
        content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        said = outcome(folder)
        path.write_bytes(before)
        assert said is None or same(said, expected), path


def test_some_damage_is_refused_or_harmless(either: Path) -> None:
    flip_bytes(either, 40)
    try_edits(either, 40)


@pytest.mark.slow
def test_all_damage_is_refused_or_harmless(either: Path) -> None:
    flip_bytes(either, 4000)
    try_edits(either, None)


def run_all(model: edge.EdgeModel) -> None:
    features, log_clusters, *_ = model.engine.run("front", np.zeros((1, *model.size), np.float32))
    model.engine.run("cluster001", features, log_clusters)
    model.engine.run("full_tail", features)


@pytest.mark.parametrize(
    ("file_format", "part"), [("onnx", "front"), ("onnx", "cluster001"), ("onnx", "full_tail"), ("openvino", "front")]
)
def test_a_graph_that_the_runtime_cannot_open_is_one_line(
    built: Path, tmp_path: Path, file_format: str, part: str
) -> None:
    """With its digest right."""
    export_split(SemanticModel.from_pretrained(built), tmp_path / "split", file_format)
    path = tmp_path / "split" / f"{part}{edge.SUFFIXES[file_format]}"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BundleError, match=path.name):
        edge.load(tmp_path / "split")
    rewrite_digests(tmp_path / "split" / edge.MANIFEST)
    model = edge.load(tmp_path / "split")
    with pytest.raises(BundleError, match=f"cannot open the part {part}") as caught:
        run_all(model)
    assert "\n" not in str(caught.value)


def test_an_edited_threshold_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / edge.MANIFEST).read_text())
    (copy / edge.MANIFEST).write_text(json.dumps(manifest | {"thresholds": {"value": 0.0, "early": 0.0}}))
    with pytest.raises(BundleError, match="damaged or was changed"):
        edge.load(copy)


def test_files_elsewhere_are_not_read(copy: Path) -> None:
    manifest = json.loads((copy / edge.MANIFEST).read_text())
    whole = manifest["sha256"]
    for name in ("../front.onnx", "/etc/passwd", "front.onnx/../../front.onnx", None, "nothing"):
        digests = {name if each == "front.onnx" else each: digest for each, digest in whole.items()}
        digests = {} if name == "nothing" else {each: digest for each, digest in digests.items() if each is not None}
        rewrite(copy / edge.MANIFEST, {"sha256": digests})
        with pytest.raises(BundleError, match="all parts"):
            edge.load(copy)


def test_a_signature_is_asked_for_where_there_is_a_key(built: Path, exported: Path, tmp_path: Path) -> None:
    export_split(SemanticModel.from_pretrained(built), tmp_path / "split", key=KEY)
    assert same(answers(tmp_path / "split"), answers(exported))
    edge.load(tmp_path / "split", key=KEY)
    with pytest.raises(BundleError, match="is not signed"):
        edge.load(exported, key=KEY)
