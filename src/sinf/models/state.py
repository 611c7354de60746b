"""Weights that travel as names and tensors: read, compared with a module, and loaded into it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sinf.errors import ModelError


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; any other file is refused, so that no pickle is ever loaded."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"weights must be a readable safetensors file: {path}",
            got=error,
            remedy="save them with safetensors.torch.save_file",
        ) from error


def fit_state(module: nn.Module, state: Mapping[str, Tensor], name: str, *, assign: bool = False) -> None:
    """Load tensors into a module, all of them or none; counters of batches may be missing.

    A state dict of torch carries the version of every module beside the tensors, by which modules such as
    torchvision's MNASNet know what they read. safetensors keep names only: the versions are the module's own.

    Raises:
        ModelError: something does not fit; all of it in one message.
    """
    own = module.state_dict()
    require_shapes(own, state, name)
    versioned = OrderedDict(state)
    versioned._metadata = getattr(own, "_metadata", None)  # type: ignore[attr-defined]
    module.load_state_dict(versioned, strict=False, assign=assign)


def require_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str) -> None:
    """Refuse tensors that are not those of a module, before any is copied.

    Raises:
        ModelError: the message lists what is missing, unexpected or of another shape.
    """
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - own.keys())
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise ModelError(
            f"the weights must be those of {name}",
            got="; ".join(problems),
            remedy="name the architecture that they were trained with",
        )


def head_size(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of weights that are a module's own but for it: all that differs is how many outputs the
    layers have that have as many as classes. None where nothing or something else differs."""
    if own.keys() != state.keys() and not own.keys() - state.keys() <= {k for k in own if "num_batches_tracked" in k}:
        return None
    shapes = [(own[key].shape, state[key].shape) for key in own.keys() & state.keys()]
    other = [(network, given) for network, given in shapes if network != given]
    sizes = {(network[:1], given[:1]) for network, given in other}
    if len(sizes) != 1 or any(network[1:] != given[1:] for network, given in other):
        return None
    return int(other[0][1][0])


def require_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite."""
    broken = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise ModelError("weights must be finite", got=f"NaN or infinity in {broken[0]}", remedy="train again")
