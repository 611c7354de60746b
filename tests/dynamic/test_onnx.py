"""Computed weights in ONNX Runtime: the answers of the bundle, and clear words for what cannot be held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from as_written import AsWritten
from gated import stir
from sinf.dynamic import onnx as module
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.model import DynamicModel
from sinf.dynamic.network import GateConfig, attach
from sinf.dynamic.onnx import export, largest_batch, open_engine
from sinf.engine.engines import RUNTIMES, native
from sinf.engine.runtime import Runtime
from sinf.engine.session_runtimes import OnnxRuntime
from sinf.engine.torch_runtime import Torch
from sinf.errors import ConfigError, ModelError, VerificationError
from sinf.models import BaseModel, load_model
from tiny import randomise


def bundle_of(name: str, rate: float = 0.5, **gates: object) -> DynamicBundle:
    """A narrow network whose gates remove some channels."""
    torch.manual_seed(0)
    small = {"options": {"width": 0.25}} if ":" not in name else {"size": (3, 64, 64)}
    base = load_model(name, pretrained=False, classes=5, **small)
    base = BaseModel(randomise(base.module), base.spec)
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    network = stir(attach(base, GateConfig(**gates)).eval())
    for _ in range(2):
        _, seen = network.observe(torch.randn(8, *base.spec.preprocessing.size))
        for index, saliency in enumerate(seen.saliencies):
            network.gate(index).set_remaining(rate, saliency.mean(0).detach())
    return DynamicBundle.of(network, base.spec, before, list("abcde"), {})


@pytest.mark.parametrize(
    ("name", "gates"),
    [
        ("vgg11", {}),
        ("resnet20", {"kind": "fbs"}),
        ("vgg11", {"block": 4, "mask": "binary"}),
        ("resnet20", {"kind": "static"}),
        ("torchvision:mobilenet_v2", {}),
        ("timm:mobilenetv3_small_050", {"kind": "static"}),
    ],
    ids=["paper", "fbs", "blocks", "static", "depthwise", "squeeze and excite"],
)
def test_answers_are_those_of_the_bundle(tmp_path: Path, name: str, gates: dict) -> None:
    model = DynamicModel(bundle_of(name, **gates))
    export(model, tmp_path / "out.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(6, *model.bundle.spec.preprocessing.size)
    ours = np.concatenate([session.run(["logits"], {"images": image[None].numpy()})[0] for image in images])
    np.testing.assert_allclose(ours, model(images), rtol=1e-3, atol=1e-3)


def test_one_channel_stays_where_none_would() -> None:
    model = DynamicModel(bundle_of("resnet20"))
    for gate in model.network.gates:
        gate.threshold.fill_(1e9)
    _, ours = open_engine(model, "onnxruntime", 1)
    x = torch.randn(1, *model.bundle.spec.preprocessing.size)
    np.testing.assert_allclose(ours(x.numpy()), model.network(x).detach(), rtol=1e-3, atol=1e-3)


def test_base_and_ours_are_in_the_same_engine() -> None:
    model = DynamicModel(bundle_of("vgg11"))
    x = torch.randn(1, *model.bundle.spec.preprocessing.size)
    for engine in ("torch", "onnxruntime"):
        base, ours = open_engine(model, engine, 1)
        np.testing.assert_allclose(base(native(engine, x)), model.base(x), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(ours(native(engine, x)), model(x), rtol=1e-3, atol=1e-3)


class Mine(Torch):
    """An engine from outside that runs networks as they are written, in batches of any size."""

    name = "mine"


class Graphs(OnnxRuntime):
    """One that runs ONNX graphs."""

    name = "graphs"


@pytest.mark.parametrize(("runtime", "batch"), [(Mine(), 3), (Graphs(), 1)])
def test_engines_from_outside_run_it(runtime: Runtime, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, runtime.name, runtime)
    model = DynamicModel(bundle_of("vgg11"))
    assert largest_batch(runtime.name) == (None if batch > 1 else 1)
    base, ours = open_engine(model, runtime.name, 1)
    x = torch.randn(batch, *model.bundle.spec.preprocessing.size)
    np.testing.assert_allclose(base(native(runtime.name, x)), model.base(x), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ours(native(runtime.name, x)), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("engine", ["openvino", "torch-compile", "as-written"])
def test_an_engine_that_cannot_says_so_before_anything_is_exported(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(*given: object) -> None:
        raise AssertionError("it was exported")

    monkeypatch.setattr(module, "graph_to_onnx", exported)
    monkeypatch.setitem(RUNTIMES, "as-written", AsWritten())
    with pytest.raises(ConfigError, match=f"the engine {engine} runs no graphs"):
        open_engine(DynamicModel(bundle_of("resnet20")), engine, 1)


def test_an_export_that_differs_is_refused(tmp_path: Path) -> None:
    model = DynamicModel(bundle_of("vgg11"))
    for gate in model.network.gates:
        gate.threshold.fill_(0.0)  # what is exported is no longer what runs in torch
    with pytest.raises(VerificationError):
        export(model, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_what_cannot_be_held_is_named(tmp_path: Path) -> None:
    model = DynamicModel(bundle_of("torchvision:squeezenet1_1"))  # layers that read two convolutions side by side
    with pytest.raises(ModelError, match=r"Conv2d at features\.\d+\.squeeze"):
        export(model, tmp_path / "out.onnx")


def test_names_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model = DynamicModel(bundle_of("resnet20"))
    with pytest.raises(ConfigError, match="onnx"):
        export(model, tmp_path / "out")
    with pytest.raises(ConfigError, match="engine must be one of"):
        open_engine(model, "tensorflow", 1)
