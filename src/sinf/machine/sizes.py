"""Sizes in bytes, as people write them. No torch here: the command line reads this to print its help."""

from __future__ import annotations

import math
import re
from typing import Annotated

from sinf.errors import ConfigError
from sinf.option import RUN, Option, Unit

#: The budget unless another one is named.
DEFAULT = 8_000_000_000

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse(text: str) -> int:
    """Bytes of a size such as ``8GB``, ``800 MB`` or ``2GiB``.

    Raises:
        ConfigError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)\s*", text.upper())
    unit = match[2] if match else None
    if unit and not unit.endswith("B"):
        unit += "B"
    if match is None or unit not in _UNITS:
        raise ConfigError("memory must be a size in bytes", got=text, remedy="e.g. 8GB or 800MB")
    return int(float(match[1]) * _UNITS[unit])


def say(size: float) -> str:
    """A size for people, such as ``2.1 GB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{math.ceil(size / 1e6)} MB"


#: Written as ``8GB`` on the command line.
BYTES = Unit(str, lambda text, flag: parse(text), lambda size: f"{size / 1e9:g}GB")

MemoryLimit = Annotated[
    int, Option("Memory that it may take: batches are made smaller to fit, or refused.", RUN, unit=BYTES)
]
