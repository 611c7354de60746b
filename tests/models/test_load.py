"""From a name to a base model: reference networks, other libraries, a user's factory; and weights that do not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sinf.errors import DependencyError, ModelError
from sinf.models import REFERENCE_NAMES, ModelSpec, load_model, load_spec, read_weights
from sinf.models.load import spec_from_metadata
from tiny import COLOUR, Residual

CONVOLUTIONS = {"vgg11": 8, "vgg13": 10, "vgg16": 13, "vgg19": 16, "resnet20": 19 + 2, "resnet32": 31 + 2,
                "resnet56": 55 + 2, "resnet18": 17 + 3, "resnet34": 33 + 3, "resnet50": 49 + 4}  # fmt: skip


def saved(path: Path, name: str, change: dict[str, Tensor | None] | None = None, **options: float) -> Path:
    """Weights of a reference network with 10 classes; ``change`` replaces tensors or removes them."""
    state = load_model(name, classes=10, options=options).module.state_dict()
    state = {**state, **(change or {})}
    save_file({key: value.contiguous() for key, value in state.items() if value is not None}, path)
    return path


# ---- reference networks


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_reference_network(name: str) -> None:
    base = load_model(name, classes=7, options={"width": 0.125})
    assert not base.module.training
    with torch.no_grad():
        assert base.module(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    convolutions = [m for m in base.module.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == CONVOLUTIONS[name]
    assert base.spec.preprocessing.size == (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("vgg11", 9.28), ("vgg16", 14.77), ("vgg19", 20.09), ("resnet20", 0.278), ("resnet56", 0.861), ("resnet18", 11.22),
     ("resnet34", 21.33), ("resnet50", 23.71)],
)  # fmt: skip
def test_size_of_the_full_network(name: str, millions: float) -> None:
    """Parameters with 100 classes, as published; the CIFAR ResNets with convolutions for shortcuts."""
    spec = load_model("resnet20").spec
    with torch.device("meta"):
        module = load_spec(ModelSpec(name, 100, spec.preprocessing))
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "width"), [("vgg11", 0.25), ("resnet20", 0.5), ("resnet18", 0.125), ("resnet50", 0.25)]
)
def test_classes_and_width_are_read_from_the_weights(tmp_path: Path, name: str, width: float) -> None:
    path = saved(tmp_path / "w.safetensors", name, width=width)
    base = load_model(name, weights=path)
    assert base.spec.classes == 10
    assert base.spec.options == {"width": width}
    assert all(torch.equal(value, read_weights(path)[key]) for key, value in base.module.state_dict().items())


@pytest.mark.parametrize(
    ("name", "width"),
    [("vgg11", 0.3), ("vgg13", 0.1), ("vgg16", 0.03), ("vgg16", 0.777), ("resnet20", 0.7), ("resnet50", 0.1)],
)
def test_an_uneven_width_is_read_from_the_weights_too(tmp_path: Path, name: str, width: float) -> None:
    load_model(name, weights=saved(tmp_path / "w.safetensors", name, width=width))


def test_a_spec_makes_the_same_architecture_again() -> None:
    spec = load_model("resnet20", classes=5, options={"width": 0.5}, size=(3, 16, 16)).spec
    again = ModelSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    shapes = {key: value.shape for key, value in load_spec(spec).state_dict().items()}
    assert shapes == {key: value.shape for key, value in load_spec(again).state_dict().items()}


def test_spec_from_metadata(tmp_path: Path) -> None:
    spec = load_model("vgg11", classes=5, options={"width": 0.25}).spec
    path = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"sinf_model": json.dumps(spec.to_json())})
    assert spec_from_metadata(path) == spec
    save_file({"x": torch.zeros(1)}, path)
    assert spec_from_metadata(path) is None


# ---- weights that do not fit


def test_weights_of_another_architecture_name_what_differs(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", "resnet20")
    with pytest.raises(ModelError, match=r"those of vgg11.*missing.*unexpected") as caught:
        load_model("vgg11", weights=path)
    assert "\n" not in str(caught.value)


def test_all_that_differs_is_in_one_message(tmp_path: Path) -> None:
    change = {"fc.bias": None, "bn1.weight": torch.ones(3), "extra.weight": torch.ones(1)}
    path = saved(tmp_path / "w.safetensors", "resnet20", change)
    with pytest.raises(ModelError) as caught:
        load_model("resnet20", weights=path)
    for part in ("1 missing (fc.bias)", "1 unexpected (extra.weight)", "bn1.weight (3,) instead of (16,)"):
        assert part in str(caught.value)


def test_weights_of_another_depth(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing"):
        load_model("resnet32", weights=saved(tmp_path / "w.safetensors", "resnet20"))


def test_weights_with_another_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"fc\.weight \(10, 64\) instead of \(20, 64\)"):
        load_model("resnet20", weights=saved(tmp_path / "w.safetensors", "resnet20"), classes=20)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    path = saved(tmp_path / "w.safetensors", "resnet20", {"bn1.running_mean": torch.full((16,), value)})
    with pytest.raises(ModelError, match=r"bn1\.running_mean"):
        load_model("resnet20", weights=path)


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    state = load_model("resnet20").module.state_dict()
    counters = {key: None for key in state if key.endswith("num_batches_tracked")}
    load_model("resnet20", weights=saved(tmp_path / "w.safetensors", "resnet20", counters))


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x80\x02}q\x00."])
def test_a_file_that_is_not_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"w\.safetensors"):
        load_model("resnet20", weights=path)


def test_truncated_weights(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", "resnet20")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"w\.safetensors"):
        load_model("resnet20", weights=path)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(load_model("resnet20").module.state_dict(), path)
    with pytest.raises(ModelError, match="safetensors"):
        load_model("resnet20", weights=path)


@pytest.mark.parametrize("path", ["nowhere.safetensors", "."])
def test_weights_that_are_not_there(tmp_path: Path, path: str) -> None:
    with pytest.raises(ModelError, match="weights must be"):
        load_model("resnet20", weights=tmp_path / path)


# ---- names and options


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ModelError, match=r"vgg99.*resnet56"):
        load_model("vgg99")


@pytest.mark.parametrize(
    ("options", "word"),
    [({"depth": 3}, "depth"), ({"width": 0}, "width"), ({"width": -1}, "width"), ({"width": 99}, "99")],
)
def test_options_of_reference_networks(options: dict[str, float], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        load_model("vgg11", options=options)


@pytest.mark.parametrize("name", ["timm:no_such_network", "torchvision:no_such_network"])
def test_unknown_name_of_a_library(name: str) -> None:
    with pytest.raises(ModelError, match="no_such_network") as caught:
        load_model(name, pretrained=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:mobilenet_v3_small"])
def test_network_of_a_library(name: str) -> None:
    base = load_model(name, classes=4, size=(3, 64, 64), pretrained=False)
    assert not base.module.training
    with torch.no_grad():
        assert base.module(torch.randn(1, 3, 64, 64)).shape == (1, 4)
    assert base.spec.classes == 4
    assert {k: v.shape for k, v in load_spec(base.spec).state_dict().items()} == {
        k: v.shape for k, v in base.module.state_dict().items()
    }


def test_classes_of_a_foreign_network_are_counted() -> None:
    assert load_model("timm:resnet10t", size=(3, 64, 64), pretrained=False).spec.classes == 1000


def test_timm_tells_what_its_network_is_fed() -> None:
    shape = load_model("timm:test_vit", pretrained=False).spec.preprocessing
    assert (shape.size, shape.mean, shape.std) == ((3, 160, 160), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "extra"), [("hf:any/thing", "hf"), ("timm:any", "timm"), ("torchvision:any", "torchvision")]
)
def test_a_missing_library_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, {"hf": "transformers"}.get(extra, extra), None)
    with pytest.raises(DependencyError, match=rf'pip install "sinf\[{extra}\]"'):
        load_model(name)


# ---- a user's own factory


def make_residual(width: int = 6) -> Residual:
    return Residual(width).train()


def make_nothing() -> None:
    return None


def make_trouble() -> None:
    raise RuntimeError("first line\nsecond line")


def test_own_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_model("tiny:Residual", size=COLOUR.size, mean=COLOUR.mean, std=COLOUR.std, options={"width": 4})
    assert isinstance(base.module, Residual)
    assert not base.module.training
    assert base.spec.classes == 6
    assert base.spec.preprocessing == COLOUR
    assert load_spec(base.spec).stem[0].out_channels == 4


@pytest.mark.parametrize(
    ("factory", "word"),
    [("make_nothing", "NoneType"), ("make_trouble", "first line"), ("not_here", "not_here"), ("", "factory")],
)
def test_factory_that_makes_no_network(monkeypatch: pytest.MonkeyPatch, factory: str, word: str) -> None:
    monkeypatch.setitem(sys.modules, "factories", sys.modules[__name__])
    with pytest.raises(ModelError, match=word) as caught:
        load_model(f"factories:{factory}")
    assert "\n" not in str(caught.value)


def test_module_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="nowhere"):
        load_model("nowhere.at_all:make")


def test_a_number_of_classes_that_the_network_does_not_have() -> None:
    with pytest.raises(ModelError, match="classes"):
        load_model("tiny:Residual", size=COLOUR.size, classes=99)


def test_own_factory_with_the_wrong_number_of_channels() -> None:
    with pytest.raises(ModelError):
        load_model("tiny:Residual", size=(1, 8, 8))
