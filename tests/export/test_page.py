"""The page for browsers: what is in its folder, that it sees images as Python does, and that it runs in a real one."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import browser
import tiny
from sinf.bundle.semantic import Bundle
from sinf.data.images import LabelledImages, Preprocessing
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import BundleError, ConfigError, DependencyError
from sinf.export import page
from sinf.export.local_server import server
from sinf.export.page import PAGE, RUNTIME, export_page, find_gallery, find_runtime

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(built: Path) -> SemanticModel:
    """One in which subgraphs answer."""
    model = SemanticModel.from_pretrained(built)
    model.threshold = 0.0
    return model


@pytest.fixture(scope="module")
def gallery(tiny_images: LabelledImages) -> LabelledImages:
    return tiny_images.select(list(range(6)))


@pytest.fixture(scope="module")
def exported(
    model: SemanticModel, gallery: LabelledImages, fake_runtime: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("page") / "web"
    export_page(model, folder, find_runtime(fake_runtime), gallery)
    return folder


# ---- the folder


def test_everything_is_in_the_folder(exported: Path, gallery: LabelledImages, model: SemanticModel) -> None:
    for path in PAGE.iterdir():
        assert (exported / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in (exported / "runtime").iterdir()) == sorted(RUNTIME)
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["classes"] == list(model.bundle.class_names)
    for which, name in (("bundle", "model.onnx"), ("base", "base.onnx")):
        assert manifest["bytes"][which] == (exported / name).stat().st_size
    pixels = gallery.pixels(model.bundle.spec.preprocessing).numpy()
    for picture, expected, label in zip(manifest["gallery"], pixels, gallery.labels.tolist(), strict=True):
        assert np.array_equal(np.asarray(Image.open(exported / picture["file"])), expected)
        assert picture["label"] == gallery.class_names[label]


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_what_the_page_runs_answers_as_the_bundle(
    bundle: Bundle, noise: torch.Tensor, threshold: float, fake_runtime: Path, tmp_path: Path
) -> None:
    """Both of its graphs, where subgraphs answer and where none does."""
    model = SemanticModel(bundle)
    model.threshold = threshold
    export_page(model, tmp_path / "web", find_runtime(fake_runtime))
    ours, base = (
        onnxruntime.InferenceSession(tmp_path / "web" / name, providers=["CPUExecutionProvider"])
        for name in ("model.onnx", "base.onnx")
    )
    expected = model.route(noise)
    assert set(expected.route.tolist()) == {0, 1, 2}
    assert set(expected.fell_back.tolist()) == {threshold > 1}
    for session, wanted in ((ours, expected.logits), (base, model.network.graph(noise).detach())):
        answers = [session.run(["logits"], {"images": image[None].numpy()})[0] for image in noise]
        np.testing.assert_allclose(np.concatenate(answers), wanted, rtol=1e-3, atol=1e-3)


def test_the_page_refers_to_what_is_there(exported: Path) -> None:
    """And to nothing of another machine."""
    text = "".join(path.read_text() for path in sorted(PAGE.iterdir()))
    assert "://" not in text
    for name in (*(path.name for path in PAGE.iterdir() if path.name != "index.html"), RUNTIME[0], "manifest.json"):
        assert name in text
        assert (exported / name).is_file() or (exported / "runtime" / name).is_file()


def test_every_element_that_the_script_asks_for_is_in_the_page() -> None:
    page_text, script = (PAGE / "index.html").read_text(), (PAGE / "page.js").read_text()
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', script))
    assert len(wanted) > 15
    assert wanted <= set(re.findall(r'id="([\w-]+)"', page_text))


def test_only_an_export_is_replaced(model: SemanticModel, fake_runtime: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="other files"):
        export_page(model, tmp_path, find_runtime(fake_runtime))
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "old.txt").write_text("")
    export_page(model, copy, find_runtime(fake_runtime))
    assert not (copy / "old.txt").exists()
    assert json.loads((copy / "manifest.json").read_text())["gallery"] == []


def test_a_missing_runtime_is_said_with_the_command(
    tmp_path: Path, fake_runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (None, tmp_path):
        with pytest.raises(DependencyError, match="npm install onnxruntime-web"):
            find_runtime(given)
    assert find_runtime(fake_runtime) == find_runtime(fake_runtime / "dist") == fake_runtime / "dist"
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "onnxruntime-web").symlink_to(fake_runtime)
    assert find_runtime().resolve() == fake_runtime / "dist"


def test_sample_images_are_of_the_models_classes(model: SemanticModel, data: Path) -> None:
    assert find_gallery(model) is None  # the embedded ones are CIFAR-100's
    assert len(find_gallery(model, str(data), "test")) == page.GALLERY
    with pytest.raises(ConfigError, match="100 classes instead of 6"):
        find_gallery(model, str(page.EMBEDDED))


def test_the_page_of_a_cascade(
    built_cascade: Path, gallery: LabelledImages, fake_runtime: Path, tmp_path: Path
) -> None:
    """One cluster, no route predictor: the graph answers as the cascade does."""
    cascade = SemanticModel.from_pretrained(built_cascade)
    export_page(cascade, tmp_path / "web", find_runtime(fake_runtime), gallery)
    session = onnxruntime.InferenceSession(str(tmp_path / "web" / "model.onnx"))
    for image in gallery.inputs(cascade.preprocessing)[:4]:
        logits = session.run(["logits"], {"images": image[None].numpy()})[0]
        torch.testing.assert_close(torch.tensor(logits), cascade(image[None]), rtol=1e-3, atol=1e-4)


# ---- the server


@pytest.fixture
def address(exported: Path) -> Iterator[str]:
    with server(exported) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", "text/html; charset=utf-8"),
        ("page.js", "text/javascript; charset=utf-8"),
        (f"runtime/{RUNTIME[0]}", "text/javascript; charset=utf-8"),
        (f"runtime/{RUNTIME[2]}", "application/wasm"),
        ("model.onnx", "application/octet-stream"),
        ("gallery/00.png", "image/png"),
    ],
)
def test_files_are_served_with_their_types(address: str, name: str, kind: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address + name, timeout=10) as response:
        assert response.headers["Content-Type"] == kind
        assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"


def test_a_port_that_is_taken(exported: Path) -> None:
    with server(exported) as running, pytest.raises(ConfigError, match="--port"):
        server(exported, running.server_port)


# ---- what the page makes of an image

SIZES = [(32, 32), (64, 48), (33, 70), (20, 20), (31, 32), (300, 201)]


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here, which runs the page's arithmetic by itself")
@pytest.mark.parametrize(
    ("channels", "resize", "interpolation"),
    [(1, None, "bilinear"), (3, None, "bilinear"), (3, 37, "bicubic"), (1, 32, "bilinear"), (3, (33, 40), "bicubic")],
)
def test_images_are_resized_and_normalised_as_in_python(
    tmp_path: Path, channels: int, resize: int | tuple[int, int] | None, interpolation: str
) -> None:
    """To the bit: of images of the model's size, larger, smaller, and of other shapes."""
    mean, std = ((0.507, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)) if channels == 3 else ((0.13,), (0.31,))
    preprocessing = Preprocessing((channels, 32, 32), mean, std, resize, interpolation)
    pictures, expected = [], []
    for seed, size in enumerate(SIZES):
        content = tiny.picture(seed, size)
        rgba = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
        pictures.append({"data": rgba.flatten().tolist(), "width": size[0], "height": size[1]})
        expected.append(preprocessing.decode(content, "picture"))
    shutil.copy(PAGE / "preprocess.js", tmp_path / "preprocess.mjs")
    (tmp_path / "run.mjs").write_text(
        'import fs from "node:fs"; import { fit, normalise } from "./preprocess.mjs";'
        "const { pictures, preprocessing } = JSON.parse(fs.readFileSync(0));"
        "const pixels = pictures.map((picture) => fit(picture, preprocessing));"
        "const values = pixels.map((each) => Array.from(normalise(each, preprocessing)));"
        "console.log(JSON.stringify({ pixels: pixels.map((each) => Array.from(each)), values }));"
    )
    given = {"pictures": pictures, "preprocessing": preprocessing.to_json()}
    done = subprocess.run(
        ["node", "run.mjs"], cwd=tmp_path, input=json.dumps(given), capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    for pixels, values, wanted in zip(found["pixels"], found["values"], expected, strict=True):
        assert np.array_equal(np.array(pixels, np.uint8).reshape(wanted.shape), wanted)
        normalised = preprocessing.normalise(torch.from_numpy(wanted[None].copy()))[0]
        assert torch.equal(torch.tensor(values).reshape(normalised.shape), normalised)


# ---- in a browser


def real_runtime() -> Path | None:
    """onnxruntime-web, where npm put it: beside the repository's files, or where SINF_ONNXRUNTIME_WEB says."""
    try:
        return find_runtime(Path(os.environ.get("SINF_ONNXRUNTIME_WEB", ROOT / "node_modules" / "onnxruntime-web")))
    except DependencyError:
        return None


@pytest.fixture(scope="module")
def in_browser(
    model: SemanticModel, gallery: LabelledImages, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[browser.Browser]:
    """A browser that has the page open."""
    runtime, missing = real_runtime(), browser.missing()
    if runtime is None:
        missing = "no onnxruntime-web here (npm install onnxruntime-web, or SINF_ONNXRUNTIME_WEB)"
    if missing is not None or runtime is None:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("browser") / "web"
    export_page(model, folder, runtime, gallery)
    with server(folder) as running, browser.Browser() as window:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        window.open(f"http://127.0.0.1:{running.server_port}/")
        window.wait("document.getElementById('saved').innerText")
        yield window
        running.shutdown()


@pytest.mark.slow
def test_the_browser_says_what_python_says(in_browser: browser.Browser, model: SemanticModel) -> None:
    """From files of several sizes and kinds: the same pixels, logits and ways."""
    preprocessing = model.bundle.spec.preprocessing
    for seed, (size, mode) in enumerate([((32, 32), "RGB"), ((50, 40), "RGB"), ((37, 64), "L"), ((20, 31), "RGB")]):
        content = tiny.picture(seed, size, mode)
        x = preprocessing.normalise(torch.tensor(preprocessing.decode(content, "picture")[None]))
        expected = model.route(x)
        found = in_browser.run(
            """
            const { decode } = await import("./preprocess.js");
            const { Model } = await import("./model.js");
            const model = (globalThis.loaded ??= await Model.load());
            const { x } = model.prepare(await decode(new Blob([new Uint8Array(a[0])])));
            return { x: Array.from(x.data), base: await model.baseLogits(x), ...(await model.route(x)) };
            """,
            list(content),
        )
        assert torch.equal(torch.tensor(found["x"]).reshape(x.shape), x)
        for name, wanted in (("logits", expected.logits), ("base", model.network.graph(x))):
            torch.testing.assert_close(torch.tensor([found[name]]), wanted.detach(), rtol=1e-3, atol=1e-3)
        assert (found["route"], found["subgraphRan"]) == (int(expected.route), bool(expected.subgraph_ran))
        assert found["fellBack"] == bool(expected.fell_back)
        assert found["confidence"] == pytest.approx(float(expected.confidence), abs=1e-3)


@pytest.mark.slow
def test_a_person_picks_and_drops_images(in_browser: browser.Browser, model: SemanticModel, tmp_path: Path) -> None:
    window = in_browser
    window.click("#gallery li:nth-child(3) button")
    window.wait("document.getElementById('caption').innerText === 'green'")
    window.wait("!document.getElementById('result').classList.contains('busy')")
    assert "ms" in window.text("#bundle-time")
    assert "ms" in window.text("#base-time")
    assert "time saved" in window.text("#saved") or "slower" in window.text("#saved")
    assert window.run("return document.querySelectorAll('#classes li').length;") == 5
    path = tmp_path / "mine.png"
    path.write_bytes(tiny.picture(7, (60, 40)))
    window.choose_file("#file", path)
    window.wait("document.getElementById('caption').innerText === 'mine.png'")
    window.wait("!document.getElementById('result').classList.contains('busy')")
    preprocessing = model.bundle.spec.preprocessing
    x = preprocessing.normalise(torch.tensor(preprocessing.decode(path, "mine")[None]))
    expected = model.route(x)
    best = model.bundle.class_names[int(expected.logits.argmax())]
    assert window.text("#classes li:first-child span") == best
    assert window.text("#clusters li[aria-current=true]") == model.bundle.clusters.names[int(expected.route)]
    ran = window.run("return [...document.querySelectorAll('#way li.on')].map((e) => e.dataset.part);")
    assert ("subgraph" in ran, "full_tail" in ran) == (bool(expected.subgraph_ran), bool(expected.fell_back))
    (tmp_path / "broken.png").write_bytes(path.read_bytes()[:50])
    window.choose_file("#file", tmp_path / "broken.png")
    window.wait("document.getElementById('status').className === 'error'")
    assert "broken.png cannot be read" in window.text("#status")
    window.click("#all")
    window.wait("document.getElementById('sum').innerText.startsWith('6 images')")
    assert window.log() == []
