"""What every training here shares: checkpoints without pickle, and draws that depend on the seed and the epoch alone,
so that a run that was killed and started again ends with the weights of a run that was not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sinf.data.augmentation import augment
from sinf.data.images import LabelledImages, Pixels, Preprocessing
from sinf.errors import ConfigError
from sinf.models import ModelSpec
from sinf.storage.tensors import read_checked, write_checked

NAME = "checkpoint.safetensors"


def open_folder(folder: str | Path) -> Path:
    """The folder of a run, made if it is not there."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder must be writable: {folder}", got=error, remedy="name another") from error
    return folder


def require_device(device: str) -> None:
    """Refuse a device that is not there."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that a build has CUDA
        reason = str(error).splitlines()[0]
        raise ConfigError(f"no device {device!r}", got=reason, remedy="take cpu") from error


def fingerprint(spec: ModelSpec, recipe: dict[str, Any], images: LabelledImages, **more: Any) -> str:
    """What tells a run from others. The device is not in it: a run may go on on another one."""
    record = {"model": spec.to_json(), "recipe": {**recipe, "device": None}, "images": images.fingerprint(), **more}
    return json.dumps(record, sort_keys=True)


def momenta(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The momentum of every parameter that has one, as ``momentum.NAME``."""
    tensors = {}
    for name, parameter in model.named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{name}"] = buffer
    return tensors


def load_momenta(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of :func:`momenta`."""
    for name, parameter in model.named_parameters():
        buffer = tensors.get(f"momentum.{name}")
        if buffer is not None:
            buffer = buffer.to(parameter.device)
            if parameter.ndim == 4:
                buffer = buffer.contiguous(memory_format=torch.channels_last)
            optimizer.state[parameter]["momentum_buffer"] = buffer


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], run: str, epochs_done: int) -> None:
    """Everything that a run must know to go on; ``run`` tells which run it is."""
    write_checked(tensors, folder / NAME, {"epochs_done": str(epochs_done), "run": run})


def read_checkpoint(folder: Path, run: str) -> tuple[dict[str, Tensor], int] | None:
    """The tensors and the number of epochs done, None where the run has not begun.

    Raises:
        ConfigError: the checkpoint is damaged, or that of another run.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        tensors, metadata = read_checked(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"the checkpoint {path} is damaged", got=error, remedy="remove it to start again") from error
    if metadata.get("run") != run:
        raise ConfigError(
            "a folder holds one training run",
            got=f"{folder} with a checkpoint of other options or images",
            remedy="name another folder, or repeat the options of the first call",
        )
    return tensors, int(metadata["epochs_done"])


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def epoch_batches(
    pixels: Tensor | Pixels, labels: Tensor, preprocessing: Preprocessing, batch: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cropped and flipped, normalised batches (channels_last) with labels, in an order drawn for this epoch; images
    that do not fill a batch are left out."""
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    for start in range(0, len(labels) - batch + 1, batch):
        rows = order[start : start + batch]
        x = preprocessing.normalise(augment(pixels[rows], generator))
        yield x.contiguous(memory_format=torch.channels_last), labels[rows]
