"""Factories of a user: called once a command, for real, with nothing to warn of; sizes that nobody guesses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from program import PROGRESS, Program
from sinf.bundle.semantic import Bundle
from sinf.data.images import load_images
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ModelError
from sinf.models import load_model, load_spec, own
from sinf.models.described import described
from tiny import picture, write_parquet

FACTORY = """
import pathlib, torch
from safetensors.torch import load_file
from torch import nn

HERE = pathlib.Path(__file__).parent

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.tensor([2.0]), persistent=False)
        self.shift = torch.ones(1)  # neither a parameter nor a buffer

    def forward(self, x):
        return x * self.gain + self.shift

def make():
    with open(HERE / "calls", "a") as file:
        file.write("called\\n")
    layers = []
    for channels, out in ((3, 8), (8, 8), (8, 12)):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    network = nn.Sequential(*layers, Scale(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 6))
    network.load_state_dict(load_file(HERE / "weights.safetensors"))
    return network
"""


SMALL = ("--macs", 0.8, "--round-to", 1, "--route-draws", 120, "--keep-anyway")


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module whose factory loads its own weights, and notes every call."""
    folder = tmp_path / "code"
    folder.mkdir()
    name = f"own_network_{abs(hash(str(tmp_path)))}"
    (folder / f"{name}.py").write_text(FACTORY)
    layers: list[nn.Module] = []
    for channels, out in ((3, 8), (8, 8), (8, 12)):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 6))
    save_file(network.state_dict(), folder / "weights.safetensors")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(own, "_SHAPES", {})
    return folder / f"{name}.py"


def calls(factory: Path) -> int:
    """Since this was asked last."""
    path = factory.with_name("calls")
    count = len(path.read_text().splitlines()) if path.exists() else 0
    path.unlink(missing_ok=True)
    return count


def complaints(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.strip() and not PROGRESS.fullmatch(line)]


def test_every_verb_calls_a_factory_once_and_warns_of_nothing(
    sinf: Program, factory: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, out = f"{factory.stem}:make", tmp_path / "bundle"
    own_data = ("--data", data, "--calibrate", "test", "--score", "train", "--max-loss", 90, *SMALL)
    trained = ("--data", data, "--epochs", 1, "--batch", 40, "--out")
    verbs: list[tuple[object, ...]] = [
        ("profile", name, "--size", "3,32,32"),
        ("build", name, *own_data, "--out", out, "--threads", 1),
        ("eval", out, "--data", data, "--split", "test"),
        ("bench", out, "--data", data, "--split", "test", "--pairs", 2, "--batch", 1, "--no-stages", "--no-energy"),
        ("train", name, *trained, tmp_path / "run"),
        ("dynamic", "train", name, *trained, tmp_path / "dynamic", "--macs", 0.9, "--keep-anyway"),
        ("eval", tmp_path / "dynamic", "--data", data, "--split", "test"),
        ("clusters", name, "--data", data, "--split", "train", "--check", "test", "--count", 3),
        ("prune", name, "--data", data, "--score", "train", "--test", "test", "--macs", 0.8, "--method", "channels",
         "--round-to", 1, "--pairs", 2, "--keep-anyway", "--out", tmp_path / "pruned"),
        ("optimize", name, "--data", data, "--score", "train", "--calibrate", "test", "--max-loss", 90, "--engine",
         "torch", "--images", 24, "--no-cascades", "--minutes", 0.001, "--out", tmp_path / "fast"),
    ]  # fmt: skip
    for words in verbs:
        monkeypatch.setattr(own, "_SHAPES", {})  # every command is a process of its own
        code, _, err = sinf.call(*words)
        assert code == 0 or (code, words[0]) == (3, "optimize"), err  # so small a network may not get faster
        assert calls(factory) == (0 if words[0] in ("eval", "bench") else 1), words
        assert len(complaints(err)) <= 3, err
        assert "copying from" not in err


def test_what_is_built_from_a_factory_needs_its_code_no_more(
    sinf: Program, factory: Path, data: Path, tmp_path: Path
) -> None:
    name, out = f"{factory.stem}:make", tmp_path / "bundle"
    own_data = ("--data", data, "--calibrate", "test", "--score", "train", "--max-loss", 90, *SMALL)
    code, _, err = sinf.call("build", name, *own_data, "--out", out, "--threads", 1)
    assert code == 0, err
    expected = load_model(name, images=load_images(data, "test")).module
    factory.write_text("raise SystemError('this code must not run')")
    own._SHAPES.clear()
    model = SemanticModel.from_pretrained(out)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.base_model().module(x), expected(x))
    assert name in (out / "README.md").read_text()
    assert "plain:" not in (out / "README.md").read_text()


