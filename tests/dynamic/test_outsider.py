"""A method with gates of its own from outside the package, examples/peak.py, goes where those of the package go; gates
that are wrong are refused before they are trained."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import peak
import sinf as library
from gated import cut, gated
from outsider import outside_gates
from program import Program
from sinf.data.images import LabelledImages
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.gates import Gate
from sinf.dynamic.methods import METHODS, Method, register
from sinf.dynamic.model import DynamicModel, evaluate
from sinf.dynamic.network import GateConfig, GatedNetwork, attach
from sinf.dynamic.onnx import export, to_onnx
from sinf.dynamic.sparse import SparseNetwork
from sinf.dynamic.targets import Target
from sinf.dynamic.trainer import TrainConfig, train
from sinf.errors import BundleError, ConfigError, ModelError, VerificationError
from sinf.models import BaseModel, load_model
from tiny import CLASSES, COLOUR, Interrupted, Mixed, interrupt_at, tiny_data

LINES = 100
TRAINING = TrainConfig(Target(macs=0.7), GateConfig("peak"), epochs=2, batch=8, learning_rate=0.02)


@pytest.fixture
def outside() -> Iterator[str]:
    with outside_gates() as name:
        yield name


def small() -> BaseModel:
    torch.manual_seed(0)
    return load_model("resnet20", classes=CLASSES, size=COLOUR.size, options={"width": 0.5})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LabelledImages]:
    """A bundle that was trained for two epochs, and its images. Do not write into it."""
    folder = tmp_path_factory.mktemp("peak")
    images, base = tiny_data(folder / "data"), small()
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    with outside_gates():
        network = train(base, images, folder / "work", TRAINING)
        DynamicBundle.of(network, base.spec, before, images.class_names, {}).save(folder / "bundle")
    return folder / "bundle", images


def test_it_is_one_small_file() -> None:
    assert len(Path(peak.__file__).read_text().splitlines()) <= LINES


@torch.no_grad()
def test_its_gates_follow_their_formula() -> None:
    gate, x = peak.PeakGate(3, 4), torch.randn(2, 3, 5, 5)
    gate.linear.weight.copy_(torch.randn(4, 3))
    gate.threshold.fill_(1.0)
    for image, mask in zip(x, gate.mask(gate(x)), strict=True):
        for unit in range(4):
            largest = torch.tensor([float(channel.abs().max()) for channel in image])
            value = float(gate.linear.weight[unit] @ largest + gate.linear.bias[unit])
            assert float(mask[unit]) == pytest.approx(value if value >= 1 else 0, abs=1e-5)


def test_training_changes_its_gates_and_meets_the_budget(outside: str, made: tuple[Path, LabelledImages]) -> None:
    model = DynamicModel.from_pretrained(made[0])
    assert model.bundle.gates.kind == outside
    gates = [model.network.gate(index) for index in range(len(model.network.sites))]
    assert all(isinstance(gate, peak.PeakGate) and gate.linear.weight.any() for gate in gates)
    result = evaluate(model, made[1])
    assert 0.25 < result.macs_saved < 0.4
    assert result.macs.std > 0  # inputs differ
    assert f"({outside})" in (made[0] / "README.md").read_text()


def test_its_loss_lowers_saliencies(outside: str, tmp_path: Path) -> None:
    images, means = tiny_data(tmp_path / "data"), []
    for complexity in (0.0, 1.0):
        config = TrainConfig(
            Target(channels=1.0), GateConfig(outside), epochs=2, batch=8, learning_rate=0.02, complexity=complexity
        )
        network = train(small(), images, tmp_path / str(complexity), config)
        saliencies = network.observe(next(images.batches(COLOUR))[0])[1].saliencies
        means.append(float(torch.cat(saliencies, 1).detach().mean()))
    assert means[1] < means[0]


def test_it_resumes_to_the_same_weights(outside: str, tmp_path: Path, made: tuple[Path, LabelledImages]) -> None:
    for step in (2, 4):
        with pytest.raises(Interrupted):
            train(small(), made[1], tmp_path, TRAINING, progress=interrupt_at(step))
    state = train(small(), made[1], tmp_path, TRAINING).state_dict()
    whole = DynamicBundle.load(made[0]).state
    assert [key for key in whole if not torch.equal(whole[key], state[key])] == []


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("mask", ["scaled", "binary"])
def test_it_runs_sparse(outside: str, mask: str, block: int) -> None:
    network = cut(
        gated(Mixed(["plain", "residual", "depthwise", "concat", "plain"]), kind=outside, mask=mask, block=block)
    )
    x = torch.randn(4, *COLOUR.size)
    wanted = network(x)
    for way in ("each", "mask"):
        torch.testing.assert_close(SparseNetwork(network, batches=way)(x), wanted, rtol=1e-4, atol=1e-4)


def test_it_is_exported_to_onnx(outside: str, made: tuple[Path, LabelledImages], tmp_path: Path) -> None:
    model = library.from_pretrained(made[0])
    export(model, tmp_path / "out.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(6, *COLOUR.size)
    answers = [session.run(["logits"], {"images": image[None].numpy()})[0] for image in images]
    np.testing.assert_allclose(np.concatenate(answers), model(images), rtol=1e-3, atol=1e-3)


def test_the_command_line_takes_it(outside: str, sinf: Program, data: Path, weights: Path, tmp_path: Path) -> None:
    sinf(
        "dynamic", "train", "vgg11", "--weights", weights, "--data", data, "--method", outside, "--channels", 0.9,
        "--epochs", 1, "--batch", 40, "--learning-rate", 0.01, "--keep-anyway", "--out", tmp_path / "out",
    )  # fmt: skip
    assert json.loads((tmp_path / "out" / "config.json").read_text())["gates"]["kind"] == outside
    assert "95th percentile" in sinf("eval", tmp_path / "out", "--data", data, "--split", "test")


# ---- without it


def test_a_bundle_of_it_says_what_is_missing(made: tuple[Path, LabelledImages]) -> None:
    with pytest.raises(BundleError, match=r"one of manidp, fbs, static \(got peak\): import the file that reg"):
        library.from_pretrained(made[0])


def test_importing_the_file_opens_it(made: tuple[Path, LabelledImages], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinf.dynamic.methods.METHODS", copy(METHODS))
    monkeypatch.delitem(sys.modules, "peak")
    importlib.import_module("peak")
    assert library.from_pretrained(made[0])(torch.randn(2, *COLOUR.size)).shape == (2, CLASSES)


# ---- wrong ones


class Mean(Gate):
    """One linear layer, right in all it does."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.channels, self.units = channels, units
        self.linear = nn.Linear(channels, units)

    def layers(self) -> tuple[nn.Linear, ...]:
        return (self.linear,)


