"""The ``config.json`` of every folder that holds a model of ours: by which method it was made, of which base model,
for which classes, and the sha256 of every other file; :mod:`sinf.storage.seal` shows that it is as it was written.

What a method adds is its own schema. Nothing here needs torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, JsonValue

from sinf.errors import BundleError, SinfError
from sinf.storage.files import sha256
from sinf.storage.schema import MAX_CLASSES, Digest, Name, Record, Text, parse_file, shortened, validated
from sinf.storage.seal import unsealed

FORMAT = 8
CONFIG, CARD = "config.json", "README.md"
_LONGEST_CARD = 1 << 20


def distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names, none of which stands twice."""
    if len(set(names)) < len(names):
        raise ValueError("names must differ")
    return names


ClassNames = Annotated[
    tuple[Text, ...], Field(fail_fast=True, min_length=1, max_length=MAX_CLASSES), AfterValidator(distinct)
]
Provenance = Annotated[dict[Name, Annotated[str, Field(max_length=10_000)]], Field(max_length=1000)]


class ConfigRecord(Record):
    """What all methods say."""

    sinf_format: Literal[8]
    method: str
    model: dict[Name, JsonValue]  # ModelSpec.from_json reads it
    classes: ClassNames
    provenance: Provenance
    sha256: dict[Name, Digest]


Config = TypeVar("Config", bound=ConfigRecord)


def read_config(
    folder: Path,
    schema: type[Config],
    files: tuple[str, ...],
    key: bytes | None = None,
    error: type[SinfError] = BundleError,
) -> Config:
    """The ``config.json`` of a folder, as an instance of ``schema``; it and all ``files`` are as they were written.
    With a ``key``, what is not signed with it is refused.

    Raises:
        error: not a bundle, another format or method, or a file that is missing, damaged or changed.
    """
    record, _ = _open_config(folder, key, error)
    method, wanted = record.get("method"), schema.model_fields["method"].default
    if method != wanted:
        raise error(
            f"a bundle of the method {wanted} is needed",
            got=f"one of the method {shortened(method, 80)}",
            remedy="open it with sinf.from_pretrained",
        )
    config = validated(record, schema, error, str(folder / CONFIG), remedy="build it again")
    _check_files(folder, config.sha256, files, error)
    return config


def read_card(folder: Path) -> str | None:
    """The text of a folder's model card; None where there is none, or one that is too long or no text."""
    try:
        with (folder / CARD).open("rb") as file:
            content = file.read(_LONGEST_CARD + 1)
        return None if len(content) > _LONGEST_CARD else content.decode()
    except (OSError, UnicodeDecodeError):
        return None


def require_readable(config: dict[str, Any], schema: type[ConfigRecord]) -> None:
    """Refuse a config that was written but could not be read again."""
    validated(config, schema, BundleError, CONFIG, remedy="nothing was written")


def config_digest(folder: Path, key: bytes | None = None) -> str:
    """The digest of a folder's ``config.json``, which stands for the whole folder."""
    return _open_config(folder, key, BundleError)[1]


def method_of(folder: Path) -> str | None:
    """The method that ``config.json`` names, in whichever version of the format; None where there is no such file, or
    another one."""
    try:
        return _method(parse_file(folder / CONFIG, BundleError))
    except BundleError:
        return None


def _method(record: Any) -> str | None:
    if not isinstance(record, dict):
        return None
    if str(record.get("format")).startswith("sinf-plain-"):  # plain models had a format of their own before format 8
        return "static"
    return str(record.get("method")) if "sinf_format" in record else None


def _open_config(folder: Path, key: bytes | None, error: type[SinfError]) -> tuple[dict[str, Any], str]:
    """What stands in ``config.json``, and its digest."""
    path = folder / CONFIG
    if not path.is_file():
        raise error("a bundle must be a folder with a config.json", got=folder, remedy="name the bundle's folder")
    record = parse_file(path, error, remedy="copy or build the bundle again")
    if _method(record) is None:
        raise error("a bundle must have been written by sinf", got=f"{path} of something else")
    written = record.get("sinf_format", record.get("format"))
    if type(written) is not int or written != FORMAT:
        newer = type(written) is int and written > FORMAT
        raise error(
            f"this version of sinf reads format {FORMAT}",
            got=shortened(repr(written), 80),
            remedy="install the version that wrote it" if newer else "build the bundle again with this version",
        )
    return unsealed(record, error, str(path), key)


def _check_files(folder: Path, digests: dict[str, str], names: tuple[str, ...], error: type[SinfError]) -> None:
    if set(digests) != set(names):
        got = ", ".join(sorted(set(digests) ^ set(names)))
        raise error("a bundle must list all its files", got=shortened(got), remedy="build it again")
    for name in names:
        path = folder / name
        if not path.is_file():
            raise error("a bundle must be whole", got=f"{name} is missing in {folder}", remedy="copy it again")
        if sha256(path) != digests[name]:
            raise error(
                "a bundle must be as it was written",
                got=f"{name} in {folder} is damaged or was changed",
                remedy="copy or build it again",
            )
