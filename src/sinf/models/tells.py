"""What a library says of a model that it knows: how images are prepared for it, and what its classes are called.

Nothing is fetched here; what a library does not say is left out.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from sinf.data.labels import ModelClasses, are_numbers

IMAGENET_CLASSES = 1000
_SAME_NAMES = 0.95  # of the names of a model of 1,000 classes that must be ImageNet's, for the others to be


@dataclass(frozen=True)
class Wanted:
    """How images are prepared, as far as a library says; see :class:`sinf.data.preprocessing.Preprocessing`."""

    size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"


# ---- images


def of_timm(config: Mapping[str, Any]) -> Wanted:
    """From a pretrained configuration of timm: its evaluation transform."""
    size = tuple(config["input_size"])
    scaled = tuple(math.floor(side / (config.get("crop_pct") or 1.0)) for side in size[1:])
    mode, interpolation = config.get("crop_mode") or "center", config.get("interpolation") or "bicubic"
    resize: int | tuple[int, int] | None = None
    if mode == "squash" or (mode == "center" and scaled[0] != scaled[1]):
        resize = (scaled[0], scaled[1])
    elif mode == "center":
        resize = scaled[0]
    supported = interpolation in ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")
    return _fitting(
        Wanted(size, tuple(config["mean"]), tuple(config["std"]), resize, interpolation if supported else "bicubic")
    )


def of_torchvision(weights: Any) -> Wanted:
    """From published weights of torchvision: their transforms."""
    transforms = weights.transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    return _fitting(Wanted((len(mean), crop, crop), mean, std, resize, transforms.interpolation.value))


def of_hf(config: Any, processor: Mapping[str, Any]) -> Wanted:
    """From a configuration of transformers, and the one of its image processor, empty where there is none."""
    side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    own = _pair(side)
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True):
        mean, std = [0.0] * channels, [1.0] * channels
    if mean is not None and std is not None:
        factor = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
        offset = 1.0 if processor.get("rescale_offset") else 0.0
        mean, std = [(m + offset) / factor for m in mean], [s / factor for s in std]
    given, crop = processor.get("size"), _pair(processor.get("crop_size"))
    resize: int | tuple[int, int] | None = None
    size = own
    if isinstance(given, int) or (isinstance(given, Mapping) and "shortest_edge" in given):
        short = given if isinstance(given, int) else given["shortest_edge"]
        share, kind = processor.get("crop_pct"), str(processor.get("image_processor_type", ""))
        resize = int(short / share) if share else short
        size = crop if crop is not None and processor.get("do_center_crop", True) else (short, short)
        if kind.startswith("ConvNext") and short >= 384:  # as its paper has it, without a crop
            resize, size = (short, short), (short, short)
        elif kind.startswith("Levit"):
            resize = int(256 / 224 * short)
    elif (both := _pair(given)) is not None:
        resize, size = both, (crop if crop is not None and processor.get("do_center_crop") else both)
    if not processor.get("do_resize", True):
        resize = None
    number = processor.get("resample", 2)
    interpolation = Image.Resampling(number).name.lower() if number in set(Image.Resampling) else "bilinear"
    return _fitting(
        Wanted(
            None if size is None else (channels, *size),
            None if mean is None else tuple(mean),
            None if std is None else tuple(std),
            resize,
            interpolation,
        )
    )


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping) and {"height", "width"} <= value.keys():
        return int(value["height"]), int(value["width"])
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return int(value[0]), int(value[1])
    return None


def _fitting(wanted: Wanted) -> Wanted:
    """Without a resize that would leave less than the model's size."""
    if wanted.size is None or wanted.resize is None:
        return wanted
    sides = (wanted.resize, wanted.resize) if isinstance(wanted.resize, int) else wanted.resize
    if sides[0] >= wanted.size[1] and sides[1] >= wanted.size[2]:
        return wanted
    return Wanted(wanted.size, wanted.mean, wanted.std, None, wanted.interpolation)


# ---- classes


def classes_of_timm(config: Mapping[str, Any]) -> ModelClasses | None:
    """From a pretrained configuration, or the subset of ImageNet that timm says its weights are of."""
    names, described = config.get("label_names"), config.get("label_descriptions")
    count = config.get("num_classes")
    if names and len(names) == count:
        texts = [str((described or {}).get(name, name)) for name in names]
        return ModelClasses.of(texts, "timm", tuple((str(n), *_words(t)) for n, t in zip(names, texts, strict=True)))
    data = _timm_data()
    subset = None if data is None else data.infer_imagenet_subset(dict(config))
    if data is None or not subset:
        return None
    info = data.ImageNetInfo(subset)
    return _of_info(info, f"timm ({subset})") if info.num_classes() == count else None


def imagenet_classes() -> ModelClasses | None:
    """Of ImageNet-1k, with synsets, where timm is installed."""
    data = _timm_data()
    return None if data is None else _of_info(data.ImageNetInfo("imagenet-1k"), "ImageNet-1k")


def classes_of_torchvision(weights: Any) -> ModelClasses | None:
    """From published weights."""
    names = weights.meta.get("categories")
    return None if not names else with_synsets(list(names), "torchvision")


def classes_of_hf(config: Any) -> ModelClasses | None:
    """From a configuration of transformers; None where its classes have numbers only."""
    table = getattr(config, "id2label", None) or {}
    names = [str(table.get(number, table.get(str(number), ""))) for number in range(len(table))]
    if not names or "" in names or are_numbers(names):
        return None
    return with_synsets(names, "the model's id2label")


def with_synsets(names: list[str], source: str) -> ModelClasses:
    """Names with their synonyms; where they are ImageNet-1k's in its order, with those of WordNet, too."""
    others = [tuple(_words(name)) for name in names]
    imagenet = imagenet_classes() if len(names) == IMAGENET_CLASSES else None
    if imagenet is not None:
        simple = [{each.casefold() for each in (n, *o)} for n, o in zip(imagenet.names, imagenet.others, strict=True)]
        pairs = zip(others, simple, strict=True)
        same = sum(bool({word.casefold() for word in words} & these) for words, these in pairs)
        if same >= _SAME_NAMES * len(names):
            others = [(*o, *k) for o, k in zip(others, imagenet.others, strict=True)]
    return ModelClasses.of(names, source, tuple(others))


def _of_info(info: Any, source: str) -> ModelClasses:
    synsets, texts = list(info.label_names()), list(info.label_descriptions())
    others = tuple((synset, *_words(text)) for synset, text in zip(synsets, texts, strict=True))
    return ModelClasses.of(texts, source, others)


def _words(text: str) -> list[str]:
    """Synonyms, which ImageNet's descriptions part by commas."""
    return [text, *(word.strip() for word in text.split(",") if "," in text)]


def _timm_data() -> Any:
    try:
        return importlib.import_module("timm.data")
    except ImportError:
        return None
