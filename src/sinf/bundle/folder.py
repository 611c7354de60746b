"""The folder of a bundle, of either method: how it is checked, and refused. :mod:`sinf.bundle.writing` writes it.

``config.json`` holds the sha256 of every other file and its own digest (:mod:`sinf.storage.seal`), so that whatever is
damaged or edited is refused before anything is made of it. A model that a bundle names is made by sinf or by a library
that is installed; what would run or fetch anything else is refused unless the caller allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sinf.bundle.records import ClassNames, Provenance
from sinf.errors import BundleError, DataError, ModelError, SinfError, StorageError
from sinf.models import ModelSpec
from sinf.models.plain import FORMAT as PLAIN_FORMAT
from sinf.storage.files import sha256
from sinf.storage.schema import Digest, Name, Record, parse_file, shortened, validated
from sinf.storage.seal import unsealed

FORMAT = 7
CONFIG = "config.json"


class ConfigRecord(Record):
    """What ``config.json`` of every bundle holds."""

    sinf_format: Literal[7]
    method: str
    model: dict[Name, JsonValue]  # ModelSpec.from_json reads it
    classes: ClassNames
    provenance: Provenance
    sha256: dict[Name, Digest]


# ---- config.json


def read_config(folder: Path, schema: type[ConfigRecord], files: tuple[str, ...], key: bytes | None = None) -> Any:
    """The ``config.json`` of a bundle, as an instance of ``schema``; it and all ``files`` are as they were written.

    Raises:
        BundleError: not a bundle, another format or method, or a file that is missing, damaged or changed.
    """
    record, _ = _open_config(folder, key)
    method, wanted = record.get("method"), schema.model_fields["method"].default
    if method != wanted:
        raise BundleError(
            f"a bundle of the method {wanted} is needed",
            got=f"one of the method {shortened(method, 80)}",
            remedy="open it with sinf.from_pretrained",
        )
    config = validated(record, schema, BundleError, str(folder / CONFIG), remedy="build it again")
    _check_files(folder, config.sha256, files)
    return config


def require_readable(config: dict[str, Any], schema: type[ConfigRecord]) -> None:
    """Refuse a config that was written but could not be read again."""
    validated(config, schema, BundleError, CONFIG, remedy="nothing was written")


def config_digest(folder: Path, key: bytes | None = None) -> str:
    """The digest of a bundle's ``config.json``, which stands for the whole bundle."""
    return _open_config(folder, key)[1]


def _open_config(folder: Path, key: bytes | None) -> tuple[dict[str, Any], str]:
    """What stands in ``config.json``, and its digest."""
    path = folder / CONFIG
    if not path.is_file():
        raise BundleError("a bundle must be a folder with a config.json", got=folder, remedy="name the bundle's folder")
    record = parse_file(path, BundleError, remedy="copy or build the bundle again")
    if isinstance(record, dict) and record.get("format") == PLAIN_FORMAT:
        raise BundleError(
            "a bundle must have been written by sinf build",
            got=f"{folder}, a pruned model",
            remedy="open it with sinf.from_pretrained",
        )
    if not isinstance(record, dict) or "sinf_format" not in record:
        raise BundleError("a bundle must have been written by sinf", got=f"{path} of something else")
    written = record["sinf_format"]
    if type(written) is not int or written != FORMAT:
        older = type(written) is int and written < FORMAT
        raise BundleError(
            f"this version of sinf reads format {FORMAT}",
            got=shortened(repr(written), 80),
            remedy="build the bundle again with this version" if older else "install the version that wrote it",
        )
    return unsealed(record, BundleError, str(path), key)


def _check_files(folder: Path, digests: dict[str, str], names: tuple[str, ...]) -> None:
    if set(digests) != set(names):
        got = ", ".join(sorted(set(digests) ^ set(names)))
        raise BundleError("a bundle must list all its files", got=shortened(got), remedy="build it again")
    for name in names:
        path = folder / name
        if not path.is_file():
            raise BundleError("a bundle must be whole", got=f"{name} is missing in {folder}", remedy="copy it again")
        if sha256(path) != digests[name]:
            raise BundleError(
                "a bundle must be as it was written",
                got=f"{name} in {folder} is damaged or was changed",
                remedy="copy or build it again",
            )


# ---- kinds of folders


