"""What all tests share: a private cache, no network, foreign libraries that import, reproducible draws."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_cache = tempfile.TemporaryDirectory(prefix="sinf-tests-", ignore_cleanup_errors=True)
# datasets and huggingface_hub read these when they are imported, so before anything imports them.
os.environ["HF_HOME"] = _cache.name
os.environ["HF_DATASETS_CACHE"] = os.path.join(_cache.name, "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SINF_CACHE"] = ""  # nothing is kept for later runs, or read of earlier ones
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; libraries read this when they are imported, too
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file

import tiny
from artefacts import make_dynamic, make_static
from once import ONCE, Once, remember_exports
from outsider import outsider
from program import Program
from sinf.data.clusters import Clusters, from_column, one_cluster
from sinf.data.images import LabelledImages, load_images
from sinf.measure import layer_times, timing
from sinf.models import load_model
from sinf.pipelines.build import BuildConfig, Images, build
from sinf.routing.predictor import RouterConfig

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    torch.set_num_threads(1)

_operators = torch.library.Library("torchvision", "FRAGMENT")  # its definitions live as long as it does


def _let_torchvision_import() -> None:
    """A torchvision built for CUDA cannot register its operators with a CPU build of torch, but looks them up."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for extension in Path(spec.origin).parent.glob("_C*.so"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(extension)
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_let_torchvision_import()

# A failure must repeat: the same examples every time, and no time limit for one of them.
settings.register_profile(
    "sinf", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sinf")


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not read all of it again and again, a sixth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 10)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test draws the same random numbers, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes things for all processes of this run: its workers, and a run in a run (tests/engine/test_threads.py)."""
    folder = tmp_path_factory.getbasetemp()
    whole = folder.parent if hasattr(request.config, "workerinput") else folder
    root = Path(os.environ.get(ONCE, whole / "once"))
    root.mkdir(exist_ok=True)
    return Once(root)


@pytest.fixture(autouse=True, scope="session")
def _remembered_exports(once: Once) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        remember_exports(monkeypatch, once.root / "exports")
        yield


@pytest.fixture(autouse=True, scope="session")
def _unsettled() -> Iterator[None]:
    """Models are timed without the runs before those that count, nine tenths of the work, and layers a few times: no
    test depends on a time. tests/measure/test_timing.py has these runs."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(timing, "SETTLED", 0)
        for name, value in (("RUNS", 4), ("LEAST_RUNS", 2), ("LEAST_SECONDS", 0.0)):
            monkeypatch.setattr(layer_times, name, value)
        yield


@pytest.fixture(scope="session")
def data(once: Once) -> Path:
    """A folder with the splits train and test: 120 and 60 coloured 32x32 images of 6 classes in 3 clusters; a class is
    a hue, a cluster a pair of hues."""

    def make(folder: Path) -> None:
        tiny.coloured_images(folder, 60, seed=1)
        (folder / "train-00000-of-00001.parquet").rename(folder / "test-00000-of-00001.parquet")
        tiny.coloured_images(folder, 120, seed=0)

    return once("data", make)


@pytest.fixture(scope="session")
def tiny_images(data: Path) -> LabelledImages:
    """The split train."""
    return load_images(data, "train")


WIDTHS = {"vgg11": 0.125, "resnet20": 0.5}


@pytest.fixture(scope="session")
def build_once(once: Once, data: Path, tiny_images: LabelledImages) -> Callable[..., Path]:
    def made(name: str, clusters: Clusters | None = None, model: str = "vgg11", **options: object) -> Path:
        config = BuildConfig(
            keep_anyway=True, cut_at=0.5, max_loss=0.9, route_draws=240, router=RouterConfig(epochs=2, hidden=16),
            **options,
        )  # fmt: skip

        def make(folder: Path) -> None:
            torch.manual_seed(0)
            base = load_model(model, classes=6, options={"width": WIDTHS[model]})
            images = Images(tiny_images, tiny_images, load_images(data, "test"))
            build(base, images, clusters or from_column(tiny_images), config, folder / "bundle")

        return once(name, make) / "bundle"

    return made


@pytest.fixture(scope="session")
def built(build_once: Callable[..., Path]) -> Path:
    """A bundle of a small VGG in which everything is pruned and reconstructed. Do not write into it."""
    return build_once("built", extractor=0.7, full_tail=0.7, macs=0.4)


@pytest.fixture(scope="session")
def built_whole(build_once: Callable[..., Path]) -> Path:
    """The same with extractor and full tail as they are."""
    return build_once("built_whole", ratios=(0.1, 0.5))


@pytest.fixture(scope="session")
def built_ranks(build_once: Callable[..., Path]) -> Path:
    """The same with all parts in low rank."""
    return build_once("built_ranks", method="ranks", whole=0.8, macs=0.5, round_to=2)


@pytest.fixture(scope="session")
def built_cascade(build_once: Callable[..., Path], tiny_images: LabelledImages) -> Path:
    """One subgraph for all classes, in low rank, and no route predictor."""
    clusters = one_cluster(tiny_images.classes)
    return build_once("built_cascade", clusters, method="ranks", extractor=0.8, macs=0.5, round_to=2)


@pytest.fixture(scope="session")
def built_depth(build_once: Callable[..., Path]) -> Path:
    """A small ResNet with residual branches of all parts as constants."""
    return build_once("built_depth", model="resnet20", method="depth", whole=0.9, macs=0.7)


@pytest.fixture(scope="session")
def built_sparse(build_once: Callable[..., Path]) -> Path:
    """All parts by a compressor from outside the package."""
    with outsider() as method:
        return build_once("built_sparse", method=method, whole=0.8, macs=0.7)


@pytest.fixture(scope="session")
def folders(built: Path, tiny_images: LabelledImages, once: Once) -> dict[str, Path]:
    """A folder of every kind. Do not write into it."""

    def make(folder: Path) -> None:
        make_static(tiny_images, folder)
        make_dynamic(tiny_images, folder)

    made = once("artefacts", make)
    return {"semantic": built, "static": made / "static", "dynamic": made / "dynamic"}


@pytest.fixture(scope="session")
def weights(once: Once) -> Path:
    """Random weights of a narrow VGG11 with six classes."""

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        state = load_model("vgg11", classes=6, options={"width": 0.125}).module.state_dict()
        save_file(state, folder / "vgg11.safetensors")

    return once("weights", make) / "vgg11.safetensors"


@pytest.fixture
def sinf(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys)
