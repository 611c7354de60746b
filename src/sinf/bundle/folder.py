"""What is made of a bundle's folder: the model that ``config.json`` names, and tensors that fit it. Where it lies, and
which folder may be replaced.

Whatever is damaged or edited is refused before anything is made of it (:mod:`sinf.storage.config`). A model that a
bundle names is made by sinf or by a library that is installed; what would run or fetch anything else is refused unless
the caller allows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sinf.errors import BundleError, DataError, ModelError, SinfError
from sinf.models import ModelSpec
from sinf.storage.config import ConfigRecord, method_of
from sinf.storage.schema import shortened

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


def require_place(folder: Path) -> None:
    """Refuse a folder that holds anything but a model that sinf wrote, of any method and version.

    Raises:
        BundleError: it holds something else, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and method_of(folder) is None)):
        raise BundleError("only a bundle may be replaced", got=f"{folder} holds other files", remedy="name another")
