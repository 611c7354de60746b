"""What stands in the place of layers in a compressed part of a network.

A :class:`LayerDelta` replaces one layer, in the coordinates of the channels that stay. Compressors make them, bundles
store them, engines apply them:

    Mix       the weight ``W M``: kept channels stand for all that the base layer read
    Weights   a weight and a bias of their own
    Factors   two layers, through fewer channels or with separable kernels
    Constant  nothing: the same value everywhere; what only this layer needed is not run

A new kind is one class here; bundles, engines and exports take it from :data:`KINDS`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from sinf.errors import ConfigError
from sinf.graph.coupling import Slot, unfolds


class LayerDelta(ABC):
    """What stands in the place of one layer, a convolution or a linear layer whose weight is ``(O, C, ...)``."""

    kind: ClassVar[str]

    @abstractmethod
    def apply(self, base: nn.Module, sliced: nn.Module, out: Tensor, read: Slot) -> nn.Module:
        """The layer that runs.

        ``base`` is the base model's layer, ``sliced`` the same with the channels that stay, ``out`` (O',) the rows of
        the weight that stay, ``read`` what the base model's layer reads.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by the name of their field."""

    @abstractmethod
    def fits(self, base: nn.Module, shape: tuple[int, ...], read: Slot) -> bool:
        """Whether the tensors have shapes that may stand for ``base``, whose weight has the ``shape`` (O', C', ...)
        when the channels stay that do; see :meth:`apply` for the others."""


