"""JSON files of ours are read through a schema: whatever else stands there is refused in one line.

A file is bounded before it is parsed (bytes, depth), and every value after it (type, range, length), so that nothing
is allocated because a file says so. Values are strict: no number is read from a string, none is NaN or infinite, no key
is unknown or stands twice.

Nothing here needs torch.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import fields
from functools import reduce
from operator import or_
from pathlib import Path
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from sinf.errors import SinfError

T = TypeVar("T")

#: A description of a network of some thousand steps is a megabyte.
MAX_BYTES = 8 << 20
MAX_DEPTH = 40
#: Of all lists and objects together: an empty list in three bytes of a file takes sixty of memory.
MAX_ITEMS = 300_000

Text = Annotated[str, Field(max_length=1000)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
MAX_CLASSES = 100_000
Classes = Annotated[int, Field(ge=1, le=MAX_CLASSES)]
Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """An object of a file: these keys and no others, all of them unless they have a default.

    Every list in it is ``fail_fast``: a message for each of two hundred thousand wrong values takes 180 MB.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def read_json(path: Path, schema: Any, error: type[SinfError], *, remedy: str = "copy it again") -> Any:
    """What a file holds, as an instance of ``schema``: a :class:`Record`, or any type that pydantic validates.

    Raises:
        error: there is no such file, it is too large, no JSON, or not what the schema says; one line with the place
            of the first value that is wrong.
    """
    return validated(parse_file(path, error, remedy=remedy), schema, error, str(path), remedy=remedy)


def parse_file(path: Path, error: type[SinfError], *, remedy: str = "copy it again") -> Any:
    """What a file of bounded size and depth holds; nothing is said of its values.

    Raises:
        error: see :func:`read_json`.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise OSError("no such file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as problem:
        raise error(f"{path} must be readable JSON", got=problem, remedy=remedy) from problem
    return parse(content, error, str(path), remedy=remedy)


def parse(content: bytes, error: type[SinfError], where: str, *, remedy: str = "copy it again") -> Any:
    """As :func:`parse_file`, of what was read; ``where`` names it in messages."""
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES >> 20} MB")
        text = content.decode()
        if _too_deep(text):
            raise ValueError(f"more than {MAX_DEPTH} levels")
        if sum(map(text.count, "[{,")) > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS:,} items")
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)
    except ValueError as problem:
        raise error(f"{where} must be readable JSON", got=shortened(problem), remedy=remedy) from problem


def validated(value: Any, schema: Any, error: type[SinfError], where: str, *, remedy: str = "copy it again") -> Any:
    """A parsed value as an instance of ``schema``.

    Raises:
        error: see :func:`read_json`; errors of ours that the schema's own checks raise become this one.
    """
    try:
        return TypeAdapter(schema).validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        got = shortened(f"{place}: {first['msg']}, not {shortened(repr(first['input']), 80)}", 300)
        raise error(f"{where} must be as sinf writes it", got=got, remedy=remedy) from problem
    except (SinfError, ValueError) as problem:  # a check of a dataclass; infinity
        raise error(f"{where} must be as sinf writes it", got=shortened(problem), remedy=remedy) from problem


def record_of(made: type[T], **limits: Any) -> Any:
    """A dataclass as a schema: all its fields, with the bounds of ``limits`` (an annotated type by a field's name) or
    those that a number, a text or a list has anywhere in our files. What is read is the dataclass, ``__post_init__``
    included."""
    hints = get_type_hints(made)
    parts: dict[str, Any] = {f.name: (limits.get(f.name, _bounded(hints[f.name])), ...) for f in fields(made)}  # type: ignore[arg-type]
    record = create_model(made.__name__, __base__=Record, **parts)
    return Annotated[record, AfterValidator(lambda read: made(**{name: getattr(read, name) for name in parts}))]


def _bounded(hint: Any) -> Any:
    """A type with bounds that no honest value reaches."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return reduce(or_, map(_bounded, inner))
    if origin is tuple and inner[-1] is ...:
        return Annotated[GenericAlias(tuple, (_bounded(inner[0]), ...)), Field(fail_fast=True, max_length=100_000)]
    if origin is tuple:
        return GenericAlias(tuple, tuple(_bounded(each) for each in inner))
    bounds = {int: Field(ge=-(2**53), le=2**53), float: Field(ge=-1e12, le=1e12), str: Field(max_length=1000)}
    if hint in (bool, NoneType):
        return hint
    if hint not in bounds:
        raise TypeError(f"a field of the type {hint} needs a schema of its own")
    return Annotated[hint, bounds[hint]]


def shortened(problem: object, length: int = 200) -> str:
    """One line of a message, not longer than ``length``."""
    text = " ".join(str(problem)[: 4 * length].split())
    return text if len(text) <= length else text[: length - 3] + "..."


_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


def _too_deep(text: str) -> bool:
    """Whether lists and objects are nested more than :data:`MAX_DEPTH` deep; brackets in strings do not count."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        kind = match.group()
        if kind in "[{":
            depth += 1
        elif kind in "]}":
            depth -= 1
        if depth > MAX_DEPTH:
            return True
    return False


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0]!r} stands there twice")
    return record


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number[:40]} is no number")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
