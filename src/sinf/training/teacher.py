"""Learning from the answers of a model beside the labels (Hinton et al., 2015, arXiv 1503.02531)."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.models import BaseModel
from sinf.storage.files import hash_tensors
from sinf.training.recipe import Distillation


@dataclass(frozen=True)
class Teacher:
    """A model whose answers count beside the labels:

    loss = (1 - weight) CE(student, labels) + weight T^2 KL(teacher / T || student / T)

    ``model`` is (B, C, H, W) -> (B, classes) logits; ``how`` has the weight and the temperature T.
    """

    model: nn.Module
    how: Distillation = field(default_factory=Distillation)

    @staticmethod
    def of(base: BaseModel, how: Distillation, device: str) -> Teacher | None:
        """A base model as it is now, folded; none where its answers have no weight."""
        if not how.weight:
            return None
        return Teacher(prepare(trace(base.module, base.spec.preprocessing)), how).ready(device)

    def ready(self, device: str) -> Teacher:
        """One with a copy of the model, in eval mode, where the training is."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        return replace(self, model=model.to(device, memory_format=torch.channels_last))

    @torch.no_grad()
    def answers(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        logits: Tensor = self.model(x.clone())  # some models write into what they are given
        return logits.float()

    def loss(self, logits: Tensor, answers: Tensor, hard: Tensor) -> Tensor:
        """``hard`` is the loss of the labels; ``logits`` and ``answers`` are (B, classes)."""
        weight, t = self.how.weight, self.how.temperature
        soft = F.kl_div(
            (logits / t).log_softmax(1), (answers / t).log_softmax(1), log_target=True, reduction="batchmean"
        )
        return (1 - weight) * hard + weight * t * t * soft

    def record(self) -> dict[str, Any]:
        """What tells it from others, in the fingerprint of a run."""
        return {"weights": hash_tensors(self.model.state_dict()), **asdict(self.how)}
