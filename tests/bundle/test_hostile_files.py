"""Bundles that are damaged, edited or made to harm: one line of ours, or the answers that they gave before.

Fast tests take a sample of the edits, slow ones all.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from program import Program
from sealed import EDITS, TIMES, Place, answers, edited, forge, positions, rewrite, rewrite_digests, same, tiny_bundle
from sinf.bundle.semantic import Bundle
from sinf.bundle.times import read_times, replace_times
from sinf.data.clusters import Clusters
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.model import DynamicModel
from sinf.dynamic.network import GateConfig, attach
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import BundleError, ClusterError, ConfigError, SinfError
from sinf.models import load_model
from sinf.storage.files import write_json
from sinf.storage.seal import sealed, unsealed
from tiny import CLASSES, picture

KEY, OTHER_KEY = bytes(range(32)), bytes(32)


@pytest.fixture(scope="module")
def semantic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("semantic") / "bundle"
    tiny_bundle().save(folder)
    return folder


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dynamic") / "bundle"
    base = load_model("vgg11", classes=CLASSES, options={"width": 0.0625})
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    network = attach(base, GateConfig(kind="fbs", sites=("features.4", "features.8")))
    DynamicBundle.of(network, base.spec, before, [f"class {i}" for i in range(CLASSES)], {}).save(folder)
    return folder


@torch.no_grad()
def dynamic_answers(folder: Path) -> list[torch.Tensor]:
    model = DynamicModel.from_pretrained(folder)
    x = torch.randn(3, *model.bundle.spec.preprocessing.size, generator=torch.Generator().manual_seed(0))
    return [model(x), model.base(x)]


def semantic_answers(folder: Path) -> list[torch.Tensor]:
    return answers(SemanticModel.from_pretrained(folder))


SAY = {"semantic": semantic_answers, "dynamic": dynamic_answers}


@pytest.fixture(params=["semantic", "dynamic"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def bundle(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.getfixturevalue(kind), tmp_path / "bundle"))


def outcome(say: Callable[[Path], list[torch.Tensor]], folder: Path) -> list[torch.Tensor] | None:
    """What a bundle answers, or None where it is refused by one line of ours."""
    try:
        return say(folder)
    except SinfError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 1000
    return None


# ---- the order of clusters


@settings(max_examples=10)
@given(
    names=st.lists(st.text(max_size=8), min_size=6, max_size=6, unique=True),
    mapping=st.lists(st.integers(0, 5), min_size=CLASSES, max_size=CLASSES).filter(lambda m: len(set(m)) > 1),
)
def test_clusters_of_any_names_in_any_order_are_loaded_as_they_were_saved(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], mapping: list[int]
) -> None:
    used = list(dict.fromkeys(mapping))
    members = tuple(tuple(c for c, of in enumerate(mapping) if of == cluster) for cluster in used)
    made = tiny_bundle(tuple(names[cluster] for cluster in used), members)
    folder = tmp_path_factory.mktemp("order") / "bundle"
    made.save(folder)
    loaded = SemanticModel.from_pretrained(folder)
    assert loaded.bundle.clusters == made.clusters
    assert same(answers(loaded), answers(SemanticModel(made)))


def test_clusters_in_another_order_than_their_parts_are_refused(semantic: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(semantic, tmp_path / "bundle"))
    clusters = json.loads((folder / "config.json").read_text())["clusters"]
    rewrite(folder / "config.json", {"clusters": clusters[::-1]})
    with pytest.raises(BundleError, match="classes of its cluster"):
        SemanticModel.from_pretrained(folder)


def test_a_large_partition_is_checked_in_no_time() -> None:
    """What was quadratic took minutes for a cluster of 10^5 classes: this would not end."""
    many = tuple(range(300_000))
    assert Clusters(("many", "one"), (many, (300_000,))).classes == 300_001
    with pytest.raises(ClusterError, match="in several"):
        Clusters(("many", "again"), (many, (299_999,)))
    with pytest.raises(ClusterError, match="ascend"):
        Clusters(("many", "one"), (many[::-1], (300_000,)))


# ---- the seal


@pytest.mark.parametrize(
    ("part", "change"),
    [("threshold", {"value": 0.0}), ("deferral", {"intercept": 9.0}), ("provenance", {"made by": "me"})],
)
def test_an_edited_config_is_refused(semantic: Path, tmp_path: Path, part: str, change: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(semantic, tmp_path / "bundle"))
    config = json.loads((folder / "config.json").read_text())
    config[part] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"config\.json is damaged or was changed"):
        SemanticModel.from_pretrained(folder)


def test_a_config_of_other_spaces_and_order_is_the_same(semantic: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(semantic, tmp_path / "bundle"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=7))
    assert same(semantic_answers(folder), semantic_answers(semantic))


def test_edited_times_and_those_of_another_bundle_are_refused(semantic: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(semantic, tmp_path / "bundle"))
    assert read_times(folder) == (TIMES,)
    times = json.loads((folder / "times.json").read_text())
    times["tails"][0]["subgraph"][0] = 0.2
    write_json(times, folder / "times.json")
    with pytest.raises(BundleError, match=r"times\.json is damaged or was changed"):
        SemanticModel.from_pretrained(folder)
    rewrite(folder / "times.json", {"bundle": "0" * 64})
    with pytest.raises(BundleError, match="another"):
        SemanticModel.from_pretrained(folder)
    replace(Bundle.load(semantic), provenance={"made by": "another"}).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "times.json", folder)
    with pytest.raises(BundleError, match="another"):
        SemanticModel.from_pretrained(folder)


def test_a_signature_is_asked_for_where_there_is_a_key(kind: str, bundle: Path, tmp_path: Path) -> None:
    model: Any = {"semantic": SemanticModel, "dynamic": DynamicModel}[kind]
    model.from_pretrained(bundle).save_pretrained(tmp_path / "signed", key=KEY)
    assert same(SAY[kind](tmp_path / "signed"), SAY[kind](bundle))  # without a key signatures are not looked at
    model.from_pretrained(tmp_path / "signed", key=KEY)
    with pytest.raises(BundleError, match="signed with another"):
        model.from_pretrained(tmp_path / "signed", key=OTHER_KEY)
    with pytest.raises(BundleError, match="is not signed"):
        model.from_pretrained(bundle, key=KEY)
    (tmp_path / "signed" / "times.json").unlink(missing_ok=True)
    rewrite(tmp_path / "signed" / "config.json", {"provenance": {"made by": "a forger"}})
    assert SAY[kind](tmp_path / "signed")  # who computes the digest again is not seen by it
    with pytest.raises(BundleError, match="signed with another"):
        model.from_pretrained(tmp_path / "signed", key=KEY)


def test_times_are_signed_too(semantic: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    Bundle.load(semantic).save(folder, key=KEY)
    assert Bundle.load(folder, key=KEY).times == (TIMES,)
    replace_times(folder, replace(TIMES, threads=2))
    with pytest.raises(BundleError, match=r"times\.json is not signed"):
        Bundle.load(folder, key=KEY)
    Bundle.load(folder)
    (folder / "times.json").unlink()
    replace_times(folder, TIMES, KEY)
    assert Bundle.load(folder, key=KEY).times == (TIMES,)


def test_signed_times_of_a_config_that_is_not_signed_are_refused(semantic: Path, tmp_path: Path) -> None:
    """Whoever takes the signature from a config leaves its digest, which is what times name."""
    folder = tmp_path / "bundle"
    Bundle.load(semantic).save(folder, key=KEY)
    assert read_times(folder, KEY) == (TIMES,)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "signature"}))
    assert read_times(folder) == (TIMES,)
    with pytest.raises(BundleError, match=r"config\.json is not signed"):
        read_times(folder, KEY)


def test_the_key_file_is_that_of_all_verbs(
    sinf: Program, semantic: Path, dynamic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "image.png").write_bytes(picture())
    SemanticModel.from_pretrained(semantic).save_pretrained(tmp_path / "signed", key=KEY)
    monkeypatch.setenv("SINF_KEY_FILE", str(tmp_path / "key"))
    for unsigned in (semantic, dynamic):
        assert "is not signed" in sinf.refused("predict", unsigned, tmp_path / "image.png")
        assert "is not signed" in sinf.refused("export", unsigned, tmp_path / "out.onnx", "--layout", "single")
    sinf("predict", tmp_path / "signed", tmp_path / "image.png")
    sinf("tune", tmp_path / "signed", "--turns", 1)
    sinf("predict", tmp_path / "signed", tmp_path / "image.png")  # its times are signed
    monkeypatch.setenv("SINF_KEY_FILE", str(tmp_path / "nowhere"))
    assert "SINF_KEY_FILE" in sinf.refused("predict", tmp_path / "signed", tmp_path / "image.png")


def test_a_short_key_is_refused_before_anything_is_written(semantic: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="16 bytes"):
        Bundle.load(semantic).save(tmp_path / "bundle", key=b"secret")
    assert list(tmp_path.iterdir()) == []


@given(
    record=st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()),
    key=st.none() | st.binary(min_size=16),
)
def test_what_is_sealed_is_unsealed(record: dict[str, Any], key: bytes | None) -> None:
    stored = json.loads(json.dumps(sealed(record, key)))
    content = {name: value for name, value in record.items() if name not in ("digest", "signature")}
    assert unsealed(stored, BundleError, "it", key)[0] == content
    with pytest.raises(BundleError, match="damaged"):
        unsealed(stored | {"another": 1}, BundleError, "it", key)


# ---- edits of every value


#: Where another valid value is a change that an author may make; what it does then is what it says.
LEGAL = {"deferral", "threshold", "preprocessing", "options", "tails", "gates"}


def all_edits(folder: Path) -> list[tuple[str, Place, str]]:
    """File, place and edit of every value in the JSON files of a bundle; a network's description is one value."""
    records = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return [
        (name, place, edit)
        for name, record in records.items()
        for place in positions(record)
        if place[:2] != ("model", "options") or len(place) == 2
        for edit in EDITS
    ]