@dataclass(frozen=True)
class Mix(LayerDelta):
    """The weight ``W M`` for a matrix ``(C, k)``: how the k channels that stay stand for all that the base layer
    reads."""

    matrix: Tensor
    kind = "mix"

    def apply(self, base: nn.Module, sliced: nn.Module, out: Tensor, read: Slot) -> nn.Module:
        weight = base.weight.detach()
        rows = weight.index_select(0, out) if len(out) < len(weight) else weight
        return with_weights(sliced, weight=mixed(rows, self.matrix, read))

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def fits(self, base: nn.Module, shape: tuple[int, ...], read: Slot) -> bool:
        return groups_of(base) == 1 and self.matrix.shape == (len(read.units), shape[1] // read.repeat)


@dataclass(frozen=True)
class Weights(LayerDelta):
    """A weight ``(O', C', ...)`` and, unless the layer has none, a bias ``(O',)``."""

    weight: Tensor
    bias: Tensor | None = None
    kind = "weights"

    def apply(self, base: nn.Module, sliced: nn.Module, out: Tensor, read: Slot) -> nn.Module:
        return with_weights(sliced, **self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def fits(self, base: nn.Module, shape: tuple[int, ...], read: Slot) -> bool:
        if self.bias is not None and (base.bias is None or self.bias.shape != shape[:1]):
            return False
        return self.weight.shape == shape


@dataclass(frozen=True)
class Factors(LayerDelta):
    """Two layers: ``reduce`` to r channels without a bias, then ``expand`` with one.

    Through channels ``reduce`` is ``(r, C', kh, kw)`` and ``expand`` ``(O', r, 1, 1)``; separable, they are
    ``(r, C', 1, kw)`` and ``(O', r, kh, 1)``; of a linear layer ``(r, C')`` and ``(O', r)``. Those of a convolution in
    G groups are in the same groups: ``(r, C'/G, kh, kw)`` and ``(O', r/G, 1, 1)``.
    """

    reduce: Tensor
    expand: Tensor
    bias: Tensor
    kind = "factors"

    def apply(self, base: nn.Module, sliced: nn.Module, out: Tensor, read: Slot) -> nn.Module:
        first, second = self._linear() if isinstance(sliced, nn.Linear) else self._convolutions(sliced)
        dtype = sliced.weight.dtype
        first.weight = _frozen(self.reduce.to(dtype))
        second.weight, second.bias = _frozen(self.expand.to(dtype)), _frozen(self.bias.to(dtype))
        return nn.Sequential(OrderedDict(reduce=first, expand=second)).eval()

    def tensors(self) -> dict[str, Tensor]:
        return {"reduce": self.reduce, "expand": self.expand, "bias": self.bias}

    def fits(self, base: nn.Module, shape: tuple[int, ...], read: Slot) -> bool:
        if not can_factor(base):
            return False
        out, into, *kernel = shape
        rank, ones = len(self.reduce), [1] * len(kernel)
        groups = max(1, groups_of(base) * out // len(base.weight))  # whole groups go, or none
        forms = [(kernel, ones)] + ([([1, kernel[1]], [kernel[0], 1])] if len(kernel) == 2 and groups == 1 else [])
        shapes = [((rank, into, *one), (out, rank // groups, *two)) for one, two in forms]
        whole = rank > 0 and rank % groups == 0  # as many of every group
        return whole and self.bias.shape == (out,) and (self.reduce.shape, self.expand.shape) in shapes

    def with_half(self, half: str, delta: LayerDelta) -> LayerDelta:
        """The layer where ``delta`` stands in the place of one of the two, of :data:`HALVES`.

        Raises:
            ConfigError: it is neither weights nor, in the place of the second, a constant.
        """
        reduce, expand = HALVES
        if isinstance(delta, Constant) and half == expand:
            return delta
        if isinstance(delta, Weights) and half == reduce and delta.bias is None:
            return replace(self, reduce=delta.weight)
        if isinstance(delta, Weights) and half == expand:
            return Factors(self.reduce, delta.weight, self.bias if delta.bias is None else delta.bias)
        raise ConfigError(
            "what became two layers takes other weights, or a constant for both",
            got=f"{delta.kind} for {half}",
            remedy="give both methods' budgets to one of them",
        )

    def _linear(self) -> tuple[nn.Module, nn.Module]:
        rank, into = self.reduce.shape
        with torch.device("meta"):
            return nn.Linear(into, rank, bias=False), nn.Linear(rank, len(self.expand))

    def _convolutions(self, sliced: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Each walks in the directions in which it has a kernel; the first, where neither has one. Both have the
        groups of ``sliced``."""
        own = cast(nn.Conv2d, sliced)
        second = [size > 1 for size in self.expand.shape[2:]]

        def convolution(weight: Tensor, mine: list[bool], bias: bool) -> nn.Conv2d:
            options = {
                name: tuple(value if here else none for value, here in zip(getattr(own, name), mine, strict=True))
                for name, none in (("stride", 1), ("padding", 0), ("dilation", 1))
            }
            out, into, *kernel = weight.shape
            with torch.device("meta"):
                return nn.Conv2d(into * own.groups, out, tuple(kernel), groups=own.groups, **options, bias=bias)

        return convolution(self.reduce, [not here for here in second], False), convolution(self.expand, second, True)


@dataclass(frozen=True)
class Constant(LayerDelta):
    """One value ``(O',)`` for every channel, whatever is read."""

    value: Tensor
    kind = "constant"

    def apply(self, base: nn.Module, sliced: nn.Module, out: Tensor, read: Slot) -> nn.Module:
        return ConstantMap(self.value.to(sliced.weight.dtype), sliced)

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def fits(self, base: nn.Module, shape: tuple[int, ...], read: Slot) -> bool:
        return self.value.shape == shape[:1]


class ConstantMap(nn.Module):
    """A value for every channel, in the shape of what ``layer`` makes."""

    def __init__(self, value: Tensor, layer: nn.Module) -> None:
        super().__init__()
        self.value = _frozen(value)
        names = ("kernel_size", "stride", "padding", "dilation")
        self.walk = tuple(getattr(layer, name) for name in names) if isinstance(layer, nn.Conv2d) else None

    def forward(self, x: Tensor) -> Tensor:
        if self.walk is None:
            return self.value.expand(*x.shape[:-1], -1).clone()
        return self.value[:, None, None].expand(x.shape[0], -1, *walked(x.shape[2:], *self.walk)).clone()


#: The two layers of :class:`Factors`, by the names of their fields.
HALVES = ("reduce", "expand")
KINDS: dict[str, type[LayerDelta]] = {each.kind: each for each in (Mix, Weights, Factors, Constant)}
#: By target, what stands in the place of layers.
LayerDeltas = dict[str, LayerDelta]


def can_factor(module: nn.Module) -> bool:
    """Whether a layer can be written as two: a convolution in two dimensions, in groups of several outputs where it is
    in groups, or a linear layer."""
    return why_one(module) is None


def why_one(module: nn.Module) -> str | None:
    """Why a layer cannot be written as two; None where it can."""
    if isinstance(module, nn.Linear):
        return None
    if not isinstance(module, nn.Conv2d):
        return "no convolution in two dimensions"
    if module.groups > 1 and module.groups == module.out_channels:
        return "one output a group"
    return None if unfolds(module) else "padded otherwise than by zeros"


def groups_of(module: nn.Module) -> int:
    """Of a convolution; every other layer is one."""
    return int(getattr(module, "groups", 1))


def mixed(weight: Tensor, mix: Tensor, read: Slot) -> Tensor:
    """``W M`` for a weight ``(O, C, ...)``, or ``(O, C * repeat)`` after a flattening."""
    mix = mix.to(weight.dtype)
    if weight.ndim == 2:
        return (weight.unflatten(1, (-1, read.repeat)).transpose(1, 2) @ mix).transpose(1, 2).flatten(1)
    return (weight.movedim(1, -1) @ mix).movedim(-1, 1).contiguous()


def with_weights(layer: nn.Module, **tensors: Tensor) -> nn.Module:
    """A copy of a layer with other tensors in the type of its own; what is not given is shared."""
    new = copy.copy(layer)
    new._parameters = dict(layer._parameters)
    for name, tensor in tensors.items():
        setattr(new, name, _frozen(tensor.to(layer.weight.dtype)))
    return new


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def to_tensors(layers: Mapping[str, LayerDelta]) -> dict[str, Tensor]:
    """All tensors by ``KIND.FIELD.TARGET``."""
    return {
        f"{delta.kind}.{field}.{target}": tensor
        for target, delta in layers.items()
        for field, tensor in delta.tensors().items()
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> LayerDeltas:
    """The inverse of :func:`to_tensors`.

    Raises:
        ValueError: a name is no ``KIND.FIELD.TARGET``, fields are missing, or two kinds stand for one layer.
    """
    fields: dict[str, tuple[str, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        kind, field, target = [*name.split(".", 2), "", ""][:3]
        first, mine = fields.setdefault(target, (kind, {}))
        if kind not in KINDS or first != kind or not target:
            raise ValueError(f"no part of a layer: {name[:100]}")
        mine[field] = tensor
    try:
        return {target: KINDS[kind](**mine) for target, (kind, mine) in fields.items()}
    except TypeError as error:
        raise ValueError(f"fields of a layer: {error}") from error


def walked(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The sides of what a convolution makes of a map of these sides."""
    each = zip(sizes, kernel, stride, padding, dilation, strict=True)
    return [(n + 2 * int(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each]
