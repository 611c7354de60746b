"""Models of other libraries and of the user's own code, made by the name that the caller gives."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sinf.data import Preprocessing
from sinf.errors import DependencyError, ModelError
from sinf.models.spec import HF_TYPES, REFERENCE_NAMES, ModelSpec, require_channels

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Request:
    """What a caller asks for: the name after the library's, options as the library takes them."""

    name: str
    classes: int | None
    options: dict[str, Any]
    pretrained: bool
    allow_remote_code: bool = False


@dataclass(frozen=True)
class _Made:
    module: nn.Module
    name: str
    options: dict[str, Any]
    wanted: dict[str, Any] = field(default_factory=dict)  # what it wants to be fed


def make_foreign(
    name: str,
    classes: int | None,
    size: tuple[int, int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    options: dict[str, Any],
    *,
    pretrained: bool,
    allow_remote_code: bool = False,
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
    request = Request(rest if library in makers else name, classes, options, pretrained, allow_remote_code)
    try:
        made = make(request)
    except (ModelError, DependencyError):
        raise
    except Exception as error:  # a foreign constructor may raise anything
        raise ModelError(f"{name} cannot be made", got=_first_line(error)) from error
    preprocessing = Preprocessing(
        size or made.wanted.get("size", (3, 224, 224)),
        mean or made.wanted.get("mean", IMAGENET_MEAN),
        std or made.wanted.get("std", IMAGENET_STD),
    )
    module = made.module.eval()
    if not any(t.is_meta for t in module.state_dict().values()):  # a bundle's model has no values yet
        counted = _count_classes(module, preprocessing, name)
        if classes not in (None, counted):
            raise ModelError(f"{name} does not have the given number of classes", got=f"{counted} instead of {classes}")
        classes = counted
    if classes is None:
        raise ModelError(f"{name}: the number of classes must be known", remedy="give it")
    require_channels(preprocessing.size, preprocessing.mean, preprocessing.std)
    return module, ModelSpec(made.name, classes, preprocessing, made.options)


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


def _make_timm(request: Request) -> _Made:
    timm = _import("timm", "timm")
    extra = {} if request.classes is None else {"num_classes": request.classes}
    module = timm.create_model(request.name, pretrained=request.pretrained, **request.options, **extra)
    config = module.pretrained_cfg
    name, options = request.name, request.options
    if ":" in name:  # from the hub or a folder, which says what it is: the spec needs neither again
        arguments = {**getattr(module, "_model_args", {}), **options}
        name = config["architecture"]
        options = {key: value for key, value in arguments.items() if key != "num_classes"}
    wanted = {key: tuple(config[own]) for key, own in (("size", "input_size"), ("mean", "mean"), ("std", "std"))}
    return _Made(module, f"timm:{name}", options, wanted)


def _make_torchvision(request: Request) -> _Made:
    models = _import("torchvision", "torchvision").models
    if request.name.lower() not in models.list_models(module=models):  # others fetch the weights of a backbone
        raise ModelError("torchvision must have a classifier of that name", got=request.name, remedy="name another")
    extra = {} if request.classes is None else {"num_classes": request.classes}
    module = models.get_model(
        request.name, weights="DEFAULT" if request.pretrained else None, **extra, **request.options
    )
    return _Made(module, f"torchvision:{request.name}", request.options)


class _Logits(nn.Module):
    """A Hugging Face classifier as a plain one: tensor in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, return_dict=False)[0]


def _make_hf(request: Request) -> _Made:
    transformers = _import("transformers", "hf")
    if "trust_remote_code" in request.options:
        raise ModelError(
            "code of the hub runs only when the caller says so",
            got="trust_remote_code among the options",
            remedy="pass allow_remote_code=True to sinf.load_model",
        )
    extra = {} if request.classes is None else {"num_labels": request.classes}
    automodel = transformers.AutoModelForImageClassification
    code = {"trust_remote_code": request.allow_remote_code}
    if request.pretrained:
        fitting = {"ignore_mismatched_sizes": True} if extra else {}
        model = automodel.from_pretrained(
            request.name, use_safetensors=True, **extra, **fitting, **code, **request.options
        )
    else:
        config = transformers.AutoConfig.from_pretrained(request.name, **extra, **code, **request.options)
        model = automodel.from_config(config, **code)
    return _of_hf(model, request.name)


def _of_hf(model: nn.Module, name: str) -> _Made:
    config: Any = model.config
    side, channels = getattr(config, "image_size", 224), getattr(config, "num_channels", 3)
    height, width = (side, side) if isinstance(side, int) else side
    options = {}
    if type(config).__module__.startswith("transformers."):  # code of the hub cannot be stored
        fields = _own_fields(type(config))
        plain = {key: value for key, value in config.to_dict().items() if key in fields}
        options = {"config": {"model_type": config.model_type, **plain}}
    return _Made(_Logits(model), f"hf:{name}", options, {"size": (channels, height, width)})


def _own_fields(kind: type) -> set[str]:
    """What an architecture's configuration has, and not all of them: no auto_map, no kernels, no paths."""
    base = inspect.signature(_import("transformers", "hf").PretrainedConfig.__init__).parameters
    return {name for name in inspect.signature(kind.__init__).parameters if name not in base} - {"kwargs"}  # type: ignore[misc]


def make_hf_from_spec(spec: ModelSpec) -> nn.Module:
    """A model of transformers from the configuration in its spec: no file is read, nothing is fetched, no code but the
    library's own runs.

    Raises:
        ModelError: the spec has no configuration, or one that is not plain numbers of an architecture known here.
    """
    transformers = _import("transformers", "hf")
    stored = dict(spec.options.get("config") or {})
    kind = stored.pop("model_type", None)
    if kind not in HF_TYPES:
        raise ModelError(
            f"the configuration of {spec.name} must be one of transformers' own architectures",
            got=str(spec.options)[:100],
            remedy="build the bundle again, or give the model as package.module:factory",
        )
    try:
        unknown = stored.keys() - _own_fields(type(transformers.AutoConfig.for_model(kind)))
        if unknown:
            raise ModelError(
                f"{kind} has no such options", got=", ".join(sorted(unknown))[:200], remedy="build it again"
            )
        config = transformers.AutoConfig.for_model(kind, **(stored | {"num_labels": spec.classes}))
        return _Logits(transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False))
    except ModelError:
        raise
    except Exception as error:  # a foreign constructor may raise anything
        raise ModelError(f"{spec.name} cannot be made", got=_first_line(error)) from error


def _make_own(request: Request) -> _Made:
    module_name, _, attribute = request.name.partition(":")
    try:
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"no factory {request.name}", got=error, remedy="check the module path and PYTHONPATH"
        ) from error
    module = factory(**request.options)
    if not isinstance(module, nn.Module):
        raise ModelError(
            "a factory must return an nn.Module", got=type(module).__name__, remedy=f"correct {request.name}"
        )
    return _Made(module, request.name, request.options)