def try_edits(kind: str, folder: Path, some: list[tuple[str, Place, str]]) -> int:
    """Edit a bundle, with a stale digest and with one that is made again; how many edits were not refused."""
    expected, harmless = SAY[kind](folder), 0
    for name, place, edit in some:
        path = folder / name
        before = path.read_text()
        record = edited(json.loads(before), place, edit)
        try:
            path.write_text(json.dumps(record))
            if record != json.loads(before):
                assert outcome(SAY[kind], folder) is None, (name, place, edit)
            path.write_text(forge(record))
            said = outcome(SAY[kind], folder)
        finally:
            path.write_text(before)
        if said is not None:
            harmless += 1
            assert same(said, expected) or LEGAL.intersection(place), (name, place, edit)
    return harmless


def test_some_edits_of_json_are_refused_or_harmless(kind: str, bundle: Path) -> None:
    listed = all_edits(bundle)
    assert try_edits(kind, bundle, random.Random(0).sample(listed, 50)) < 25


@pytest.mark.slow
def test_all_edits_of_json_are_refused_or_harmless(kind: str, bundle: Path) -> None:
    SAY[kind](bundle)  # what libraries take when they are first used is not of an edit
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    listed = all_edits(bundle)
    assert len(listed) > 700
    assert try_edits(kind, bundle, listed) < len(listed) / 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB, with strings of a million


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": {"value": -1.0}},
        {"threshold": {"value": 1.5}},
        {"threshold": {"early": -0.1}},
        {"threshold": {"value": float("nan")}},
        {"deferral": {"energy": 1e300}},
        {"deferral": {"route": float("inf")}},
        {"router": {"side": 1024, "channels": 65_536, "hidden": 65_536, "kernel": 31}},
        {"router": {"kernel": 2}},
        {"cut": "nowhere"},
        {"classes": ["class 0"] * CLASSES},
        {"classes": ["class 0"]},
        {"clusters": [{"name": "a", "classes": [1, 0, 2]}, {"name": "b", "classes": [3, 4, 5]}]},
        {"clusters": [{"name": "a", "classes": [0, 1, 2, 3]}, {"name": "b", "classes": [4, 5]}]},
        {"clusters": [{"name": "a", "classes": list(range(99_999))}, {"name": "b", "classes": [99_999]}]},
        {"clusters": [{"name": str(c), "classes": [c]} for c in range(CLASSES)]},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_what_cannot_be_is_refused_at_once(semantic: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    """With all digests right, and without memory for it: the largest of these asks for terabytes."""
    folder = Path(shutil.copytree(semantic, tmp_path / "bundle"))
    config = json.loads((folder / "config.json").read_text())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, value in change.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(forge(config))
    with pytest.raises(SinfError) as caught:
        SemanticModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_wide_network_without_its_weights_takes_no_memory(kind: str, bundle: Path) -> None:
    model = json.loads((bundle / "config.json").read_text())["model"]
    rewrite(bundle / "config.json", {"model": model | {"name": "vgg19", "options": {"width": 16.0}}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert outcome(SAY[kind], bundle) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; it has 20 GB of weights


def test_clusters_that_ask_for_gigabytes_are_refused(tmp_path: Path) -> None:
    made = tiny_bundle()
    for sizes in ((20_000, 20_000), (1,) * 700):
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        members = tuple(tuple(range(a, a + size)) for a, size in zip(starts, sizes, strict=True))
        clusters = Clusters(tuple(map(str, range(len(sizes)))), members)
        with pytest.raises(BundleError, match="must fit in"):
            replace(made, clusters=clusters).save(tmp_path / "bundle")


def test_an_image_that_asks_for_gigabytes_is_refused(kind: str, bundle: Path) -> None:
    model = json.loads((bundle / "config.json").read_text())["model"]
    for change in ({"size": [3, 16_000, 16_000]}, {"mean": [0.5]}, {"std": [0.5, 0.5, 0.0]}):
        rewrite(bundle / "config.json", {"model": model | {"preprocessing": model["preprocessing"] | change}})
        with pytest.raises(BundleError, match="preprocessing"):
            SAY[kind](bundle)


# ---- tensors

LONG = "x" * 5000  # the name of a tensor; no error is as long


def change_tensors(folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / file).items()}
    changed = change(tensors)
    save_file({**tensors, **(changed or {})}, folder / file)
    rewrite_digests(folder / "config.json")
    (folder / "times.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("subgraphs", lambda t: {"cluster000.kept.second.0": t["cluster000.kept.second.0"] + 1}),
        ("subgraphs", lambda t: {"cluster000.kept.second.0": t["cluster000.kept.second.0"] - 2}),
        ("subgraphs", lambda t: {"cluster000.kept.second.0": t["cluster000.kept.second.0"].flip(0)}),
        ("subgraphs", lambda t: {"cluster000.kept.second.0": t["cluster000.kept.second.0"].float()}),
        ("subgraphs", lambda t: {"cluster000.kept.second.0": t["cluster000.kept.second.0"][:0]}),
        ("subgraphs", lambda t: {"cluster000.kept.second.0": t["cluster000.kept.second.0"][:1]}),
        ("subgraphs", lambda t: {"cluster000.kept.input": torch.tensor([0], dtype=torch.int32)}),
        ("subgraphs", lambda t: {"cluster000.kept.none": t["cluster000.kept.second.0"].clone()}),
        ("subgraphs", lambda t: {"cluster000.kept.head": torch.tensor([1, 2], dtype=torch.int32)}),
        ("subgraphs", lambda t: {"full_tail.kept.head": torch.tensor([1, 2], dtype=torch.int32)}),
        ("subgraphs", lambda t: {"full_tail.kept.first.0": torch.tensor([1, 2], dtype=torch.int32)}),
        ("subgraphs", lambda t: {"cluster007.kept.second.0": t["cluster000.kept.second.0"].clone()}),
        ("subgraphs", lambda t: {"cluster000.mix.matrix.head": t["cluster000.mix.matrix.head"].T.contiguous()}),
        ("subgraphs", lambda t: {"cluster000.mix.matrix.head": t["cluster000.mix.matrix.head"] * float("nan")}),
        ("subgraphs", lambda t: {"cluster000.mix.matrix.head": t["cluster000.mix.matrix.head"].double()}),
        ("subgraphs", lambda t: {"cluster000.mix.matrix.first.1": t["cluster000.mix.matrix.head"].clone()}),
        ("subgraphs", lambda t: {"cluster000.whole.head.weight": torch.zeros(6, 80).half()}),
        ("subgraphs", lambda t: {"cluster000.whole.head.other": torch.zeros(6).half()}),
        ("subgraphs", lambda t: {"cluster000.other.head": torch.zeros(6).half()}),
        ("subgraphs", lambda t: t.pop("cluster000.kept.head") is None or None),
        ("subgraphs", lambda t: {LONG: torch.zeros(6).half()}),
        ("subgraphs", lambda t: {f"cluster000.kept.{LONG}": torch.tensor([0], dtype=torch.int32)}),
        ("subgraphs", lambda t: {f"cluster000.mix.matrix.{LONG}": torch.zeros(6, 6).half()}),
        ("router", lambda t: {"temperature": torch.tensor(0.0)}),
        ("router", lambda t: {"temperature": torch.tensor(float("nan"))}),
        ("router", lambda t: {"hidden_norm.running_var": -t["hidden_norm.running_var"]}),
        ("router", lambda t: {"hidden_norm.running_var": t["hidden_norm.running_var"] - torch.eye(8)[3] * 9}),
        ("router", lambda t: {LONG: torch.zeros(1)}),
        ("router", lambda t: {"head.weight": t["head.weight"][:2].contiguous()}),
        ("router", lambda t: {"head.weight": t["head.weight"].double()}),
        ("router", lambda t: {"another": t["head.weight"].clone()}),
        ("router", lambda t: t.pop("head.weight") is None or None),
        ("model", lambda t: {"head.weight": t["head.weight"].half()}),
        ("model", lambda t: {"head.weight": t["head.weight"] * float("inf")}),
        ("model", lambda t: {"head.weight": t["head.weight"].T.contiguous()}),
        ("model", lambda t: {"another": t["head.weight"].clone()}),
    ],
)
def test_tensors_that_do_not_fit_are_refused(semantic: Path, tmp_path: Path, file: str, change: Any) -> None:
    """With all digests right."""
    folder = Path(shutil.copytree(semantic, tmp_path / "bundle"))
    change_tensors(folder, f"{file}.safetensors", change)
    with pytest.raises(SinfError) as caught:
        SemanticModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {"gates.0.remaining": torch.tensor(0)},
        lambda t: {"gates.0.remaining": torch.tensor(10**9)},
        lambda t: {"gates.0.remaining": torch.tensor(1.0)},
        lambda t: {"gates.0.excite.weight": t["gates.0.excite.weight"] * float("nan")},
        lambda t: {"gates.0.excite.weight": t["gates.0.excite.weight"][:1].contiguous()},
        lambda t: {"another": t["gates.0.remaining"].clone()},
    ],
)
def test_gates_that_do_not_fit_are_refused(dynamic: Path, tmp_path: Path, change: Any) -> None:
    folder = Path(shutil.copytree(dynamic, tmp_path / "bundle"))
    change_tensors(folder, "dynamic.safetensors", change)
    with pytest.raises(BundleError):
        DynamicModel.from_pretrained(folder)


