"""From a name on the command line, or a spec in a bundle, to a base model.

A name is a reference network (``vgg16``), ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME``,
``package.module:factory``, or a folder that ``sinf prune`` wrote. A :class:`ModelSpec` is everything needed to make the
same architecture again; weights travel apart from it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sinf.data import Preprocessing
from sinf.errors import DependencyError, ModelError
from sinf.files import sha256
from sinf.models import plain, resnet, vgg
from sinf.models.to_plain import make_plain

REFERENCE_NAMES = vgg.NAMES + resnet.NAMES
#: Names of specs whose options describe the whole network, with that of the model that it comes from.
PLAIN = "plain:"

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelSpec:
    """What makes an architecture: its name, its number of classes, what it is fed, and options such as ``width``."""

    name: str
    classes: int
    preprocessing: Preprocessing
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> ModelSpec:
        shape = record["preprocessing"]
        preprocessing = Preprocessing(tuple(shape["size"]), tuple(shape["mean"]), tuple(shape["std"]))
        return ModelSpec(record["name"], int(record["classes"]), preprocessing, dict(record["options"]))


@dataclass(frozen=True)
class BaseModel:
    """The trained classifier in eval mode, ``(B, C, H, W) -> (B, classes)`` logits, and the spec it was made from."""

    module: nn.Module
    spec: ModelSpec


def load_model(
    name: str,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    size: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    options: dict[str, Any] | None = None,
    pretrained: bool = True,
) -> BaseModel:
    """Make a base model and load its weights.

    Without ``weights``, names of other libraries load the weights that library publishes (``pretrained=False`` leaves
    them random) and reference networks are random. The number of classes and the width of a reference network are
    read from the weights when not given.

    Raises:
        ModelError: the name is unknown, or the weights do not fit; the message lists the keys that differ.
        DependencyError: the library that the name asks for is not installed.
    """
    state = read_weights(weights) if weights is not None else None
    options = dict(options or {})
    if name not in REFERENCE_NAMES and Path(name).is_dir():
        base = _from_folder(Path(name), classes, size, mean, std, options)
        module, spec = base.module, base.spec
    elif name in REFERENCE_NAMES:
        spec = _reference_spec(name, state, classes, size, mean, std, options)
        module = load_spec(spec)
    else:
        module, spec = _foreign(name, classes, size, mean, std, options, pretrained and state is None)
    if state is not None:
        _fit(module, state, spec.name)
    return BaseModel(module.eval(), spec)


def load_spec(spec: ModelSpec) -> nn.Module:
    """The architecture that a spec describes, with random weights, in eval mode."""
    if spec.name in vgg.NAMES:
        return vgg.make(spec.name, spec.classes, **spec.options).eval()
    if spec.name in resnet.NAMES:
        return resnet.make(spec.name, spec.classes, **spec.options).eval()
    if spec.name.startswith(PLAIN):
        return make_plain(spec.options)
    shape = spec.preprocessing
    module, _ = _foreign(spec.name, spec.classes, shape.size, shape.mean, shape.std, dict(spec.options), False)
    return module.eval()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; any other file is refused, so that no pickle is ever loaded."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"weights must be a readable safetensors file: {path}",
            got=error,
            remedy="save them with safetensors.torch.save_file",
        ) from error


def _fit(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load a state, or say everything that does not fit in one message."""
    own = module.state_dict()
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - own.keys())
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise ModelError(
            f"the weights must be those of {name}",
            got="; ".join(problems),
            remedy="name the architecture that they were trained with",
        )
    broken = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise ModelError("weights must be finite", got=f"NaN or infinity in {broken[0]}", remedy="train again")
    module.load_state_dict(state, strict=False)


