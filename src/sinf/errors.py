"""Every error that sinf raises on purpose.

    SinfError
    ├── ConfigError          an option has a value it cannot have
    ├── DataError            images, labels, columns or splits
    ├── ClusterError         classes do not form a partition into clusters
    ├── ModelError           a model cannot be made, or its weights do not fit
    │   └── CutError         a model cannot be traced, parted or made smaller
    ├── DoesNotPayError      what was made loses too much, or is not faster
    ├── VerificationError    a smaller network does not compute what it must
    ├── BundleError          a bundle cannot be written or read
    ├── StorageError         a file cannot be written
    └── DependencyError      an optional package is missing

Each message states the rule, the value that broke it, and the remedy. The command line prints it on one line and
exits with code 2, or 3 for a :class:`DoesNotPayError`: nothing is wrong with what was asked then. What is allowed but
weakens a result is a warning: ``DataWarning``.
"""

from __future__ import annotations

from typing import Any


def printable(text: str) -> str:
    """A text with U+FFFD for what steers a terminal instead of being read there: names come from files of strangers."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text)


class SinfError(Exception):
    """Base of all errors raised on purpose: ``SinfError(rule, got=value, remedy="what to do")``."""

    def __init__(self, rule: str, *, got: object | None = None, remedy: str | None = None) -> None:
        self.rule, self.got, self.remedy = rule, got, remedy
        message = rule if got is None else f"{rule} (got {got})"
        super().__init__(printable(message if remedy is None else f"{message}: {remedy}"))


class ConfigError(SinfError):
    """An option has a value it cannot have."""


class OutOfReachError(ConfigError):
    """A budget is less than what must stay, which is ``least``, as a share of what the budget counts."""

    def __init__(self, rule: str, *, got: object, least: float, remedy: str) -> None:
        super().__init__(rule, got=f"{got}; at least {least:.3f} must stay", remedy=remedy)
        self.least = least


class DataError(SinfError):
    """Images, labels, columns or splits are not what they must be."""


class DataWarning(UserWarning):
    """A result says less than it seems, because of the images or the times that it rests on."""


class ClusterError(SinfError):
    """Classes do not form a partition into semantic clusters."""


class ModelError(SinfError):
    """A model cannot be made, or its weights do not fit."""


class CutError(ModelError):
    """A model cannot be traced, parted or made smaller; the message names the operation in the way."""


class DoesNotPayError(SinfError):
    """What was made loses more than was allowed, or is not faster than the base model, so it is not written.

    ``numbers`` is what was measured, as plain values: expected loss, times, the share that falls back.
    """

    def __init__(self, rule: str, *, got: object, remedy: str, numbers: dict[str, Any]) -> None:
        super().__init__(rule, got=got, remedy=remedy)
        self.numbers = numbers


class VerificationError(SinfError):
    """A smaller network does not compute what the masked base model computes."""


class BundleError(SinfError):
    """A bundle cannot be written or read."""


class StorageError(SinfError):
    """A file cannot be written; what was there stays."""


class DependencyError(SinfError):
    """An optional package is missing; the message holds the command that installs it."""
