"""Every verb takes every artefact: a routed bundle, a dynamically pruned one and a pruned network."""

from __future__ import annotations

import copy
import csv
import io
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sinf as library
import tiny
from artefacts import make_static
from program import Program
from sinf import edge
from sinf.bundle.classifier import Classifier
from sinf.bundle.plain import has_batch_norms
from sinf.cli.kinds import KINDS
from sinf.data.images import LabelledImages
from sinf.errors import ConfigError, DataError, ModelError, SinfError
from sinf.load import MODELS

KEY = b"sixteen secret bytes"


@pytest.fixture(params=sorted(MODELS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def place(kind: str, folders: dict[str, Path]) -> Path:
    return folders[kind]


@pytest.fixture
def model(place: Path) -> Any:
    return library.from_pretrained(place)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with images in it and below, one of them damaged, and another file."""
    folder = tmp_path / "pictures"
    (folder / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.png", "deep/c.jpg", "deep/er/d.PNG")):
        form = "JPEG" if name.endswith("jpg") else "PNG"
        (folder / name).write_bytes(tiny.picture(number, (40, 36), file_format=form))
    (folder / "deep" / "broken.png").write_bytes(tiny.picture()[:60])
    (folder / "notes.txt").write_text("no image")
    return folder


IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_every_method_has_its_verbs() -> None:
    assert KINDS.keys() == MODELS.keys()


# ---- the verbs


def test_eval(sinf: Program, place: Path, data: Path, tmp_path: Path) -> None:
    assert "top-1" in sinf("eval", place, "--data", data, "--split", "test", "--json", tmp_path / "eval.json")
    record = json.loads((tmp_path / "eval.json").read_text())
    assert record["images"] == 60
    assert 0 <= record["top1"] <= record["top5"] <= 1


def test_bench(sinf: Program, place: Path, data: Path, tmp_path: Path) -> None:
    words = ("--data", data, "--split", "test", "--pairs", 2, "--batch", 1, "--no-stages", "--no-energy")
    text = sinf("bench", place, *words, "--results", tmp_path / "runs", "--json", tmp_path / "b.json")
    assert "Milliseconds a batch" in text
    record = json.loads((tmp_path / "b.json").read_text())
    assert (record["engine"], record["latency"][0]["batch"], record["bundle"]) == ("torch", 1, place.name)
    assert place.name in sinf("results", tmp_path / "runs")


def test_predict_a_folder(sinf: Program, place: Path, pictures: Path, tmp_path: Path) -> None:
    """One bad file is named at the end, with its reason; the others are done."""
    words = ("predict", place, pictures, pictures / "a.png", "--batch", 2, "--json", tmp_path / "p.json")
    code, out, err = sinf.call(*words)
    assert code == 2
    assert "5 of 6 images" in out
    assert "1 files of other endings" in out
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "broken.png: the image cannot be decoded" in errors[0]
    records = json.loads((tmp_path / "p.json").read_text())["predictions"]
    names = [Path(record["image"]).name for record in records]
    assert names == ["a.png", "b.png", "broken.png", "c.jpg", "d.PNG", "a.png"]
    assert ["error" in record for record in records] == [False, False, True, False, False, False]
    first, again = (
        [(each["name"], round(each["probability"], 4)) for each in records[row]["classes"]] for row in (0, 5)
    )
    assert first == again
    assert len(first) == 3


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".csv"])
def test_predictions_as_a_file(sinf: Program, place: Path, pictures: Path, tmp_path: Path, ending: str) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / f"all{ending}"
    assert sinf.call("predict", place, pictures, "--out", out, "--top", 2)[0] == 2
    if ending == ".parquet":
        rows = pq.read_table(out).to_pylist()
    elif ending == ".csv":
        rows = list(csv.DictReader(io.StringIO(out.read_text())))
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        rows = [row | {"class_1": row["classes"][0]["name"] if "classes" in row else None} for row in rows]
    assert len(rows) == 5
    model = library.from_pretrained(place)
    expected = {each.image: each for each in model.predict(sorted(pictures.rglob("*.*[gG]")), top=2)}
    for row in rows:
        wanted = expected[row["image"]]
        assert (row["class_1"] or None) == (wanted.classes[0] if wanted.classes else None)
        assert bool(row.get("error")) == (wanted.error is not None)
        assert wanted.details.keys() <= row.keys() or wanted.error


def test_predictions_that_cannot_be_written(sinf: Program, place: Path, pictures: Path, tmp_path: Path) -> None:
    assert ".parquet" in sinf.refused("predict", place, pictures, "--out", tmp_path / "x.xlsx")
    (tmp_path / "empty").mkdir()
    assert "images to predict" in sinf.refused("predict", place, tmp_path / "empty")


def test_export_as_one_file(sinf: Program, place: Path, tmp_path: Path) -> None:
    import onnxruntime

    out = tmp_path / "all.onnx"
    assert "answers as" in sinf("export", place, out, "--layout", "single")
    model = library.from_pretrained(place)
    session = onnxruntime.InferenceSession(str(out))
    name = session.get_inputs()[0].name
    for image in IMAGES[:2]:
        found = session.run(["logits"], {name: image[None].numpy()})[0]
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(found), model(image[None]), rtol=1e-3, atol=1e-3)


def test_profile(sinf: Program, place: Path, kind: str, tmp_path: Path) -> None:
    assert "Cut points" in sinf("profile", place, "--json", tmp_path / "profile.json")
    parts = json.loads((tmp_path / "profile.json").read_text()).get("parts")
    assert (parts is None) == (kind == "static")


# ---- a plain model beside a base model


def test_a_plain_model_beside_its_base(sinf: Program, folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    base = ("--base", folders["static"])
    shown = sinf("eval", folders["static"], "--data", data, "--split", "test", *base, "--json", tmp_path / "e.json")
    assert "difference" in shown
    record = json.loads((tmp_path / "e.json").read_text())
    assert record["loss"] == 0
    assert record["base_size"] == {"macs": record["macs"], "parameters": record["parameters"]}
    words = ("bench", folders["static"], "--data", data, "--split", "test", "--pairs", 2, "--batch", 4, *base)
    assert "time saved" in sinf(*words)
    int8 = ("--precision", "int8", "--engine", "onnxruntime", "--calibrate", "test")
    assert "top-1 in int8: base" in sinf(*words, *int8)
    for name in ("semantic", "dynamic"):
        assert "holds its base" in sinf.refused("eval", folders[name], "--data", data, *base)


@pytest.mark.parametrize("engine", tiny.ENGINES)
def test_a_plain_model_answers_the_same_in_every_engine(engine: str, folders: dict[str, Path]) -> None:
    from sinf.engine.engines import native
    from sinf.engine.network_engine import open_network

    model = library.from_pretrained(folders["static"])
    run = open_network(model.network, model.preprocessing.size, engine)
    with torch.no_grad():
        for some in (IMAGES[:1], IMAGES):
            found = torch.as_tensor(np.asarray(run(native(engine, some))))
            torch.testing.assert_close(found, model(some), rtol=1e-3, atol=1e-3)


def test_a_plain_model_in_openvino(sinf: Program, folders: dict[str, Path], tmp_path: Path) -> None:
    import openvino

    sinf("export", folders["static"], tmp_path / "all.xml", "--format", "openvino")
    model = library.from_pretrained(folders["static"])
    read = openvino.Core().read_model(tmp_path / "all.xml")
    told = json.loads(read.get_rt_info("sinf").astype(str))
    assert told["classes"] == model.classes
    compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        found = torch.tensor(compiled(IMAGES.numpy())[0])
        torch.testing.assert_close(found, model(IMAGES), rtol=1e-3, atol=1e-3)


def test_a_folder_in_integers_is_for_devices_without_torch(
    sinf: Program, folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Of a plain model and of a bundle, by the same words."""
    for kind in ("static", "semantic"):
        words = ("--layout", "split", "--precision", "int8", "--data", data, "--split", "train")
        sinf("export", folders[kind], tmp_path / kind, *words)
        light, model = edge.load(tmp_path / kind), library.from_pretrained(folders[kind])
        assert (light.precision, light.classes) == ("int8", model.classes)
        assert light(IMAGES.numpy()).shape == (len(IMAGES), len(model.classes))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("export", "DYNAMIC", "OUT", "--precision", "int8", "--data", "DATA"), "f32"),
        (("export", "STATIC", "OUT"), ".onnx"),
        (("eval", "STATIC", "--data", "DATA", "--threshold", 0.5), "no fallback"),
        (("tune", "STATIC"), "routed"),
        (("bench", "STATIC", "--data", "DATA", "--split", "test", "--batch", 1000), "batch"),
        (("eval", "STATIC", "--data", "DATA", "--split", "test", "--base", "vgg11", "--base-weights", "no"), "weights"),
        (("profile", "DYNAMIC", "--width", 1), "leave them out"),
    ],
)
def test_what_makes_no_sense(
    sinf: Program, folders: dict[str, Path], data: Path, tmp_path: Path, words: tuple[object, ...], says: str
) -> None:
    names = {"STATIC": folders["static"], "DYNAMIC": folders["dynamic"], "DATA": data, "OUT": tmp_path / "out"}
    assert says in sinf.refused(*(names.get(str(word), word) for word in words))