# ---- bytes


def flip(folder: Path, draw: random.Random, files: list[Path]) -> tuple[Path, bytes]:
    """Change some bytes of one file; what it was."""
    path = draw.choice(files)
    before = path.read_bytes()
    content = bytearray(before)
    for _ in range(draw.choice([1, 1, 1, 2, 16])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content[: draw.randrange(len(content))] if draw.random() < 0.1 else content)
    return path, before


def flip_bytes(kind: str, folder: Path, count: int) -> None:
    """Refused, or the same answers."""
    draw, expected, files = random.Random(0), SAY[kind](folder), sorted(folder.iterdir())
    for _ in range(count):
        path, before = flip(folder, draw, files)
        try:
            said = outcome(SAY[kind], folder)
        finally:
            path.write_bytes(before)
        assert said is None or same(said, expected), path


def flip_headers(kind: str, folder: Path, count: int) -> None:
    """The digests of tensors made again: refused, or answers that may be others, since weights may be."""
    draw, files = random.Random(1), sorted(folder.glob("*.safetensors"))
    config = (folder / "config.json").read_bytes()
    (folder / "times.json").unlink(missing_ok=True)
    for _ in range(count):
        path = draw.choice(files)
        before = path.read_bytes()
        content = bytearray(before)
        end = 8 + int.from_bytes(before[:8], "little")
        content[draw.randrange(end)] = draw.choice([*b'0123456789",[]{}:FI', draw.randrange(256)])
        try:
            path.write_bytes(content)
            rewrite_digests(folder / "config.json")
            outcome(SAY[kind], folder)
        finally:
            path.write_bytes(before)
            (folder / "config.json").write_bytes(config)


