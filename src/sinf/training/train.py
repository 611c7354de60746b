"""Training a network, plainly and well: SGD with Nesterov momentum, one-cycle, label smoothing, crop and flip; from
scratch, or from weights that are there, with a teacher to learn from if one is given.

A checkpoint is written after every epoch, without pickle, and every random draw depends on the seed and the epoch
alone: a run that was killed and started again ends with the weights of a run that was not.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sinf.data.images import LabelledImages, Pixels
from sinf.errors import ConfigError
from sinf.models import BaseModel, ModelSpec, fit_state, load_spec
from sinf.storage.files import hash_tensors, write_tensors
from sinf.training.checkpoint import (
    epoch_batches,
    load_momenta,
    momenta,
    open_folder,
    read_checkpoint,
    with_prefix,
    write_checkpoint,
)
from sinf.training.recipe import TrainConfig as TrainConfig

_LOOP = 2  # raised when a checkpoint of an earlier one would not go on as it began


@dataclass(frozen=True)
class Teacher:
    """A model whose answers count beside the labels (Hinton et al., 2015, arXiv 1503.02531):

    loss = (1 - weight) CE(student, labels) + weight T^2 KL(teacher / T || student / T)
    """

    model: nn.Module
    weight: float = 0.9
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1 or not 0.1 <= self.temperature <= 100:
            raise ConfigError(
                "a teacher's weight must be in 0..1 and its temperature in 0.1..100",
                got=f"{self.weight}, {self.temperature}",
                remedy="take 0.9 and 4",
            )

    def loss(self, logits: Tensor, answers: Tensor, hard: Tensor) -> Tensor:
        """``hard`` is the loss of the labels; ``logits`` and ``answers`` are (B, classes)."""
        t = self.temperature
        soft = F.kl_div(
            (logits / t).log_softmax(1), (answers / t).log_softmax(1), log_target=True, reduction="batchmean"
        )
        return (1 - self.weight) * hard + self.weight * t * t * soft


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to; ``top1`` is None where there are no validation images."""

    epoch: int
    epochs: int
    loss: float
    top1: float | None
    seconds: float


