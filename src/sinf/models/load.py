"""From a name on the command line, or a spec in a bundle, to a base model.

A name is a reference network (``vgg16``), ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME``,
``package.module:factory``, or a folder that ``sinf prune`` wrote. A :class:`ModelSpec` is everything needed to make the
same architecture again; weights travel apart from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sinf.data.images import LabelledImages, Preprocessing
from sinf.data.labels import ModelClasses
from sinf.errors import ModelError
from sinf.models import plain, resnet, vgg
from sinf.models.foreign import IMAGENET_MEAN, IMAGENET_STD, make_foreign, make_hf_from_spec
from sinf.models.own import made_before
from sinf.models.spec import PLAIN, REFERENCE_NAMES, ModelSpec, require_channels
from sinf.models.state import fit_state, head_size, read_weights, require_finite, require_shapes
from sinf.models.to_plain import make_plain
from sinf.storage.config import CARD, ConfigRecord, read_config
from sinf.storage.schema import parse, shortened

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "PLAIN", "REFERENCE_NAMES", "ModelSpec", "read_weights"]

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


@dataclass(frozen=True)
class BaseModel:
    """The trained classifier in eval mode, ``(B, C, H, W) -> (B, classes)`` logits, and the spec it was made from;
    ``classes`` are the names of its classes where something tells them, and ``notes`` say what was assumed."""

    module: nn.Module
    spec: ModelSpec
    classes: ModelClasses | None = None
    notes: tuple[str, ...] = ()


class PlainConfig(ConfigRecord):
    """What ``config.json`` says of a plain model."""

    method: str = plain.METHOD
    measured: dict[str, Any] | None


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
    allow_remote_code: bool = False,
    images: LabelledImages | None = None,
) -> BaseModel:
    """Make a base model and load its weights.

    Without ``weights``, names of other libraries load the weights that library publishes (``pretrained=False`` leaves
    them random) and reference networks are random. The number of classes and the width of a reference network are
    read from the weights when not given. ``allow_remote_code`` lets ``hf:NAME`` run Python that comes with the model; a
    bundle cannot hold such a model. ``images`` are some that it will be fed: a model of one's own, or with weights of
    one's own, takes their size where no other is given.

    Raises:
        ModelError: the name is unknown, or the weights do not fit; the message lists the keys that differ.
        DependencyError: the library that the name asks for is not installed.
    """
    state = read_weights(weights) if weights is not None else None
    options = dict(options or {})
    if name not in REFERENCE_NAMES and Path(name).is_dir():
        base = _from_folder(Path(name), classes, size, mean, std, options)
        module, spec, names, notes = base.module, base.spec, base.classes, base.notes
    elif name in REFERENCE_NAMES:
        spec = _reference_spec(name, state, classes, size, mean, std, options)
        module, names, notes = load_spec(spec), None, ()
    else:
        own = pretrained and state is None
        more: dict[str, Any] = {"pretrained": own, "allow_remote_code": allow_remote_code, "images": images}
        made = make_foreign(name, classes, size, mean, std, options, **more)
        if state is not None and classes is None:
            head = head_size(made.module.state_dict(), state)
            if head is not None and name.startswith(("timm:", "torchvision:", "hf:")):
                made = make_foreign(name, head, size, mean, std, options, **more)
        module, spec, names, notes = made.module, made.spec, made.classes, made.notes
    if state is not None:
        require_shapes(module.state_dict(), state, spec.name)
        require_finite(state)
        fit_state(module, state, spec.name)
    return BaseModel(module.eval(), spec, names, notes)


def load_spec(spec: ModelSpec, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The architecture that a spec describes, with random weights, in eval mode.

    With ``weights``, it is first made without memory and compared with them, so that a few words of a file never take
    more than its tensors do; they are not loaded. A user's own factory is called once: where it was, and where weights
    are given or nothing is wanted but shapes (on the device meta), its model is not made again.

    Raises:
        ModelError: it cannot be made, or the weights are not its own.
    """
    if weights is not None and (
        spec.name in REFERENCE_NAMES or spec.name.startswith(("timm:", "torchvision:", "hf:", PLAIN))
    ):
        with torch.device("meta"):
            require_shapes(load_spec(spec).state_dict(), weights, spec.name)
    if spec.is_factory and (weights is not None or torch.empty(0).is_meta):
        before = made_before(spec.name, spec.options)
        if before is not None:
            return before.eval()
    if spec.name in vgg.NAMES:
        return vgg.make(spec.name, spec.classes, **spec.options).eval()
    if spec.name in resnet.NAMES:
        return resnet.make(spec.name, spec.classes, **spec.options).eval()
    if spec.name.startswith(PLAIN):
        return make_plain(spec.options, spec.preprocessing.size, spec.classes)
    if spec.name.startswith("hf:"):
        return make_hf_from_spec(spec).eval()
    shape = spec.preprocessing
    made = make_foreign(
        spec.name, spec.classes, shape.size, shape.mean, shape.std, dict(spec.options), pretrained=False
    )
    return made.module.eval()


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
    require_channels(preprocessing.size, preprocessing.mean, preprocessing.std)
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
    base = read_plain(folder).model
    if classes not in (None, base.spec.classes):
        got = f"{base.spec.classes}, not {classes}"
        raise ModelError(f"{folder} does not have the given number of classes", got=got)
    return base


@dataclass(frozen=True)
class PlainFolder:
    """What ``sinf prune`` wrote to a folder: the network, names of its classes, how it was made, what was measured."""

    model: BaseModel
    class_names: tuple[str, ...]
    provenance: dict[str, str]
    measured: dict[str, Any] | None


def read_plain(folder: Path, key: bytes | None = None) -> PlainFolder:
    """Read a folder that ``sinf prune`` wrote; nothing that lies in it is run. With a ``key``, what is not signed with
    it is refused.

    Raises:
        ModelError: it holds something else, or what is damaged, was changed or is not signed.
    """
    config = read_config(folder, PlainConfig, (plain.WEIGHTS, CARD), key, ModelError)
    spec = ModelSpec.from_json(config.model)
    if not spec.name.startswith(PLAIN) or len(config.classes) != spec.classes:
        got = f"{shortened(spec.name)} of {spec.classes} classes, {len(config.classes)} names"
        raise ModelError("a plain model describes itself and names its classes", got=got, remedy="write it again")
    try:
        module = plain.fill(config.model, folder / plain.WEIGHTS)
    except ValueError as error:
        rule = f"a folder must hold the network that it describes: {folder}"
        raise ModelError(rule, got=error, remedy="name another, or write it again with sinf prune") from error
    require_finite(module.state_dict())
    base = BaseModel(module, spec, ModelClasses.of(config.classes, "the folder"))
    return PlainFolder(base, config.classes, config.provenance, config.measured)


def spec_from_metadata(path: str | Path) -> ModelSpec | None:
    """The spec that ``sinf train`` wrote into a weights file, if there is one."""
    try:
        with safe_open(str(path), framework="pt") as file:
            record = (file.metadata() or {}).get("sinf_model")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights must be a readable safetensors file: {path}", got=error) from error
    return None if record is None else ModelSpec.from_json(parse(record.encode(), ModelError, f"sinf_model in {path}"))
