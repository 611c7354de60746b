"""The loop of every training with gradients: batches, precision, the learning rate, averaged weights, several
processes, checkpoints and reports. What is trained, and by which loss, is an :class:`Objective`.

A checkpoint is written after every epoch, and every random draw depends on the seed and the epoch alone: a run that was
killed and started again ends with the weights of a run that was not.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sinf.data.images import LabelledImages, Pixels, Preprocessing
from sinf.errors import ConfigError
from sinf.models import ModelSpec, fit_state
from sinf.training.checkpoint import (
    epoch_batches,
    load_momenta,
    momenta,
    open_folder,
    read_checkpoint,
    with_prefix,
    write_checkpoint,
)
from sinf.training.distributed import Group, shared_statistics

Parameters = list[nn.Parameter]


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to; ``top1`` is None where there are no validation images."""

    epoch: int
    epochs: int
    loss: float
    top1: float | None
    seconds: float


class Recipe(Protocol):
    """Options that every training has."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def bf16(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def device(self) -> str: ...


class Objective(ABC):
    """What one training adds to the loop: a network, its loss, and what else its checkpoints hold."""

    model: nn.Module

    @abstractmethod
    def parameters(self) -> tuple[Parameters, Parameters]:
        """Those that decay, and those that do not."""

    @abstractmethod
    def schedule(self, optimizer: torch.optim.Optimizer, steps: int, done: int) -> LRScheduler:
        """The learning rate of ``steps`` steps in all, from the step after ``done`` on."""

    def answer(self, x: Tensor) -> Any:
        """What the loss is computed from, of images (b, C, H, W); runs in the precision of the recipe."""
        return self.model(x).float()

    @abstractmethod
    def loss(self, answer: Any, labels: Tensor, whole: int) -> Tensor:
        """Of the images (b,) of an answer, their share of the loss of the whole batch of so many."""

    def stepped(self, done: int) -> None:  # noqa: B027 (most have nothing to do)
        """Called after every step, with the number of steps done."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside weights and momenta."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027
        """The inverse of :meth:`tensors`."""


def require_images(spec: ModelSpec, images: LabelledImages, recipe: Recipe) -> None:
    """Refuse images that a model cannot be trained on."""
    if images.classes > spec.classes:
        got = f"{spec.classes} of {images.classes}"
        raise ConfigError("the model must have the classes of the data", got=got, remedy="make it with as many")
    if len(images) < recipe.batch:
        raise ConfigError("a batch must not be larger than the data", got=recipe.batch, remedy="take a smaller --batch")


