"""Compressors by name. Another method is a class like these, and an entry here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sinf.compress.budget import Schedule
from sinf.compress.channels import ChannelRemoval
from sinf.compress.compressor import Compressor
from sinf.compress.depth import BlockRemoval
from sinf.compress.low_rank.compressor import LowRank
from sinf.criteria import make_criterion
from sinf.errors import ConfigError
from sinf.registry import Registry


class Options(Protocol):
    """Options that compressors read."""

    @property
    def criterion_name(self) -> str: ...
    @property
    def round_to(self) -> int: ...


#: The class, and how options make one.
Entry = tuple[type[Compressor], Callable[[Options], Compressor]]
COMPRESSORS: Registry[Entry] = Registry("compressor", lambda entry: entry[0], unknown="no such method")

#: What is tried where the method is left open. Depth is not: two branches of ResNet-56, 5 % of its MACs, lose as many
#: nats of the answer as ranks do for 25 % (benchmarks/results/branches_resnet56.csv).
AUTOMATIC = (ChannelRemoval.name, LowRank.name)


def register(kind: type[Compressor], make: Callable[[Options], Compressor]) -> None:
    """Let ``build`` and ``prune`` take a compressor by its name.

    Raises:
        ConfigError: another one has that name.
    """
    COMPRESSORS.register(kind.name, (kind, make))


def kind_of(name: str) -> type[Compressor]:
    """The class of a method.

    Raises:
        ConfigError: there is no such method.
    """
    return COMPRESSORS.find(name)[0]


def methods_for(rule: object, criterion: str | None) -> tuple[str, ...]:
    """Names of the methods that are tried where it is left open, of those that take this ``rule`` and ``criterion``."""
    return tuple(name for name in AUTOMATIC if kind_of(name).by_criterion or not _by_criterion(rule, criterion))


def require_takes(name: str, rule: object, criterion: str | None) -> None:
    """Refuse a method that does not take the ``rule``, or the ``criterion`` that was named (None: none was).

    Raises:
        ConfigError: it does not, or there is no such method.
    """
    if not kind_of(name).by_criterion and _by_criterion(rule, criterion):
        got = "ratios" if isinstance(rule, Schedule) else f"the criterion {criterion}"
        raise ConfigError(f"{name} removes no channels, and takes a budget", got=got, remedy="leave it out")


def _by_criterion(rule: object, criterion: str | None) -> bool:
    """Whether that is for methods by which channels go by a criterion alone."""
    return isinstance(rule, Schedule) or criterion is not None


def make_compressor(name: str, options: Options) -> Compressor:
    """A compressor of that name."""
    return COMPRESSORS.find(name)[1](options)


register(ChannelRemoval, lambda options: ChannelRemoval(make_criterion(options.criterion_name), options.round_to))
register(LowRank, lambda options: LowRank(options.round_to))
register(BlockRemoval, lambda options: BlockRemoval())