class OneSaliency(Mean):
    def saliency(self, pooled: Tensor) -> Tensor:
        return super().saliency(pooled).mean(1)


class TooWide(Mean):
    def layers(self) -> tuple[nn.Linear, ...]:
        return (nn.Linear(self.channels, self.units + 1),)


class TooNarrow(Mean):
    def layers(self) -> tuple[nn.Linear, ...]:
        return (nn.Linear(self.channels + 1, self.units),)


class AsMap(Mean):
    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class OneKept(Mean):
    def keep(self, saliency: Tensor) -> Tensor:
        return saliency.amax(1) > 0


class Constant(Mean):
    def fixed(self) -> Tensor:
        return torch.ones(1, self.units)


class Shifted(Mean):
    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).exp()


def method_of_gates(monkeypatch: pytest.MonkeyPatch, kind: Callable[[int, int], Gate]) -> str:
    class Own(Method):
        name = "own"

        def gate(self, channels: int, importance: Tensor, squeeze: float | None, binary: bool) -> Gate:
            return kind(channels, len(importance))

    monkeypatch.setattr("sinf.dynamic.methods.METHODS", copy(METHODS))
    register(Own())
    return Own.name


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (OneSaliency, r"\(3,\) from saliency instead of \(3, 8\)"),
        (TooWide, r"\(3, 9\) from saliency instead of \(3, 8\)"),
        (TooNarrow, "RuntimeError"),
        (AsMap, r"\(3, 8, 1, 1\) from pool instead of \(3, 8\)"),
        (OneKept, r"\(3,\) from keep instead of \(3, 8\)"),
        (Constant, r"\(1, 8\) from fixed instead of \(8,\)"),
        (Shifted, r"pool channels of zeros to 0 \(got 1 of the method own\)"),
        (lambda channels, units: nn.Linear(channels, units), "AttributeError"),
    ],
    ids=lambda value: getattr(value, "__name__", "says"),
)
def test_a_wrong_gate_is_refused(monkeypatch: pytest.MonkeyPatch, kind: Callable, says: str) -> None:
    name = method_of_gates(monkeypatch, kind)
    with pytest.raises(ConfigError, match=rf"{says}.*: correct its gate"):
        attach(small(), GateConfig(name))
    method_of_gates(monkeypatch, Mean)
    assert isinstance(attach(small(), GateConfig(name)), GatedNetwork)


class Halved(Mean):
    """Whose saliency is not that of its layers."""

    def saliency(self, pooled: Tensor) -> Tensor:
        return super().saliency(pooled) / 2


class Unwritten(Mean):
    """A rule of its own that it does not write as ONNX."""

    def layers(self) -> tuple[nn.Linear, ...]:
        return ()

    def saliency(self, pooled: Tensor) -> Tensor:
        return self.linear(pooled).relu()


def bundle_of(name: str) -> DynamicBundle:
    base = small()
    state = {key: value.clone() for key, value in base.module.state_dict().items()}
    return DynamicBundle.of(cut(attach(base, GateConfig(name)).eval()), base.spec, state, list("abcdef"), {})


def test_a_gate_that_does_not_say_how_it_is_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DynamicModel(bundle_of(method_of_gates(monkeypatch, Unwritten)))
    assert model(torch.randn(2, *COLOUR.size)).shape == (2, CLASSES)  # all else goes
    with pytest.raises(ModelError, match=r"got Unwritten\): give it layers, or a write_saliency"):
        to_onnx(model)


def test_a_gate_that_writes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = DynamicModel(bundle_of(method_of_gates(monkeypatch, Halved)))
    with pytest.raises(VerificationError, match="write_saliency"):
        export(model, tmp_path / "out.onnx")


@pytest.mark.parametrize("remaining", [0, 9])
def test_a_gate_with_tensors_that_no_training_leaves_is_refused(remaining: int) -> None:
    bundle = bundle_of("fbs")
    assert bundle.network().gate(1).flaw() is None
    bundle.state["gates.1.remaining"].fill_(remaining)
    with pytest.raises(BundleError, match=rf"as a training leaves it \(got {remaining} remain at layer1.1.conv1\)"):
        bundle.network()