class Loop:
    """All that changes while an objective is trained, by SGD with Nesterov momentum.

    ``average`` is the decay an epoch of an average of the weights, 0 for none. A process's share of a batch runs in
    parts of at most ``part`` images, whose gradients are added; batch norms take their statistics from a part.
    """

    def __init__(
        self,
        objective: Objective,
        recipe: Recipe,
        steps_per_epoch: int,
        *,
        average: float = 0.0,
        group: Group | None = None,
        part: int | None = None,
    ) -> None:
        self.objective, self.recipe, self.steps_per_epoch = objective, recipe, steps_per_epoch
        self.group = Group() if group is None else group
        self.part = recipe.batch if part is None else part
        self.epochs_done = 0
        self.model = objective.model.to(recipe.device, memory_format=torch.channels_last)
        decayed, plain = objective.parameters()
        self.parameters = [*decayed, *plain]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(
            [each for each in groups if each["params"]],
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
        )
        self._place_rate()
        self.averaged: AveragedModel | None = None
        if average:
            each = get_ema_multi_avg_fn(average ** (1 / steps_per_epoch))
            self.averaged = AveragedModel(self.model, multi_avg_fn=each, use_buffers=True)

    def _place_rate(self) -> None:
        steps = self.recipe.epochs * self.steps_per_epoch
        self.schedule = self.objective.schedule(self.optimizer, steps, self.epochs_done * self.steps_per_epoch)

    @property
    def result(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.model if self.averaged is None else self.averaged.module

    # ---- training

    def run(
        self,
        images: LabelledImages,
        preprocessing: Preprocessing,
        *,
        validate: Callable[[nn.Module], float] | None = None,
        report: Callable[[EpochReport], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Train the epochs that are left; :meth:`open` has named the folder of the checkpoints.

        Raises:
            ConfigError: the loss is not finite.
        """
        recipe, first = self.recipe, self.group.rank == 0
        pixels, labels = Pixels(images, preprocessing, recipe.device), images.labels.to(recipe.device)
        with torch.random.fork_rng(devices=[]), self.slower_norms(), shared_statistics(self.model, self.group):
            while self.epochs_done < recipe.epochs:
                begin = time.perf_counter()
                torch.manual_seed(recipe.seed * 100_003 + self.epochs_done)  # of dropout, if there is any
                batches = epoch_batches(pixels, labels, preprocessing, recipe.batch, recipe.seed, self.epochs_done)
                loss = self._epoch(batches, torch.zeros((), device=labels.device), progress)
                top1 = None if validate is None else validate(self.result)
                self.epochs_done += 1
                self.save()
                if report is not None and first:
                    seconds = time.perf_counter() - begin
                    report(EpochReport(self.epochs_done, recipe.epochs, loss, top1, seconds))

    def _epoch(
        self,
        batches: Iterator[tuple[Tensor, Tensor]],
        total: Tensor,
        progress: Callable[[int, int], None] | None,
    ) -> float:
        """The mean loss."""
        self.model.train()
        before, steps = self.epochs_done * self.steps_per_epoch, self.steps_per_epoch
        for done, (x, y) in enumerate(batches, before + 1):
            total += self.step(x, y)
            self.objective.stepped(done)
            if progress is not None:
                progress(done, self.recipe.epochs * steps)
        loss = float(self.group.total(total)) / steps
        if not math.isfinite(loss):  # no checkpoint of it: the run goes on from the one before
            raise ConfigError("the loss must be finite", got=loss, remedy="lower --learning-rate")
        return loss

    def step(self, x: Tensor, labels: Tensor) -> Tensor:
        """One step on a whole batch; this process's share of the loss."""
        whole = len(x)
        x, labels = self.group.share(x), self.group.share(labels)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=x.device)
        for px, py in zip(x.split(self.part), labels.split(self.part), strict=True):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.bf16):
                answer = self.objective.answer(px)
            loss = self.objective.loss(answer, py, whole)
            loss.backward()
            total += loss.detach()
            del answer, loss
        self.group.add_gradients(self.parameters)
        self.optimizer.step()
        self.schedule.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return total

    @contextmanager
    def slower_norms(self) -> Iterator[None]:
        """While inside, batch norms that see a batch in parts follow it as fast as if they saw it whole."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        parts = math.ceil(self.recipe.batch / self.group.world / self.part)
        for norm in norms if parts > 1 else ():
            norm.momentum = None if norm.momentum is None else 1 - (1 - norm.momentum) ** (1 / parts)
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    # ---- checkpoints

    def open(self, folder: str | Path, fingerprint: str) -> bool:
        """Name the folder of the checkpoints, and go on from the one that is there, if there is one.

        Raises:
            ConfigError: the folder cannot be written, or its checkpoint is damaged or that of another run.
        """
        self._place = open_folder(folder), fingerprint
        checkpoint = read_checkpoint(*self._place)
        if checkpoint is None:
            return False
        self.load(*checkpoint)
        return True

    def save(self) -> None:
        """Write a checkpoint, for all processes."""
        if self.group.rank == 0:
            folder, fingerprint = self._place
            write_checkpoint(folder, self.tensors(), fingerprint, self.epochs_done)
        self.group.wait()

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint must hold but the number of epochs, which places the learning rate."""
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"average.{key}": value for key, value in self.averaged.state_dict().items()}
        return tensors | self.objective.tensors() | momenta(self.model, self.optimizer)

    def load(self, tensors: dict[str, Tensor], epochs_done: int) -> None:
        """The inverse of :meth:`tensors`."""
        # Trainings of gates once wrote weights under the other name.
        weights = with_prefix(tensors, "model.") or with_prefix(tensors, "network.")
        fit_state(self.model, weights, "the checkpoint")
        if self.averaged is not None:
            fit_state(self.averaged, with_prefix(tensors, "average."), "the checkpoint")
        self.objective.load(tensors)
        load_momenta(self.model, self.optimizer, tensors)
        self.epochs_done = epochs_done
        self._place_rate()


@torch.no_grad()
def top1_of(model: nn.Module, images: LabelledImages, preprocessing: Preprocessing, batch: int | None = None) -> float:
    """Accuracy of a network, where it is; it is in eval mode then. ``batch`` images run at once, or as many as the
    images are given in."""
    model.eval()
    device = next(model.parameters()).device
    batches = images.batches(preprocessing, batch)
    return sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in batches) / len(images)