@dataclass(frozen=True)
class Kind:
    """A kind of folder: what it is called in messages, whose errors it has, and which ``config.json`` is of it, of any
    version, so that a folder of an earlier one can be written again."""

    what: str
    error: type[SinfError]
    owns: Callable[[dict[str, Any]], bool]


BUNDLE = Kind("bundle", BundleError, lambda config: "sinf_format" in config)
PRUNED = Kind(
    "pruned model",
    StorageError,
    lambda config: str(config.get("format")).startswith(PLAIN_FORMAT.rstrip("0123456789")),
)


def _any_config(folder: Path) -> dict[str, Any]:
    """What stands in ``config.json`` of anything; empty where there is none, or a damaged one."""
    try:
        record = parse_file(folder / CONFIG, BundleError)
    except BundleError:
        return {}
    return record if isinstance(record, dict) else {}


def method_of(folder: Path) -> str | None:
    """The method that ``config.json`` names, ``static`` of a plain model; None where there is no such file, or another
    one."""
    config = _any_config(folder)
    if PRUNED.owns(config):
        return "static"
    return str(config.get("method")) if BUNDLE.owns(config) else None


# ---- the model


def spec_of(config: ConfigRecord, allow_factory: bool) -> ModelSpec:
    """The model that a bundle names.

    Raises:
        BundleError: it is none that a file may name, it runs code of the user's own and ``allow_factory`` does not
            permit that, or it has other classes than the bundle.
    """
    spec = ModelSpec.from_json(config.model)
    if spec.is_factory and not allow_factory:
        raise BundleError(
            "a bundle with a model of your own code runs that code",
            got=shortened(spec.name, 100),
            remedy="pass allow_factory=True (--allow-factory) if you trust it",
        )
    if len(config.classes) != spec.classes:
        raise BundleError(
            "a bundle's classes must be those of its model",
            got=f"{len(config.classes)} names, {spec.classes} classes",
            remedy="build it again",
        )
    return spec


@contextmanager
def consistent(which: str) -> Iterator[None]:
    """Where what a bundle says is put together: what does not fit becomes one line. ``which`` names the bundle."""
    try:
        yield
    except ModelError as error:
        raise BundleError(f"the bundle {which} contradicts itself", got=error, remedy="build it again") from error
    except SinfError:
        raise
    except Exception as error:  # torch and libraries raise many types for values that do not fit
        got = shortened(f"{type(error).__name__}: {error}")
        raise BundleError(f"the bundle {which} contradicts itself", got=got, remedy="build it again") from error


# ---- tensors


def map_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"{path} must hold tensors", got=shortened(error), remedy="build it again") from error


def require_fit(tensors: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    """Refuse tensors of other names, types or shapes than ``wanted`` (which may be on the device meta), or that are
    not finite."""
    names = sorted(tensors.keys() ^ wanted.keys())
    if names:
        raise BundleError(
            f"{what} must hold the tensors of its model", got=shortened(f"{names[0]} is too much or missing")
        )
    for name, tensor in tensors.items():
        require_tensor(tensor, wanted[name].dtype, tuple(wanted[name].shape), f"{name} in {what}")


def require_tensor(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], what: str) -> None:
    """Refuse a tensor of another type or shape, or that is not finite; ``what`` names it."""
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        got = f"{tensor.dtype} {tuple(tensor.shape)} instead of {dtype} {shape}"
        raise BundleError(f"{shortened(what)} must fit its model", got=got, remedy="build it again")
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise BundleError(f"{shortened(what)} must be finite", got="NaN or infinity", remedy="build it again")


# ---- places


def folder_of(source: str | Path) -> Path:
    """The folder of a bundle, from the hub when there is no such folder here."""
    folder = Path(source)
    if not folder.exists() and str(source).count("/") == 1 and not str(source).startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(source)))
        except Exception as error:  # the hub client raises many types for "cannot be had"
            raise DataError(f"no bundle {source}, in a folder or on the hub", got=type(error).__name__) from error
    return folder


def require_place(folder: Path, kind: Kind = BUNDLE) -> None:
    """Refuse a folder that holds anything but one of a kind."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not kind.owns(_any_config(folder)))):
        raise kind.error(
            f"only a {kind.what} may be replaced", got=f"{folder} holds other files", remedy="name another"
        )
