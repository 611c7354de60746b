"""Compressors by name. Another method is a class like these, and an entry here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sinf.compress.channels import ChannelRemoval
from sinf.compress.compressor import Compressor
from sinf.compress.depth import BlockRemoval
from sinf.compress.low_rank.compressor import LowRank
from sinf.criteria import make_criterion
from sinf.errors import ConfigError


class Options(Protocol):
    """Options that compressors read."""

    @property
    def criterion_name(self) -> str: ...
    @property
    def round_to(self) -> int: ...


#: By name: the class, and how options make one.
COMPRESSORS: dict[str, tuple[type[Compressor], Callable[[Options], Compressor]]] = {}


#: What is tried where the method is left open. Depth is not: it takes as long to try, and the first two branches of
#: ResNet-56 lose more points than ranks do at a third fewer multiplications.
TRIED = (ChannelRemoval.name, LowRank.name)


def register(kind: type[Compressor], make: Callable[[Options], Compressor]) -> None:
    """Let ``build`` and ``prune`` take a compressor by its name.

    Raises:
        ConfigError: another one has that name.
    """
    if kind.name in COMPRESSORS and COMPRESSORS[kind.name][0] is not kind:
        raise ConfigError("every compressor has a name of its own", got=kind.name, remedy="give another name")
    COMPRESSORS[kind.name] = kind, make


def kind_of(name: str) -> type[Compressor]:
    """The class of a method.

    Raises:
        ConfigError: there is no such method.
    """
    if name not in COMPRESSORS:
        raise ConfigError("no such method", got=name, remedy=f"take one of {', '.join(COMPRESSORS)}")
    return COMPRESSORS[name][0]


def make_compressor(name: str, options: Options) -> Compressor:
    """A compressor of that name."""
    kind_of(name)
    return COMPRESSORS[name][1](options)


register(ChannelRemoval, lambda options: ChannelRemoval(make_criterion(options.criterion_name), options.round_to))
register(LowRank, lambda options: LowRank(options.round_to))
register(BlockRemoval, lambda options: BlockRemoval())