def _reference_spec(
    name: str,
    state: dict[str, Tensor] | None,
    classes: int | None,
    size: tuple[int, int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    options: dict[str, Any],
) -> ModelSpec:
    if state is not None:
        inferred = vgg.infer_options(state) if name in vgg.NAMES else resnet.infer_options(state, name)
        options = {**inferred, **options}
        head = state.get("classifier.weight", state.get("fc.weight"))
        if classes is None and head is not None:
            classes = head.shape[0]
    unknown = options.keys() - {"width"}
    if unknown:
        raise ModelError("reference networks have one option, width", got=", ".join(unknown), remedy="remove it")
    if not 0 < options.get("width", 1.0) <= 16:
        raise ModelError("width must be in (0, 16]", got=options["width"], remedy="take 1.0 for the published network")
    preprocessing = Preprocessing(size or (3, 32, 32), mean or CIFAR_MEAN, std or CIFAR_STD)
    return ModelSpec(name, classes or 100, preprocessing, options)


def _from_folder(
    folder: Path,
    classes: int | None,
    size: tuple[int, int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    options: dict[str, Any],
) -> BaseModel:
    """The network that ``sinf prune`` wrote to a folder, which says itself what it is fed."""
    given = [n for n, v in (("size", size), ("mean", mean), ("std", std), *options.items()) if v is not None]
    if given:
        raise ModelError("a folder says itself what its model is", got=f"{', '.join(given)} besides {folder}")
    try:
        config = json.loads((folder / "config.json").read_text())
        if config.get("format") != plain.FORMAT:
            raise ValueError(f"no format {plain.FORMAT}")
        if sha256(folder / "model.safetensors") != config["sha256"]["model.safetensors"]:
            raise ValueError("model.safetensors is damaged or was changed")
        record = {"name": PLAIN + config["name"], "options": config["network"]}
        spec = ModelSpec.from_json(config | record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"a folder given as MODEL must be one that sinf prune wrote: {folder}",
            got=f"{type(error).__name__}: {error}",
            remedy="name another, or write it again",
        ) from error
    if classes not in (None, spec.classes):
        raise ModelError(f"{folder} does not have the given number of classes", got=f"{spec.classes}, not {classes}")
    module = load_spec(spec)
    _fit(module, read_weights(folder / "model.safetensors"), str(folder))
    return BaseModel(module.eval(), spec)


def _foreign(
    name: str,
    classes: int | None,
    size: tuple[int, int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    options: dict[str, Any],
    pretrained: bool,
) -> tuple[nn.Module, ModelSpec]:
    """A model of another library or of the user, with what it wants to be fed where the library tells."""
    library, _, rest = name.partition(":")
    if not rest:
        raise ModelError(
            "MODEL must be a reference name, timm:NAME, torchvision:NAME, hf:NAME, package.module:factory or a folder",
            got=name,
            remedy=f"reference names are {', '.join(REFERENCE_NAMES)}",
        )
    makers = {"timm": _make_timm, "torchvision": _make_torchvision, "hf": _make_hf}
    make = makers.get(library, _make_own)
    try:
        module, wanted = make(rest if library in makers else name, classes, options, pretrained)
    except (ModelError, DependencyError):
        raise
    except Exception as error:  # a foreign constructor may raise anything
        raise ModelError(f"{name} cannot be made", got=_first_line(error)) from error
    preprocessing = Preprocessing(
        size or wanted.get("size", (3, 224, 224)),
        mean or wanted.get("mean", IMAGENET_MEAN),
        std or wanted.get("std", IMAGENET_STD),
    )
    module = module.eval()
    if not any(t.is_meta for t in module.state_dict().values()):  # a bundle's model has no values yet
        found = _count_classes(module, preprocessing, name)
        if classes not in (None, found):
            raise ModelError(f"{name} does not have the given number of classes", got=f"{found} instead of {classes}")
        classes = found
    if classes is None:
        raise ModelError(f"{name}: the number of classes must be known", remedy="give it")
    return module, ModelSpec(name, classes, preprocessing, options)


def _count_classes(module: nn.Module, preprocessing: Preprocessing, name: str) -> int:
    shape = (1, *preprocessing.size)
    try:
        with torch.no_grad():
            answer = module(torch.zeros(shape))
    except Exception as error:  # the model's own code may raise anything
        raise ModelError(
            f"{name} must run on images of shape {shape}", got=_first_line(error), remedy="give the size it wants"
        ) from error
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ModelError(f"{name} must answer with logits (B, classes)", got=got, remedy="wrap it so that it does")
    return int(answer.shape[1])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _import(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DependencyError(
            f"{package} cannot be imported", got=error, remedy=f'run: pip install "sinf[{extra}]"'
        ) from error


def _make_timm(name: str, classes: int | None, options: dict[str, Any], pretrained: bool) -> tuple[nn.Module, dict]:
    timm = _import("timm", "timm")
    extra = {} if classes is None else {"num_classes": classes}
    module = timm.create_model(name, pretrained=pretrained, **extra, **options)
    config = module.pretrained_cfg
    return module, {
        "size": tuple(config["input_size"]),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }


def _make_torchvision(
    name: str, classes: int | None, options: dict[str, Any], pretrained: bool
) -> tuple[nn.Module, dict]:
    models = _import("torchvision", "torchvision").models
    extra = {} if classes is None else {"num_classes": classes}
    return models.get_model(name, weights="DEFAULT" if pretrained else None, **extra, **options), {}


class _Logits(nn.Module):
    """A Hugging Face classifier as a plain one: tensor in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, return_dict=False)[0]


def _make_hf(name: str, classes: int | None, options: dict[str, Any], pretrained: bool) -> tuple[nn.Module, dict]:
    transformers = _import("transformers", "hf")
    extra = {} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    automodel = transformers.AutoModelForImageClassification
    if pretrained:
        model = automodel.from_pretrained(name, use_safetensors=True, **extra, **options)
    else:
        extra.pop("ignore_mismatched_sizes", None)
        model = automodel.from_config(transformers.AutoConfig.from_pretrained(name, **extra, **options))
    side = getattr(model.config, "image_size", 224)
    channels = getattr(model.config, "num_channels", 3)
    return _Logits(model), {"size": (channels, side, side)}


def _make_own(name: str, classes: int | None, options: dict[str, Any], pretrained: bool) -> tuple[nn.Module, dict]:
    module_name, _, attribute = name.partition(":")
    try:
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"no factory {name}", got=error, remedy="check the module path and PYTHONPATH") from error
    module = factory(**options)
    if not isinstance(module, nn.Module):
        raise ModelError("a factory must return an nn.Module", got=type(module).__name__, remedy=f"correct {name}")
    return module, {}


def spec_from_metadata(path: str | Path) -> ModelSpec | None:
    """The spec that ``sinf train`` wrote into a weights file, if there is one."""
    try:
        with safe_open(str(path), framework="pt") as file:
            record = (file.metadata() or {}).get("sinf_model")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights must be a readable safetensors file: {path}", got=error) from error
    return None if record is None else ModelSpec.from_json(json.loads(record))