# ---- a plain model that is trained on


def test_training_on_keeps_batch_norms(
    sinf: Program, data: Path, tiny_images: LabelledImages, tmp_path: Path, folders: dict[str, Path]
) -> None:
    make_static(tiny_images, tmp_path, keep_batch_norm=True)
    train = ("--data", data, "--epochs", 1, "--batch", 30, "--learning-rate", 0.01)
    code, out, err = sinf.call("train", tmp_path / "static", *train, "--out", tmp_path / "run")
    assert code == 0
    assert "batch norms" not in err
    assert str(tmp_path / "run" / "pruned") in out
    folded = library.from_pretrained(tmp_path / "run" / "pruned")
    assert not has_batch_norms(folded)
    assert folded.provenance["trained further"] == "1 epochs on train"
    _, _, err = sinf.call("train", folders["static"], *train, "--out", tmp_path / "other", "--keep-batch-norm")
    assert "--keep-batch-norm" in err


# ---- from Python


def test_one_face(model: Any) -> None:
    assert isinstance(model, Classifier)
    assert model.classes == ["red", "orange", "green", "teal", "blue", "violet"]
    assert model.preprocessing.size == (3, 32, 32)
    assert model.base_model().spec.classes == 6
    with torch.no_grad():
        assert model(IMAGES).shape == (5, 6)