def test_some_flipped_bytes_are_refused_or_harmless(kind: str, bundle: Path) -> None:
    flip_bytes(kind, bundle, 60)
    flip_headers(kind, bundle, 10)


@pytest.mark.slow
def test_thousands_of_flipped_bytes_are_refused_or_harmless(kind: str, bundle: Path) -> None:
    flip_bytes(kind, bundle, 4000)
    flip_headers(kind, bundle, 500)


# ---- code and networks


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Nothing reaches a network; what tried is in the list."""
    addresses: list[object] = []

    def refuse(*address: object, **options: object) -> None:
        addresses.append(address)
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return addresses


def hostile_folder(folder: Path) -> Path:
    """A model folder as the hub has them, whose code leaves a mark when it runs."""
    folder.mkdir()
    mark = folder.parent / "ran"
    (folder / "hostile.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from transformers import PretrainedConfig, PreTrainedModel\n"
        "class C(PretrainedConfig):\n    model_type = 'hostile'\n"
        "class M(PreTrainedModel):\n    config_class = C\n"
    )
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "hostile",
                "auto_map": {"AutoConfig": "hostile.C", "AutoModelForImageClassification": "hostile.M"},
            }
        )
    )
    return mark


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}])
@pytest.mark.parametrize(
    "name",
    [
        "hf:{folder}",
        "hf:someone/model",
        "timm:hf-hub:someone/model",
        "timm:local-dir:{folder}",
        "torchvision:../{folder}",
    ],
)
def test_nothing_of_another_folder_runs_and_nothing_is_fetched(
    kind: str, bundle: Path, tmp_path: Path, no_network: list[object], name: str, options: dict[str, Any]
) -> None:
    mark = hostile_folder(tmp_path / "hostile")
    model = json.loads((bundle / "config.json").read_text())["model"]
    named = {"name": name.format(folder=tmp_path / "hostile"), "options": options}
    rewrite(bundle / "config.json", {"model": model | named})
    with pytest.raises(BundleError):
        SAY[kind](bundle)
    assert not mark.exists()
    assert no_network == []


def test_a_library_model_fetches_nothing(kind: str, bundle: Path, no_network: list[object]) -> None:
    model = json.loads((bundle / "config.json").read_text())["model"]
    for name in ("timm:resnet10t", "torchvision:mobilenet_v3_small", "timm:nonsense"):
        rewrite(bundle / "config.json", {"model": model | {"name": name, "options": {}}})
        assert outcome(SAY[kind], bundle) is None  # its weights are not there
    assert no_network == []
