"""Methods of dynamic pruning by name: which gate a site gets, and what is added to the cross entropy. Another method is
a class like these; :func:`register` makes it known, from outside the package too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sinf.dynamic import losses
from sinf.dynamic.gates import MASKS, BoostingGate, Gate, SaliencyGate, StaticGate
from sinf.errors import ConfigError, SinfError
from sinf.registry import Registry
from sinf.training.distributed import Group

_PROBED = 3  # images, for the shapes of what a gate makes


class Weights(Protocol):
    """Options that losses read (:class:`sinf.dynamic.trainer.TrainConfig`)."""

    @property
    def complexity(self) -> float: ...
    @property
    def similarity(self) -> float: ...
    @property
    def hardness(self) -> float: ...
    @property
    def detach_weights(self) -> bool: ...


@dataclass(frozen=True)
class Trained:
    """Images of a training step: ``saliencies`` (B, U) and ``features`` (B, C) of every site, and ``cross_entropy``
    (B,). They are a ``share`` of this process's images of a batch of ``total``, of a ``group`` of processes;
    ``mean_before`` is the mean cross entropy of the previous epoch."""

    saliencies: list[Tensor]
    features: list[Tensor]
    cross_entropy: Tensor
    total: int
    share: float
    mean_before: float
    group: Group


class Method(ABC):
    """What tells one method from another.

    Attributes:
        around_sums: whether its gates may stand at the ends of residual branches.
        scales_thresholds: whether thresholds of all layers may be multiplied by one number after the training.
    """

    name: ClassVar[str]
    around_sums: ClassVar[bool] = True
    scales_thresholds: ClassVar[bool] = False

    @abstractmethod
    def gate(self, channels: int, importance: Tensor, squeeze: float | None, binary: bool) -> Gate:
        """For a convolution that reads ``channels``; ``importance`` (U,) counts the units and ranks static ones."""

    def reads_features(self, weights: Weights) -> bool:
        """Whether the loss takes features."""
        return False

    def loss(self, batch: Trained, weights: Weights) -> Tensor:
        """This process's share of what is added to the cross entropy."""
        return batch.cross_entropy.new_zeros(())


class ManiDP(Method):
    """arXiv 2103.05861."""

    name = "manidp"
    scales_thresholds = True

    def gate(self, channels: int, importance: Tensor, squeeze: float | None, binary: bool) -> Gate:
        return SaliencyGate(channels, len(importance), squeeze, binary)

    def reads_features(self, weights: Weights) -> bool:
        return weights.similarity > 0

    def loss(self, batch: Trained, weights: Weights) -> Tensor:
        loss, group = super().loss(batch, weights), batch.group
        if weights.complexity > 0:
            cross_entropy = batch.cross_entropy.detach() if weights.detach_weights else batch.cross_entropy
            each = losses.instance_weights(cross_entropy, batch.mean_before, weights.hardness)
            loss = loss + weights.complexity * losses.complexity(batch.saliencies, each, batch.total)
        if weights.similarity > 0:
            features = [group.rows(f) for f in batch.features]
            saliencies = [group.rows(s) for s in batch.saliencies]
            loss = loss + weights.similarity * batch.share * losses.similarity(features, saliencies) / group.world
        return loss


class Boosting(Method):
    """FBS, arXiv 1810.05331; the weight of complexity is that of its L1 penalty."""

    name = "fbs"
    around_sums = False  # saliencies grow with what they multiply, and would feed themselves

    def gate(self, channels: int, importance: Tensor, squeeze: float | None, binary: bool) -> Gate:
        return BoostingGate(channels, len(importance), binary)

    def loss(self, batch: Trained, weights: Weights) -> Tensor:
        loss = super().loss(batch, weights)
        if weights.complexity > 0:
            loss = loss + weights.complexity * losses.boosting_penalty(batch.saliencies, batch.total)
        return loss


class Static(Method):
    """The same channels for every input."""

    name = "static"

    def gate(self, channels: int, importance: Tensor, squeeze: float | None, binary: bool) -> Gate:
        return StaticGate(importance)


METHODS: Registry[Method] = Registry("method", type)


def register(method: Method) -> None:
    """Let a method be named by options and bundles.

    Raises:
        ConfigError: another one has that name.
    """
    METHODS.register(method.name, method)


def method_of(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: there is no such method.
    """
    return METHODS.find(name)


def make_gate(
    name: str, channels: int, importance: Tensor, *, squeeze: float | None = None, mask: str = "scaled"
) -> Gate:
    """A gate of a method; see :meth:`Method.gate`.

    Raises:
        ConfigError: there is no such method, an option is out of range, or the gate gives other shapes than it must.
    """
    method = method_of(name)
    if mask not in MASKS:
        raise ConfigError(f"the mask must be one of {', '.join(MASKS)}", got=mask)
    if squeeze is not None and not 1 <= squeeze <= 1024:
        raise ConfigError("squeeze must be in 1..1024", got=squeeze, remedy="take 2, or 8 for cheaper gates")
    gate = method.gate(channels, importance, squeeze, mask == "binary")
    _require_shapes(gate, name, channels, len(importance))
    return gate


@torch.no_grad()
def _require_shapes(gate: Gate, method: str, channels: int, units: int) -> None:
    """Refuse a gate that does not make (B, units) of (B, channels, H, W), or pools something of channels that are zero:
    sparse execution does not compute those."""
    rule, remedy = (
        f"gates of the method {method} must make {units} saliencies of {channels} channels",
        "correct its gate",
    )

    def require(step: str, made: Tensor, wanted: tuple[int, ...]) -> Tensor:
        if made.shape != wanted:
            raise ConfigError(rule, got=f"{tuple(made.shape)} from {step} instead of {wanted}", remedy=remedy)
        return made

    try:
        pooled = require("pool", gate.pool(torch.zeros(_PROBED, channels, 2, 2)), (_PROBED, channels))
        saliency = require("saliency", gate.saliency(pooled), (_PROBED, units))
        require("keep", gate.keep(saliency), (_PROBED, units))
        require("mask", gate.mask(saliency), (_PROBED, units))
        if (fixed := gate.fixed()) is not None:
            require("fixed", fixed, (units,))
        if pooled.any():
            got = f"{pooled.max():g} of the method {method}"
            raise ConfigError("a gate must pool channels of zeros to 0", got=got, remedy=remedy)
    except SinfError:
        raise
    except Exception as error:  # the code of others raises anything
        raise ConfigError(rule, got=f"{type(error).__name__}: {error}", remedy=remedy) from error


for each in (ManiDP(), Boosting(), Static()):
    register(each)
