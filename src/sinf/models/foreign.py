"""Models of other libraries and of the user's own code, made by the name that the caller gives."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinf.data.images import LabelledImages, Preprocessing
from sinf.data.labels import ModelClasses
from sinf.errors import DependencyError, ModelError
from sinf.models import tells
from sinf.models.own import call_factory
from sinf.models.spec import HF_TYPES, REFERENCE_NAMES, ModelSpec, require_channels
from sinf.models.tells import Wanted

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NOTHING = Wanted()


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
    wanted: Wanted = _NOTHING
    classes: ModelClasses | None = None


@dataclass(frozen=True)
class Foreign:
    """A model of another library or of the user; ``classes`` are their names where the library tells, and ``notes`` say
    what was assumed where it does not."""

    module: nn.Module
    spec: ModelSpec
    classes: ModelClasses | None = None
    notes: tuple[str, ...] = ()


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
    images: LabelledImages | None = None,
) -> Foreign:
    """A model of another library or of the user.

    What it is fed is what the caller says; else, of a model with its library's own weights, what the library says; else
    images of the size of ``images``, where they are all of one; else, for want of anything better, what the library
    says. ``pretrained`` is whether weights are the library's own.

    Raises:
        ModelError: it cannot be made, or nothing tells its size or number of classes.
        DependencyError: the library is not installed.
    """
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
    preprocessing, notes = _prepared(name, made, size, mean, std, pretrained and library in makers, images)
    module = made.module.eval()
    if not any(t.is_meta for t in module.state_dict().values()):  # a bundle's model has no values yet
        counted = _count_classes(module, preprocessing, name)
        if classes not in (None, counted):
            raise ModelError(f"{name} does not have the given number of classes", got=f"{counted} instead of {classes}")
        classes = counted
    if classes is None:
        raise ModelError(f"{name}: the number of classes must be known", remedy="give it")
    class_names = made.classes if made.classes is not None and len(made.classes.names) == classes else None
    return Foreign(module, ModelSpec(made.name, classes, preprocessing, made.options), class_names, notes)


def _prepared(
    name: str,
    made: _Made,
    size: tuple[int, int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    certain: bool,
    images: LabelledImages | None,
) -> tuple[Preprocessing, tuple[str, ...]]:
    """What a model is fed, and notes on what nobody said. ``certain`` is whether what its library says is of these
    weights, and not of others of the same architecture."""
    wanted, whose = made.wanted, "given"
    if size is None and certain:
        size, whose = wanted.size, "its library's"
    if size is None and images is not None and (of_images := images.common_size()) is not None:
        size, whose = (_channels(made.module) or of_images[0], *of_images[1:]), "the images'"
    if size is None:
        size, whose = wanted.size, "its library's for other weights"
    if size is None:
        raise ModelError(
            f"the size of the images for {name} must be known",
            got="neither a size nor images of one size",
            remedy="give it: --size 3,224,224 (channels, height, width)",
        )
    notes = []
    if whose not in ("given", "its library's"):
        shown = "x".join(map(str, size))
        notes.append(f"{name}: images of {shown}, a size that is {whose} (--size changes it)")
    said_nothing = mean is None and std is None and not certain
    if said_nothing:
        notes.append(f"{name}: mean and deviation of pixels are ImageNet's (--mean and --std change them)")
    same = certain and size == wanted.size
    mean, std = mean or wanted.mean or IMAGENET_MEAN, std or wanted.std or IMAGENET_STD
    if said_nothing and len(mean) != size[0]:  # gray images, or more channels than colours
        mean, std = ((sum(each) / len(each),) * size[0] for each in (IMAGENET_MEAN, IMAGENET_STD))
    preprocessing = Preprocessing(
        size,
        mean,
        std,
        wanted.resize if same else None,
        wanted.interpolation if same else "bilinear",
    )
    require_channels(preprocessing.size, preprocessing.mean, preprocessing.std)
    return preprocessing, tuple(notes)


def _channels(module: nn.Module) -> int | None:
    """Of the images that a network reads, as far as its first convolution tells."""
    first = next((each for each in module.modules() if isinstance(each, nn.Conv2d)), None)
    return None if first is None else first.in_channels


def _count_classes(module: nn.Module, preprocessing: Preprocessing, name: str) -> int:
    shape = (1, *preprocessing.size)
    other = next((p.dtype for p in module.parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
    if other is not None:
        kind = str(other).removeprefix("torch.")
        raise ModelError(f"{name} must have weights in float32", got=kind, remedy="call .float() where it is made")
    try:
        with torch.no_grad(), torch.device("cpu"):
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
    classes = tells.classes_of_timm(config) if request.pretrained else None
    return _Made(module, f"timm:{name}", options, tells.of_timm(config), classes)


def _make_torchvision(request: Request) -> _Made:
    models = _import("torchvision", "torchvision").models
    if request.name.lower() not in models.list_models(module=models):  # others fetch the weights of a backbone
        raise ModelError("torchvision must have a classifier of that name", got=request.name, remedy="name another")
    extra = {} if request.classes is None else {"num_classes": request.classes}
    published = models.get_model_weights(request.name).DEFAULT
    module = models.get_model(
        request.name, weights=published if request.pretrained else None, **extra, **request.options
    )
    classes = tells.classes_of_torchvision(published) if request.pretrained else None
    return _Made(module, f"torchvision:{request.name}", request.options, tells.of_torchvision(published), classes)


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
    return _of_hf(model, request.name, _processor(transformers, request.name))


def _processor(transformers: Any, name: str) -> dict[str, Any]:
    """The configuration of the image processor that comes with a model, as data; empty where none does."""
    try:
        config, _ = transformers.image_processing_base.ImageProcessingMixin.get_image_processor_dict(name)
    except Exception:  # no such file, no network: many types
        return {}
    return dict(config)


def _of_hf(model: nn.Module, name: str, processor: dict[str, Any]) -> _Made:
    config: Any = model.config
    options = {}
    if type(config).__module__.startswith("transformers."):  # code of the hub cannot be stored
        fields = _own_fields(type(config))
        plain = {key: value for key, value in config.to_dict().items() if key in fields}
        options = {"config": {"model_type": config.model_type, **plain}}
    return _Made(_Logits(model), f"hf:{name}", options, tells.of_hf(config, processor), tells.classes_of_hf(config))


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
    module = call_factory(request.name, request.options)
    told = getattr(module, "pretrained_cfg", None)  # a factory may return a model of timm
    wanted = _NOTHING
    if isinstance(told, dict) and {"input_size", "mean", "std"} <= told.keys():
        wanted = tells.of_timm(told)
    return _Made(module, request.name, request.options, wanted)
