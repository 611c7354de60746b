"""Training a classifier, plainly and well: one-cycle, label smoothing, crop and flip; from scratch, or from weights
that are there, with a teacher to learn from if one is given. The loop is :mod:`sinf.training.loop`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from sinf.data.images import LabelledImages
from sinf.models import BaseModel, ModelSpec, load_spec
from sinf.storage.files import hash_tensors, write_tensors
from sinf.training.checkpoint import fingerprint
from sinf.training.loop import EpochReport as EpochReport
from sinf.training.loop import Loop, Objective, Parameters, require_images, top1_of
from sinf.training.recipe import TrainConfig as TrainConfig
from sinf.training.teacher import Teacher as Teacher

_LOOP = 2  # raised when a checkpoint of an earlier one would not go on as it began


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

    Raises:
        ConfigError: data and model do not fit, the loss is not finite, or ``folder`` holds another run.
    """
    require_images(spec, images, config)
    torch.manual_seed(config.seed)
    model = load_spec(spec, start if spec.is_factory else None)
    if start is not None:
        model.load_state_dict(start)
    taught_by = None if teacher is None else teacher.ready(config.device)
    objective = _Classification(model.requires_grad_(True), config, taught_by)
    loop = Loop(objective, config, len(images) // config.batch, average=config.average)
    loop.open(folder, _fingerprint(spec, config, images, start, teacher))
    validate = None
    if validation is not None:
        validate = partial(top1_of, images=validation, preprocessing=spec.preprocessing)
    loop.run(images, spec.preprocessing, validate=validate, report=report, progress=progress)
    final = loop.result.to("cpu", memory_format=torch.contiguous_format).eval()
    path = Path(folder) / "model.safetensors"
    write_tensors(final.state_dict(), path, {"sinf_model": json.dumps(spec.to_json())})
    return BaseModel(final, spec)


class _Classification(Objective):
    """Cross entropy, and what a teacher says."""

    def __init__(self, model: nn.Module, config: TrainConfig, teacher: Teacher | None = None) -> None:
        self.model, self.config, self.teacher = model, config, teacher

    def parameters(self) -> tuple[Parameters, Parameters]:
        """Weights decay, norms and biases do not."""
        every = list(self.model.parameters())
        return [p for p in every if p.ndim > 1], [p for p in every if p.ndim <= 1]

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int, done: int) -> OneCycleLR:
        """A cosine up from a 25th, a cosine down to nearly zero."""
        config = self.config
        steps = max(2, steps)  # the last one of all changes nearly nothing
        # torch divides by what a warm-up takes beyond its first step.
        warmup = float(config.warmup) if config.warmup * steps > 1 else 0.0
        return OneCycleLR(
            optimizer, config.learning_rate, total_steps=steps, pct_start=warmup, div_factor=25,
            final_div_factor=4000, cycle_momentum=False, last_epoch=done - 1,
        )  # fmt: skip

    def answer(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, and those of the teacher, which runs first: nothing is kept then."""
        taught = None if self.teacher is None else self.teacher.answers(x)
        return self.model(x).float(), taught

    def loss(self, answer: tuple[Tensor, Tensor | None], labels: Tensor, whole: int) -> Tensor:
        logits, taught = answer
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        if self.teacher is not None and taught is not None:
            loss = self.teacher.loss(logits, taught, loss)
        return loss * (len(labels) / whole)


def _fingerprint(
    spec: ModelSpec,
    config: TrainConfig,
    images: LabelledImages,
    start: dict[str, Tensor] | None,
    teacher: Teacher | None,
) -> str:
    more: dict[str, Any] = {}
    if start is not None:
        more["start"] = hash_tensors(start)
    if teacher is not None:
        more["teacher"] = teacher.record()
    return fingerprint(spec, {**asdict(config), "loop": _LOOP}, images, **more)


def save_half(model: BaseModel, path: str | Path) -> None:
    """Write a model's weights in float16: half the size, the same answers within rounding."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.module.state_dict().items()}
    write_tensors(state, Path(path), {"sinf_model": json.dumps(model.spec.to_json())})