def train(
    spec: ModelSpec,
    images: LabelledImages,
    folder: str | Path,
    config: TrainConfig,
    *,
    start: dict[str, Tensor] | None = None,
    teacher: Teacher | None = None,
    validation: LabelledImages | None = None,
    report: Callable[[EpochReport], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BaseModel:
    """Train from scratch or from the weights ``start``, or go on from the checkpoint in ``folder``; the result is
    ``folder/model.safetensors``.

    ``report`` is called after every epoch, ``progress`` after every step with (steps done, steps in all).
    """
    if images.classes > spec.classes:
        raise ConfigError(
            "the model must have the classes of the data",
            got=f"{spec.classes} of {images.classes}",
            remedy="make it with as many",
        )
    if len(images) < config.batch:
        raise ConfigError("a batch must not be larger than the data", got=config.batch, remedy="take a smaller batch")
    folder = open_folder(folder)
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    model = load_spec(spec, start if spec.is_factory else None)
    if start is not None:
        model.load_state_dict(start)
    model = model.requires_grad_(True).to(device, memory_format=torch.channels_last)
    run = _Run(model, config, steps_per_epoch=len(images) // config.batch, teacher=_ready(teacher, device))
    fingerprint = _fingerprint(spec, config, images, start, teacher)
    first = _resume(folder, run, fingerprint)
    pixels = Pixels(images, spec.preprocessing, config.device)
    labels = images.labels.to(device)
    for epoch in range(first, config.epochs):
        begin = time.perf_counter()
        loss = _epoch(run, pixels, labels, spec, epoch, progress)
        top1 = None
        if validation is not None:
            top1 = _top1(run.result, validation, spec, device)
        write_checkpoint(folder, run.tensors(), fingerprint, epoch + 1)
        if report is not None:
            report(EpochReport(epoch + 1, config.epochs, loss, top1, time.perf_counter() - begin))
    final = run.result.to("cpu", memory_format=torch.contiguous_format).eval()
    write_tensors(final.state_dict(), folder / "model.safetensors", {"sinf_model": json.dumps(spec.to_json())})
    return BaseModel(final, spec)


class _Run:
    """All that changes while training."""

    def __init__(
        self, model: nn.Module, config: TrainConfig, steps_per_epoch: int, teacher: Teacher | None = None
    ) -> None:
        self.model, self.config, self.steps_per_epoch, self.teacher = model, config, steps_per_epoch, teacher
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
        )
        self.averaged: AveragedModel | None = None
        self.schedule = self._one_cycle(0)
        if config.average:
            average = get_ema_multi_avg_fn(config.average ** (1 / steps_per_epoch))
            self.averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    def _one_cycle(self, done: int) -> OneCycleLR:
        """The learning rate from the step after ``done`` on: a cosine up from a 25th, a cosine down to nearly zero."""
        config = self.config
        steps = max(2, config.epochs * self.steps_per_epoch)  # the last one of all changes nearly nothing
        # torch divides by what a warm-up takes beyond its first step.
        warmup = float(config.warmup) if config.warmup * steps > 1 else 0.0
        return OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=steps, pct_start=warmup, div_factor=25,
            final_div_factor=4000, cycle_momentum=False, last_epoch=done - 1,
        )  # fmt: skip

    @property
    def result(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.model if self.averaged is None else self.averaged.module

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        config = self.config
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bf16):
            logits = self.model(x).float()
            loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
            if self.teacher is not None:
                with torch.no_grad():
                    answers = self.teacher.model(x).float()
                loss = self.teacher.loss(logits, answers, loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return loss.detach()

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint must hold but the number of epochs, which places the learning rate."""
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"average.{key}": value for key, value in self.averaged.state_dict().items()}
        return tensors | momenta(self.model, self.optimizer)

    def load(self, tensors: dict[str, Tensor], epochs_done: int) -> None:
        fit_state(self.model, with_prefix(tensors, "model."), "the checkpoint")
        if self.averaged is not None:
            fit_state(self.averaged, with_prefix(tensors, "average."), "the checkpoint")
        load_momenta(self.model, self.optimizer, tensors)
        self.schedule = self._one_cycle(epochs_done * self.steps_per_epoch)


def _epoch(
    run: _Run,
    pixels: Pixels,
    labels: Tensor,
    spec: ModelSpec,
    epoch: int,
    progress: Callable[[int, int], None] | None,
) -> float:
    run.model.train()
    config = run.config
    total = torch.zeros((), device=labels.device)
    batches = epoch_batches(pixels, labels, spec.preprocessing, config.batch, config.seed, epoch)
    for step, (x, y) in enumerate(batches):
        total += run.step(x, y)
        if progress is not None:
            progress(epoch * run.steps_per_epoch + step + 1, config.epochs * run.steps_per_epoch)
    return float(total) / run.steps_per_epoch


@torch.no_grad()
def _top1(model: nn.Module, images: LabelledImages, spec: ModelSpec, device: torch.device) -> float:
    model.eval()
    right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in images.batches(spec.preprocessing))
    return right / len(images)


def _ready(teacher: Teacher | None, device: torch.device) -> Teacher | None:
    """A copy of its own, in eval mode, where the training is."""
    if teacher is None:
        return None
    model = copy.deepcopy(teacher.model).eval().requires_grad_(False)
    return replace(teacher, model=model.to(device, memory_format=torch.channels_last))


def _fingerprint(
    spec: ModelSpec,
    config: TrainConfig,
    images: LabelledImages,
    start: dict[str, Tensor] | None,
    teacher: Teacher | None,
) -> str:
    recipe = {**asdict(config), "device": None, "loop": _LOOP}
    record = {"model": spec.to_json(), "recipe": recipe, "images": images.fingerprint()}
    if start is not None:
        record["start"] = hash_tensors(start)
    if teacher is not None:
        taught = hash_tensors(teacher.model.state_dict())
        record["teacher"] = {"weights": taught, "weight": teacher.weight, "temperature": teacher.temperature}
    return json.dumps(record, sort_keys=True)


def _resume(folder: Path, run: _Run, fingerprint: str) -> int:
    """Load the checkpoint, if there is one of the same run, and return the number of epochs it has seen."""
    found = read_checkpoint(folder, fingerprint)
    if found is None:
        return 0
    run.load(*found)
    return found[1]


def save_half(model: BaseModel, path: str | Path) -> None:
    """Write a model's weights in float16: half the size, the same answers within rounding."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.module.state_dict().items()}
    write_tensors(state, Path(path), {"sinf_model": json.dumps(model.spec.to_json())})
