"""What an option is. Its one home is a field of a dataclass, or a parameter of a verb, and its annotation says what the
command line has to know besides the name, the type and the default:

    max_loss: Annotated[float, Option("Accuracy that may be lost, in percentage points.", unit=POINTS)] = 0.01

Python, the command line (:mod:`sinf.cli.verb`) and run files take it from there. A config may hold others, whose
options are its own on the command line. A field without an ``Option`` is for Python alone. Modules with such fields
import no torch, so that ``--help`` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from sinf.errors import ConfigError


@dataclass(frozen=True)
class Unit:
    """How a value is written on the command line and in run files: as a ``kind``, of which ``read`` makes the value,
    given the flag for its error; ``say`` is the inverse."""

    kind: type
    read: Callable[[Any, str], Any]
    say: Callable[[Any], Any]


@dataclass(frozen=True)
class Option:
    """What is said of an option.

    Attributes:
        help: one sentence.
        panel: the heading under which ``--help-all`` lists it; none for the first page.
        flag: its name on the command line, where that is not the field's.
        unit: how it is written, where that is not as in Python.
        otherwise: what None stands for.
        low, high: limits that nothing else checks.
        positional: whether it is given by its place.
    """

    help: str
    panel: str = ""
    flag: str = ""
    unit: Unit | None = None
    otherwise: str = ""
    low: float | None = None
    high: float | None = None
    positional: bool = False


#: Headings, in their order.
HEADINGS = "Model", "Data", "Images", "Compression", "Gates", "Training", "Run"
MODEL, DATA, IMAGES, COMPRESSION, GATES, TRAINING, RUN = HEADINGS

Seed = Annotated[int, Option("Seed of all random draws.", RUN)]
Threads = Annotated[int, Option("Threads of the processor, as many as where it will run.", RUN, low=1)]
AnyThreads = Annotated[int | None, Option("Threads of the processor.", RUN, otherwise="all", low=1)]

#: Percentage points; in Python a fraction.
POINTS = Unit(float, lambda points, flag: points / 100, lambda fraction: round(100 * fraction, 9))


def numbers(kind: type, count: int | None = None) -> Unit:
    """Numbers with commas between, such as a size or a mean; in Python a tuple."""

    def read(text: str, flag: str) -> tuple[Any, ...]:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or (count is not None and len(values) != count):
            raise ConfigError(f"{flag} must be numbers with commas between", got=text, remedy="e.g. 3,32,32")
        return values

    return Unit(str, read, lambda values: ",".join(f"{value:g}" for value in values))


def require_ranges(config: Any, **ranges: tuple[float, float]) -> None:
    """Refuse a config with a field that is not between the limits given for it.

    Raises:
        ConfigError: names the field.
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise ConfigError(f"{name} must be in {low}..{high}", got=value, remedy=f"change {name}")
