"""What makes an architecture again, and what a file may say of it: a family's name, and plain numbers and words.

A bundle, a pruned folder or a weights file may come from a stranger. Its spec runs no code and fetches nothing: names
are those of a library's own registry, options are those listed here, and a Hugging Face model is its configuration.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field, create_model

from sinf.data.images import Preprocessing
from sinf.data.record import PreprocessingRecord
from sinf.errors import ModelError
from sinf.models import plain, resnet, vgg
from sinf.storage.schema import Classes, Name, Record, shortened, validated

REFERENCE_NAMES = vgg.NAMES + resnet.NAMES
#: Names of specs whose options describe the whole network, with that of the model that it comes from.
PLAIN = "plain:"

#: Architectures of transformers that a file may name: made from plain numbers alone, with no other model inside.
HF_TYPES = frozenset([
    "beit", "bit", "convnext", "convnextv2", "cvt", "data2vec-vision", "dinov2", "dinov2_with_registers",
    "efficientnet", "focalnet", "hgnet_v2", "hiera", "mobilenet_v1", "mobilenet_v2", "mobilevit",
    "mobilevitv2", "poolformer", "pvt", "pvt_v2", "regnet", "resnet", "segformer", "swiftformer", "swin", "swinv2",
    "vit", "vit_msn",
])  # fmt: skip

_Channels = Annotated[int, Field(ge=1, le=plain.MAX_CHANNELS)]
_Side = Annotated[int, Field(ge=1, le=plain.MAX_SIDE)]

_Rate = Annotated[float, Field(ge=0, lt=1)]
_Scale = Annotated[float, Field(gt=0, le=16)]
_Small = Annotated[float, Field(ge=0, le=1000)]
_Depth = Annotated[int, Field(ge=1, le=128)]
_Count = Annotated[int, Field(ge=1, le=16384)]
_Word = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$")]
_Depths = Annotated[tuple[_Depth, ...], Field(fail_fast=True, max_length=16)]
_Counts = Annotated[tuple[_Count, ...], Field(fail_fast=True, max_length=16)]
_Flags = Annotated[tuple[bool, ...], Field(fail_fast=True, max_length=16)]

# Of a configuration of transformers: how many layers there are is bounded more tightly than how wide they are.
_Value = bool | Annotated[int, Field(ge=-16384, le=16384)] | Annotated[float, Field(ge=-1e9, le=1e9)] | _Word | None
_Row = Annotated[tuple[_Value, ...], Field(fail_fast=True, max_length=16)]
_Values = Annotated[tuple[_Value | _Row, ...], Field(fail_fast=True, max_length=128)]
_ALL_DEPTHS = re.compile(r"depth|layers|blocks|stages")


class _Spec(Record):
    name: Name
    classes: Classes
    preprocessing: PreprocessingRecord
    options: dict[str, Any]


def _options(**types: Any) -> type[Record]:
    fields: dict[str, Any] = {name: (kind, None) for name, kind in types.items()}
    return create_model("Options", __base__=Record, **fields)


class _Config(Record):
    """A configuration of transformers as data."""

    config: dict[_Word, _Value | _Values]


#: By library, the options that a file may give; a caller's own options are passed on as they are.
OPTIONS = {
    "reference": _options(width=_Scale),
    "timm": _options(
        drop_rate=_Rate, drop_path_rate=_Rate, proj_drop_rate=_Rate, attn_drop_rate=_Rate, pos_drop_rate=_Rate,
        drop_block_rate=_Rate, global_pool=_Word, act_layer=_Word, in_chans=_Channels, output_stride=_Count,
        img_size=_Side | tuple[_Side, _Side], patch_size=_Side, embed_dim=_Count, depth=_Depth, num_heads=_Count,
        mlp_ratio=_Scale, qkv_bias=bool, init_values=_Small | None, class_token=bool, reg_tokens=_Count,
        dynamic_img_size=bool, window_size=_Side, depths=_Depths, dims=_Counts, layers=_Depths, channels=_Counts,
        stem_type=_Word, stem_width=_Count, base_width=_Count, cardinality=_Count, avg_down=bool, width_mult=_Scale,
        zero_init_last=bool, channel_multiplier=_Scale, bn_eps=_Small, bn_momentum=_Rate,
    ),
    "torchvision": _options(
        dropout=_Rate, attention_dropout=_Rate, stochastic_depth_prob=_Rate, drop_rate=_Rate, width_mult=_Scale,
        groups=_Count, width_per_group=_Count, zero_init_residual=bool, replace_stride_with_dilation=_Flags,
        image_size=_Side, aux_logits=bool, transform_input=bool, init_weights=bool, memory_efficient=bool,
        reduced_tail=bool, dilated=bool,
    ),
    "hf": _Config,
}  # fmt: skip
_NAMES = {
    "timm": re.compile(r"[A-Za-z0-9_]{1,200}(\.[A-Za-z0-9_]{1,200})?"),  # no hf-hub:NAME, which fetches
    "torchvision": re.compile(r"[A-Za-z0-9_]{1,200}"),
    "hf": re.compile(r"[A-Za-z0-9_./-]{1,500}"),
}
_FACTORY = re.compile(r"[A-Za-z_][\w.]{0,500}:[A-Za-z_][\w.]{0,500}", re.ASCII)


@dataclass(frozen=True)
class ModelSpec:
    """What makes an architecture: its name, its number of classes, what it is fed, and options such as ``width``."""

    name: str
    classes: int
    preprocessing: Preprocessing
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_factory(self) -> bool:
        """Whether making the model imports and runs code of the user's own (``package.module:factory``)."""
        return self.name not in REFERENCE_NAMES and self.name.partition(":")[0] not in {*OPTIONS, PLAIN[:-1]}

    @property
    def title(self) -> str:
        """Its name for people: of a network that is described by data, the one that it was made from."""
        return self.name.removeprefix(PLAIN)

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads.

        Raises:
            ModelError: it would be refused there.
        """
        record = asdict(self) | {"preprocessing": self.preprocessing.to_json()}
        ModelSpec.from_json(record)
        return record

    @staticmethod
    def from_json(record: dict[str, Any]) -> ModelSpec:
        """The spec that a file holds; making its model runs no code of the file and fetches nothing, unless the name
        is a factory's (``package.module:factory``).

        Raises:
            ModelError: a type, a range, a length, a name or an option is not what a file may say; one line.
        """
        where, remedy = "the model of a file", "take a file that sinf wrote, or make the model with sinf.load_model"
        spec = validated(record, _Spec, ModelError, where, remedy=remedy)
        shape = spec.preprocessing
        library, _, name = spec.name.partition(":")
        library = "reference" if spec.name in REFERENCE_NAMES else library
        if library in _NAMES and not _NAMES[library].fullmatch(name):
            raise ModelError(
                f"a file names a model of {library} by its own name there", got=repr(spec.name[:200]), remedy=remedy
            )
        if library in OPTIONS:
            validated(spec.options, OPTIONS[library], ModelError, f"options of {shortened(spec.name)}", remedy=remedy)
        elif library != PLAIN[:-1] and not _FACTORY.fullmatch(spec.name):
            raise ModelError("a file names a model that sinf can make", got=repr(spec.name[:200]), remedy=remedy)
        if library == "hf":
            _require_known(spec.options["config"], remedy)
        preprocessing = Preprocessing(**shape.model_dump())
        return ModelSpec(spec.name, spec.classes, preprocessing, dict(spec.options))


def require_channels(size: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuse means and deviations of another number of channels than images have."""
    if not len(mean) == len(std) == size[0]:
        got = f"{size[0]} channels, {len(mean)} means, {len(std)} deviations"
        raise ModelError("every channel has a mean and a standard deviation", got=got, remedy="give mean and std")


def _require_known(config: dict[str, Any], remedy: str) -> None:
    kind = config.get("model_type")
    if kind not in HF_TYPES:
        got, other = f"the type {kind!r}", "give the model as package.module:factory"
        raise ModelError("a file names an architecture of transformers that sinf knows", got=got, remedy=other)
    for key, value in config.items():
        counts = value if isinstance(value, (list, tuple)) else [value]
        if _ALL_DEPTHS.search(key) and any(isinstance(n, int) and n > 128 for n in counts):
            raise ModelError("a model has at most 128 layers of a kind", got=f"{key} of {value}", remedy=remedy)