@pytest.mark.parametrize(
    "forward", ["x = torch.fft.fft2(x).real", "x = x + torch.rand_like(x)", "x = x if x.sum() > 0 else -x"]
)
def test_what_data_cannot_describe_stays_code(factory: Path, forward: str) -> None:
    """A function that is not in the list, noise, and a choice that depends on the image."""
    factory.write_text(factory.read_text().replace("return x * self.gain", f"{forward}\n        return x * self.gain"))
    base = load_model(f"{factory.stem}:make", size=(3, 8, 8))
    assert described(base) is base


def test_what_needs_no_code_stays_as_it_is() -> None:
    base = load_model("vgg11", classes=6, options={"width": 0.125})
    assert described(base) is base


def test_what_is_no_weight_keeps_its_value(factory: Path) -> None:
    """A copy of what a factory made answers as the original, with its weights."""
    base = load_model(f"{factory.stem}:make", size=(3, 8, 8))
    again = load_spec(base.spec, base.module.state_dict())
    assert calls(factory) == 1
    assert not any(value.is_meta for value in [*again.state_dict().values(), *again.buffers()])
    again.load_state_dict(base.module.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), base.module(x))
    with torch.device("meta"):
        shapes = load_spec(base.spec)
    assert calls(factory) == 0
    assert all(value.is_meta for value in shapes.state_dict().values())
    assert load_spec(base.spec).state_dict().keys() == base.module.state_dict().keys()  # weights of its own, so:
    assert calls(factory) == 1


def test_a_module_that_cannot_be_copied_is_made_again(factory: Path) -> None:
    held = "    network.sums = torch.ones(1, requires_grad=True) * 2\n    return network\n"
    factory.write_text(factory.read_text().replace("    return network\n", held))
    base = load_model(f"{factory.stem}:make", size=(3, 8, 8))
    with torch.device("meta"):
        again = load_spec(base.spec)
    assert again.state_dict().keys() == base.module.state_dict().keys()
    assert not any(value.is_meta for value in again.state_dict().values())


# ---- sizes


def test_the_size_is_that_of_the_images(sinf: Program, factory: Path, data: Path, tmp_path: Path) -> None:
    """Where neither the caller nor a library tells, and it is said."""
    name = f"{factory.stem}:make"
    base = load_model(name, images=load_images(data, "train"))
    assert base.spec.preprocessing.size == (3, 32, 32)
    words = ("--data", data, "--calibrate", "test", "--score", "train", "--max-loss", 90, *SMALL)
    code, _, err = sinf.call("build", name, *words, "--out", tmp_path / "out", "--threads", 1)
    assert code == 0, err
    assert "3x32x32" in err
    assert "--mean" in err
    assert Bundle.load(tmp_path / "out").spec.preprocessing.size == (3, 32, 32)


def test_nothing_is_guessed_where_nothing_tells(sinf: Program, factory: Path, tmp_path: Path) -> None:
    name = f"{factory.stem}:make"
    assert "--size" in sinf.refused("profile", name)
    sizes = [(20, 20), (20, 24)]
    folder = write_parquet(tmp_path / "mixed", [picture(1, size) for size in sizes], {"label": ([0, 5], None)})
    with pytest.raises(ModelError, match="--size 3,224,224"):
        load_model(name, images=load_images(folder, "train"))


def test_channels_are_those_of_the_first_convolution(factory: Path, tmp_path: Path) -> None:
    """Grey images for a network of three channels are read as colour."""
    grey = [picture(n, (20, 20), "L") for n in range(3)]
    images = load_images(write_parquet(tmp_path / "grey", grey, {"label": ([0, 1, 5], None)}), "train")
    assert images.common_size() == (1, 20, 20)
    assert load_model(f"{factory.stem}:make", images=images).spec.preprocessing.size == (3, 20, 20)


def test_weights_of_a_small_network_in_an_architecture_of_timm(tmp_path: Path, data: Path) -> None:
    """The library's size is that of its own weights: others are for the images that they get, and of their own number
    of classes."""
    timm = pytest.importorskip("timm")
    save_file(timm.create_model("resnet10t", num_classes=6).state_dict(), tmp_path / "own.safetensors")
    images = load_images(data, "train")
    base = load_model("timm:resnet10t", weights=tmp_path / "own.safetensors", images=images)
    assert base.spec.preprocessing.size == (3, 32, 32)
    assert base.spec.preprocessing.resize is None
    assert base.spec.classes == 6
    assert any("3x32x32" in note for note in base.notes)
    alone = load_model("timm:resnet10t", weights=tmp_path / "own.safetensors")
    assert alone.spec.preprocessing.size == (3, 176, 176)
    assert any("other weights" in note for note in alone.notes)
    assert json.dumps(alone.spec.to_json())