def test_files_and_opened_images_are_prepared_the_same(model: Any, pictures: Path) -> None:
    paths = [pictures / "a.png", str(pictures / "deep" / "c.jpg")]
    opened = [Image.open(path) for path in paths]
    x = model.preprocess(paths)
    assert x.shape == (2, 3, 32, 32)
    assert torch.equal(x, model.preprocess(opened))
    assert torch.equal(x[:1], model.preprocess(paths[0]))
    pixels = np.stack([model.preprocessing.decode(path, "") for path in paths])
    assert torch.equal(x, model.normalise(pixels))
    with pytest.raises(DataError, match="broken"):
        model.preprocess([*paths, pictures / "deep" / "broken.png"])
    with pytest.raises(DataError, match="must exist"):
        model.preprocess(pictures / "nowhere.png")
    with pytest.raises(DataError, match="hold images"):
        model.preprocess([])


def test_predictions_are_those_of_the_logits(model: Any, pictures: Path) -> None:
    paths = [pictures / "a.png", pictures / "deep" / "broken.png", pictures / "b.png", Image.new("RGB", (9, 9))]
    found = model.predict(paths, top=6, batch=2)
    assert [each.error is None for each in found] == [True, False, True, True]
    with torch.no_grad():
        shares = model(model.preprocess([paths[0]])).softmax(1)[0]
    named = dict(zip(found[0].classes, found[0].probabilities, strict=True))
    assert list(named.values()) == sorted(named.values(), reverse=True)
    torch.testing.assert_close(torch.tensor([named[name] for name in model.classes]), shares, rtol=1e-3, atol=1e-4)
    assert found[0].details.keys() == model.details_of_a_prediction.keys()
    assert found[3].image == "image 3"
    with pytest.raises(ConfigError, match="top and batch"):
        model.predict(paths, top=0)


