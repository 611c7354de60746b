"""A spec from a file: a family's name and plain numbers. It runs no code and fetches nothing."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinf.bundle.semantic import Bundle
from sinf.data.images import Preprocessing
from sinf.errors import ModelError, SinfError
from sinf.models import ModelSpec, load_model, load_spec
from sinf.models.load import spec_from_metadata
from sinf.models.spec import HF_TYPES, OPTIONS

SHAPE = {"size": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
RECORD = {"name": "vgg11", "classes": 5, "preprocessing": SHAPE, "options": {"width": 0.125}}
VIT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
       "intermediate_size": 16, "image_size": 32, "patch_size": 16}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def record(name: str, options: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return RECORD | {"name": name, "options": options} | changes


def made(name: str, options: dict[str, Any], **changes: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return load_spec(ModelSpec.from_json(record(name, options, **changes)))


def one_line(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) < 1000


def read(changed: Any) -> ModelSpec | None:
    """The spec, or nothing when it is refused as it must be."""
    try:
        return ModelSpec.from_json(changed)
    except ModelError as error:
        refusal = error
    assert one_line(refusal)
    return None


# ---- what stands in a spec


BAD = [None, True, -1, 0, 10**30, 1e308, "", "x" * 10**5, [], [[]], {}, {"a": 1}, [1, 2], [10**9, 10**9, 10**9]]


@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize(
    "path",
    [("name",), ("classes",), ("preprocessing",), ("options",), ("preprocessing", "size"), ("preprocessing", "mean"),
     ("preprocessing", "std"), ("preprocessing", "size", 0), ("preprocessing", "size", 2), ("preprocessing", "std", 1),
     ("options", "width")],
)  # fmt: skip
def test_every_field_has_a_type_and_a_range(path: tuple[Any, ...], value: Any) -> None:
    changed = json.loads(json.dumps(RECORD))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    spec = read(changed)
    if spec is None:
        return
    assert spec.options in ({}, {"width": 0.125})
    assert spec.classes in (5, 1)
    assert min(spec.preprocessing.std) > 0


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["mean", "std"])
def test_numbers_are_finite(part: str, number: float) -> None:
    with pytest.raises(ModelError) as caught:
        ModelSpec.from_json(record("vgg11", {}, preprocessing=SHAPE | {part: [0.5, number, 0.5]}))
    assert one_line(caught.value)


@pytest.mark.parametrize("missing", RECORD)
def test_nothing_is_missing_and_nothing_is_added(missing: str) -> None:
    for changed in ({k: v for k, v in RECORD.items() if k != missing}, RECORD | {missing + "2": 1}):
        with pytest.raises(ModelError):
            ModelSpec.from_json(changed)


def test_channels_agree() -> None:
    with pytest.raises(ModelError, match="every channel must have a mean"):
        ModelSpec.from_json(record("vgg11", {}, preprocessing=SHAPE | {"size": [1, 32, 32]}))
    with pytest.raises(ModelError, match="mean"):
        load_model("vgg11", size=(1, 32, 32))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(json_values, st.sampled_from(["vgg11", "timm:a", "torchvision:a", "hf:a", "plain:a", "a:b", "name"]))
def test_any_json_is_a_spec_or_refused_in_one_line(value: Any, name: str) -> None:
    for changed in (value, RECORD | {"options": value, "name": name}, RECORD | {"preprocessing": value}):
        read(changed)


# ---- options of a library


VALUES: dict[str, dict[str, tuple[str, Any]]] = {
    "timm": {
        "drop_rate": ("resnet10t", 0.1), "drop_path_rate": ("resnet10t", 0.1), "drop_block_rate": ("resnet18", 0.1),
        "global_pool": ("resnet10t", "max"), "act_layer": ("resnet10t", "silu"), "in_chans": ("resnet10t", 3),
        "output_stride": ("resnet10t", 16), "stem_type": ("resnet10t", "deep"), "stem_width": ("resnet10t", 16),
        "base_width": ("resnet26", 32), "cardinality": ("resnet26", 2), "avg_down": ("resnet10t", True),
        "zero_init_last": ("resnet10t", False), "layers": ("resnet10t", [1, 1, 1, 2]),
        "channels": ("resnet10t", [16, 32, 64, 64]), "img_size": ("test_vit", 64), "patch_size": ("test_vit", 8),
        "embed_dim": ("test_vit", 32), "depth": ("test_vit", 2), "num_heads": ("test_vit", 4),
        "mlp_ratio": ("test_vit", 2.0), "qkv_bias": ("test_vit", False), "init_values": ("test_vit", 0.1),
        "class_token": ("test_vit", True), "reg_tokens": ("test_vit", 2), "dynamic_img_size": ("test_vit", True),
        "proj_drop_rate": ("test_vit", 0.1), "attn_drop_rate": ("test_vit", 0.1), "pos_drop_rate": ("test_vit", 0.1),
        "window_size": ("swin_tiny_patch4_window7_224", 7), "depths": ("test_convnext", [1, 1, 1, 1]),
        "dims": ("test_convnext", [8, 8, 8, 8]), "width_mult": ("rexnet_100", 0.5),
        "channel_multiplier": ("test_efficientnet", 0.5), "bn_eps": ("test_efficientnet", 1e-3),
        "bn_momentum": ("test_efficientnet", 0.1),
    },
    "torchvision": {
        "dropout": ("alexnet", 0.2), "attention_dropout": ("vit_b_32", 0.1),
        "stochastic_depth_prob": ("efficientnet_b0", 0.1),
        "drop_rate": ("densenet121", 0.1), "width_mult": ("mobilenet_v2", 0.5), "groups": ("resnet50", 2),
        "width_per_group": ("resnet50", 32), "zero_init_residual": ("resnet18", True),
        "replace_stride_with_dilation": ("resnet50", [False, False, True]), "image_size": ("vit_b_32", 64),
        "aux_logits": ("googlenet", False), "transform_input": ("googlenet", True), "init_weights": ("vgg11", False),
        "memory_efficient": ("densenet121", True), "reduced_tail": ("mobilenet_v3_small", True),
        "dilated": ("mobilenet_v3_small", True),
    },
    "reference": {"width": ("vgg11", 0.25)},
}  # fmt: skip


@pytest.mark.parametrize(
    ("library", "option"), [(library, option) for library in VALUES for option in VALUES[library]], ids=str
)
def test_an_option_on_the_list_works(library: str, option: str) -> None:
    name, value = VALUES[library][option]
    assert made(name if library == "reference" else f"{library}:{name}", {option: value}) is not None


def test_every_option_on_the_list_is_tried() -> None:
    for library, values in VALUES.items():
        assert OPTIONS[library].model_fields.keys() == values.keys()


FORBIDDEN = {
    "pretrained": True, "weights": "DEFAULT", "weights_backbone": "DEFAULT", "checkpoint_path": "x.pth", "file": "x",
    "pretrained_cfg": {"url": "http://x"}, "pretrained_cfg_overlay": {"hf_hub_id": "x"}, "cache_dir": "/", "url": "x",
    "progress": True, "revision": "main", "token": "x", "code_revision": "x", "trust_remote_code": True,
    "auto_map": {"AutoConfig": "x.Y"}, "scriptable": True, "num_classes": 3, "norm_layer": "x", "quantize": True,
    "_attn_implementation": "kernels-community/x", "config": "x", "device": "cuda", "features_only": True,
}  # fmt: skip


@pytest.mark.parametrize("option", FORBIDDEN)
@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:resnet18", "vgg11", "hf:any/thing"])
def test_any_other_option_is_refused(name: str, option: str) -> None:
    wrong = {option: FORBIDDEN[option]}
    for options in (wrong, *([{"config": VIT | wrong}] if name.startswith("hf") else [])):
        with pytest.raises(ModelError) as caught:
            made(name, options)
        assert one_line(caught.value)


@pytest.mark.parametrize(
    "name",
    ["timm:hf-hub:timm/resnet10t", "timm:hf_hub:timm/resnet10t", "timm:local-dir:/x", "timm:a/b", "timm:", "timm:x y",
     "torchvision:a/b", "torchvision:fasterrcnn_resnet50_fpn", "torchvision:deeplabv3_resnet50", "hf:", "hf:a\nb",
     "torchvision:quantized_resnet18", "vgg99", "a b:c", ":", "os:system;x"],
)  # fmt: skip
def test_names_are_those_of_the_registry(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        made(name, {"config": VIT} if name.startswith("hf") else {})
    assert one_line(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [("drop_rate", 2.0), ("depth", 10**6), ("embed_dim", 10**9), ("act_layer", "a.b"), ("act_layer", "x/../y"),
     ("global_pool", {"a": 1}), ("depths", [1] * 1000), ("layers", [10**6]), ("img_size", 10**6), ("qkv_bias", 1)],
)  # fmt: skip
def test_options_have_ranges(option: str, value: Any) -> None:
    with pytest.raises(ModelError) as caught:
        made("timm:test_vit", {option: value})
    assert one_line(caught.value)


# ---- transformers


def hostile(folder: Path, marker: Path) -> Path:
    """A folder of the hub's form whose Python writes a file when it is imported."""
    folder.mkdir()
    config = {
        "model_type": "odd",
        "auto_map": {"AutoConfig": "odd.Odd", "AutoModelForImageClassification": "odd.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "odd.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import PretrainedConfig, PreTrainedModel\n"
        "import torch\n"
        "class Odd(PretrainedConfig):\n    model_type = 'odd'\n"
        "class Model(PreTrainedModel):\n    config_class = Odd\n"
        "    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.head = torch.nn.Linear(3, 5)\n        self.post_init()\n"
        "    def forward(self, x, return_dict=None):\n        return (self.head(x.mean((2, 3))),)\n"
    )
    return folder


@pytest.mark.parametrize(
    "options", [{"trust_remote_code": True}, {}, {"config": VIT | {"trust_remote_code": True}},
                {"config": VIT | {"auto_map": {"AutoConfig": "odd.Odd"}}}, {"config": {"model_type": "odd"}}]
)  # fmt: skip
def test_a_folder_of_the_hubs_form_runs_nothing(built: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """From a spec, and from a bundle whose config names it."""
    folder, marker = hostile(tmp_path / "odd", tmp_path / "ran"), tmp_path / "ran"
    with pytest.raises(SinfError) as caught:
        made(f"hf:{folder}", options)
    assert one_line(caught.value)
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in built.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["model"] |= {"name": f"hf:{folder}", "options": options}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SinfError) as caught:
        Bundle.load(copy)
    assert one_line(caught.value)
    assert not marker.exists()


def test_remote_code_needs_the_callers_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, marker = hostile(tmp_path / "odd", tmp_path / "ran"), tmp_path / "ran"
    size = (3, 8, 8)
    for options in ({}, {"trust_remote_code": True}):
        with pytest.raises(ModelError) as caught:
            load_model(f"hf:{folder}", size=size, options=options, pretrained=False)
        assert one_line(caught.value)
    assert not marker.exists()
    base = load_model(f"hf:{folder}", size=size, pretrained=False, allow_remote_code=True)
    assert marker.exists()
    with pytest.raises(ModelError, match="hf"):  # a bundle of it could not be loaded
        base.spec.to_json()


def test_a_model_of_transformers_is_stored_as_its_configuration(tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(**{k: v for k, v in VIT.items() if k != "model_type"}, num_labels=5)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    base = load_model(f"hf:{tmp_path / 'vit'}")
    assert base.spec.classes == 5
    assert base.spec.preprocessing.size == (3, 32, 32)
    stored = json.loads(json.dumps(base.spec.to_json()))
    for path in (tmp_path / "vit").iterdir():
        path.unlink()
    again = load_spec(ModelSpec.from_json(stored))
    again.load_state_dict(base.module.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), base.module(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(HF_TYPES))
def test_every_architecture_of_the_list_is_made_from_numbers(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForImageClassification

    from sinf.models.foreign import _of_hf

    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, num_labels=5))
    options = json.loads(json.dumps(_of_hf(model, "any", {}).options))
    again = made("hf:any", options)
    assert {k: v.shape for k, v in again.model.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_a_model_of_timm_from_a_folder_is_stored_by_its_architecture(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    model = timm.create_model("test_efficientnet", num_classes=5)
    save_for_hf(model, tmp_path / "net", model_args={"num_classes": 5, "drop_rate": 0.1}, safe_serialization=True)
    base = load_model(f"timm:local-dir:{tmp_path / 'net'}", size=(3, 32, 32))
    assert base.spec.name == "timm:test_efficientnet"
    assert base.spec.options["drop_rate"] == 0.1
    ModelSpec.from_json(json.loads(json.dumps(base.spec.to_json())))


# ---- weights files


def test_metadata_of_weights_is_read_as_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    for text in ("", "{", "[" * 10**5, "null", '{"name": "vgg11"}', '{"a": NaN}', json.dumps(RECORD | {"classes": -1})):
        save_file({"x": torch.zeros(1)}, path, {"sinf_model": text})
        with pytest.raises(ModelError) as caught:
            spec_from_metadata(path)
        assert one_line(caught.value)


def test_what_cannot_be_read_again_is_not_written() -> None:
    shape = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3)
    for spec in (
        ModelSpec("vgg11", 5, shape, {"depth": 3}),
        ModelSpec("timm:a/b", 5, shape),
        ModelSpec("hf:a", 5, shape),
    ):
        with pytest.raises(ModelError):
            spec.to_json()
