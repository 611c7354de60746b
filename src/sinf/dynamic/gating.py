"""What gates are trained for: the loss of the paper, and thresholds that move while the share of channels falls.

The loss is that of :mod:`sinf.dynamic.losses`. Where the base model teaches too, its answers count beside the labels
(:mod:`sinf.training.teacher`), with a weight w and a temperature T,

    loss = (1 - w) mean_i CE_i + w T^2 mean_i KL(base / T || gated / T) + complexity + similarity

and the cross entropies that weigh images in the complexity loss stay those of the labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from sinf.dynamic.methods import Trained
from sinf.dynamic.network import GatedNetwork, Observed
from sinf.dynamic.recipe import TrainConfig
from sinf.dynamic.targets import Controller
from sinf.errors import ConfigError
from sinf.training.distributed import Group
from sinf.training.loop import Objective, Parameters
from sinf.training.teacher import Teacher


class Gating(Objective):
    """What ManiDP and its baselines add: gates, their losses, and thresholds that move."""

    def __init__(
        self,
        network: GatedNetwork,
        config: TrainConfig,
        group: Group,
        steps_per_epoch: int,
        teacher: Teacher | None = None,
    ) -> None:
        self.model = self.network = network
        self.config, self.group, self.steps_per_epoch, self.teacher = config, group, steps_per_epoch, teacher
        network.detach_features = config.detach_features
        network.wants_features = config.gates.method.reads_features(config)
        network.model.requires_grad_(True)
        self.target = Controller(config.target, network)
        self.mean_before = torch.full((), math.inf, dtype=torch.float64)
        self.finished = torch.tensor(False)
        self._sums = _Sums(network)
        self._moves: list[tuple[float, float, float]] = []  # of this epoch: cross entropy, channels, MACs

    def parameters(self) -> tuple[Parameters, Parameters]:
        """Gates do not decay."""
        gates = self.network.gate_parameters()
        own = {id(p) for p in gates}
        return [p for p in self.network.parameters() if id(p) not in own], gates

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int, done: int) -> LambdaLR:
        """A cosine down to zero."""
        return LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2, last_epoch=done - 1)

    def answer(self, x: Tensor) -> tuple[Tensor, Observed, Tensor | None]:
        """Logits, what the gates did, and the logits of the teacher, which runs first: nothing is kept then."""
        taught = None if self.teacher is None else self.teacher.answers(x)
        return *self.network.observe(x), taught

    def loss(self, answer: tuple[Tensor, Observed, Tensor | None], labels: Tensor, whole: int) -> Tensor:
        logits, observed, taught = answer
        each = F.cross_entropy(logits.float(), labels, reduction="none")
        share = len(labels) / (whole // self.group.world)
        trained = Trained(
            observed.saliencies, observed.features, each, whole, share, float(self.mean_before), self.group
        )
        self._sums.add(self.network, observed, each.detach())
        loss = each.sum() / whole
        if self.teacher is not None and taught is not None:
            loss = self.teacher.loss(logits.float(), taught, each.mean()) * (len(labels) / whole)
        return loss + self.config.gates.method.loss(trained, self.config)

    def stepped(self, done: int) -> None:
        """Thresholds move as often an epoch as they are asked to."""
        step, steps, updates = (done - 1) % self.steps_per_epoch, self.steps_per_epoch, self.config.updates
        if step == 0:
            self._moves.clear()
        if (step + 1) * updates // steps > step * updates // steps:
            self._moves.append(self._move_thresholds(done))

    @torch.no_grad()
    def _move_thresholds(self, steps_done: int) -> tuple[float, float, float]:
        """Set the thresholds for what comes next; mean cross entropy, channels and MACs since the last time."""
        sums = self._sums.take(self.group)
        if not math.isfinite(sums.cross_entropy):
            raise ConfigError("the loss must be finite", got=sums.cross_entropy, remedy="lower --learning-rate")
        self.mean_before.fill_(sums.cross_entropy)
        progress = steps_done / (self.config.epochs * self.steps_per_epoch)
        rate = self.target.next_rate(progress, self.config.ramp, sums.macs)
        for index, saliency in enumerate(sums.saliencies):
            self.network.gate(index).set_remaining(rate, saliency)
        return sums.cross_entropy, sums.remaining, sums.macs

    def means(self) -> dict[str, Any]:
        """What :class:`EpochReport` adds, of the last epoch."""
        names = ("cross_entropy", "remaining", "macs")
        return dict(zip(names, torch.tensor(self._moves).mean(0).tolist(), strict=True))

    def tensors(self) -> dict[str, Tensor]:
        target = self.target.state()
        return {"state.mean_before": self.mean_before, "state.target": target, "state.finished": self.finished}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.mean_before.copy_(tensors["state.mean_before"])
        self.target.load(tensors["state.target"])
        self.finished.copy_(tensors["state.finished"])


@dataclass(frozen=True)
class _Means:
    cross_entropy: float
    remaining: float
    macs: float
    saliencies: list[Tensor]


class _Sums:
    """Running sums over the images since thresholds moved."""

    def __init__(self, network: GatedNetwork) -> None:
        self.network = network
        self.saliencies: list[Tensor] = []
        self.rest = torch.zeros(4, dtype=torch.float64)  # cross entropy, kept share, MACs, images

    @torch.no_grad()
    def add(self, network: GatedNetwork, observed: Observed, cross_entropy: Tensor) -> None:
        sums = [s.detach().double().sum(0).cpu() for s in observed.saliencies]
        self.saliencies = [a + b for a, b in zip(self.saliencies, sums, strict=True)] if self.saliencies else sums
        keep = network.keep(observed)
        kept = torch.cat([keep[:, site.units] for site in network.sites], 1).double().mean(1).sum()
        macs = network.macs_of(keep).sum() / network.base_macs
        self.rest += torch.stack([cross_entropy.double().sum().cpu(), kept, macs, torch.tensor(float(len(keep)))])

    def take(self, group: Group) -> _Means:
        """The means over all processes, and start again."""
        flat = group.total(torch.cat([self.rest, *self.saliencies]))
        (cross_entropy, remaining, macs, count), flat = flat[:4].tolist(), flat[4:]
        means = (flat / count).float().split([len(s) for s in self.saliencies])
        device = next(self.network.parameters()).device
        self.__init__(self.network)  # type: ignore[misc]
        return _Means(cross_entropy / count, remaining / count, macs / count, [m.to(device) for m in means])