def test_images_are_read_as_they_are_needed(model: Any, pictures: Path) -> None:
    """Not all of a list is in memory at once."""
    taken: list[int] = []

    def paths() -> Any:
        for number in range(20):
            taken.append(number)
            yield pictures / "a.png"

    stream = model.stream(paths(), batch=4)
    next(stream)
    assert len(taken) == 4


def test_saved_and_loaded_again(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "again")
    again = library.from_pretrained(tmp_path / "again")
    assert type(again) is type(model)
    assert again.classes == model.classes
    with torch.no_grad():
        assert torch.equal(again(IMAGES), model(IMAGES))
    again.save_pretrained(tmp_path / "again")  # over itself


def test_signed_and_refused(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "signed", key=KEY)
    library.from_pretrained(tmp_path / "signed", key=KEY)
    library.from_pretrained(tmp_path / "signed")
    with pytest.raises(SinfError, match="signed with another"):
        library.from_pretrained(tmp_path / "signed", key=KEY + b"!")
    model.save_pretrained(tmp_path / "open")
    with pytest.raises(SinfError, match="is not signed"):
        library.from_pretrained(tmp_path / "open", key=KEY)


def test_to_the_hub_and_back(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uploaded is what is downloaded; the hub itself is not here."""
    import shutil

    import huggingface_hub

    class Api:
        def __init__(self, token: str | None = None) -> None:
            self.token = token

        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> SimpleNamespace:
            assert (private, exist_ok, self.token) == (True, True, "secret")
            return SimpleNamespace(repo_id=repository)

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            shutil.copytree(folder_path, tmp_path / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name: str(tmp_path / name))
    model.push_to_hub("somebody/model", private=True, token="secret")
    assert (tmp_path / "somebody" / "model" / "README.md").is_file()
    again = library.from_pretrained("somebody/model")
    with torch.no_grad():
        assert torch.equal(again(IMAGES), model(IMAGES))
    monkeypatch.undo()
    with pytest.raises(DataError, match="cannot be pushed"):
        model.push_to_hub("somebody/model")  # tests have no network


def test_copies_and_pickles(model: Any) -> None:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    with torch.no_grad():
        expected = model(IMAGES)
        for again in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(stream, weights_only=False),
        ):
            assert torch.equal(again(IMAGES), expected)


def test_the_card_says_what_the_model_is_fed(place: Path, model: Any) -> None:
    card = (place / "README.md").read_text()
    assert "32x32" in card
    assert str(model.preprocessing.mean[0]) in card
    assert "preprocess(" in card


def test_the_names_are_those_of_the_edge(folders: dict[str, Path], tmp_path: Path, sinf: Program) -> None:
    sinf("export", folders["semantic"], tmp_path / "split")
    there, here = edge.load(tmp_path / "split"), library.from_pretrained(folders["semantic"])
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert there.classes == here.classes
    assert there.clusters == here.clusters
    np.testing.assert_allclose(there.normalise(pixels), here.normalise(pixels).numpy(), rtol=1e-5, atol=1e-5)


def test_a_folder_of_something_else_is_no_artefact(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(SinfError, match="written by sinf"):
        library.from_pretrained(tmp_path)


def test_a_damaged_plain_model(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folders["static"], tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match="changed"):
        library.from_pretrained(tmp_path / "copy")
