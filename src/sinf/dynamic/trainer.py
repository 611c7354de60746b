"""From a pretrained network to a dynamically pruned one: gates and weights are trained together, the share of remaining
channels falling meanwhile, and thresholds are set for good at the end.

The loss is that of :mod:`sinf.dynamic.losses`, the loop :mod:`sinf.training.loop`. Where the base model teaches too,
its answers count beside the labels (:mod:`sinf.training.teacher`), with a weight w and a temperature T,

    loss = (1 - w) mean_i CE_i + w T^2 mean_i KL(base / T || ours / T) + complexity + similarity

and the cross entropies that weigh images in the complexity loss stay those of the labels. Started by torchrun, several
processes train as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from sinf.data.images import BATCH, LabelledImages
from sinf.dynamic.calibrate import finish, finishing_images
from sinf.dynamic.memory import plan_training
from sinf.dynamic.methods import Trained
from sinf.dynamic.network import GatedNetwork, Observed, attach
from sinf.dynamic.recipe import TrainConfig as TrainConfig
from sinf.dynamic.start import start_by_importance
from sinf.dynamic.targets import Controller
from sinf.errors import ConfigError
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.machine.memory import Memory, Notice, activations, weight_bytes
from sinf.measure.estimate import Estimate, Pace, gated_time
from sinf.models import BaseModel
from sinf.storage.files import hash_tensors
from sinf.training import loop as shared
from sinf.training.checkpoint import fingerprint
from sinf.training.distributed import Group, joined
from sinf.training.loop import Loop, Objective, Parameters, require_images, top1_of
from sinf.training.teacher import Teacher

_TIMED = 32  # images, for a target in time


@dataclass(frozen=True)
class EpochReport(shared.EpochReport):
    """What one epoch came to: means over its images; ``remaining`` and ``macs`` are fractions of the base model's
    channels (of gated convolutions) and MACs."""

    cross_entropy: float
    remaining: float
    macs: float


def train(
    base: BaseModel,
    images: LabelledImages,
    folder: str | Path,
    config: TrainConfig,
    *,
    validation: LabelledImages | None = None,
    report: Callable[[EpochReport], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    finishing: Callable[[int, int], None] | None = None,
    expect: Callable[[Estimate], None] | None = None,
    notice: Notice | None = None,
) -> GatedNetwork:
    """Attach gates to ``base`` and train both, or go on from the checkpoint in ``folder``; ``base`` is changed.

    ``report`` is called after every epoch, ``progress`` after every step with (steps done, steps in all), and
    ``finishing`` in the same way while thresholds are set for good; ``expect`` is told how long it will take, and
    ``notice`` how much memory, before it begins.

    Raises:
        CutError: no convolution of the model can be gated.
        ConfigError: the options contradict each other, the memory is too small, or ``folder`` holds another run.
    """
    require_images(base.spec, images, config)
    run, preprocessing = _fingerprint(base, config, images), base.spec.preprocessing
    with joined(config.device) as group, torch.random.fork_rng(devices=[]):
        if config.batch % group.world:
            got = f"{config.batch} over {group.world} processes"
            raise ConfigError("a batch must part evenly", got=got, remedy="take another --batch")
        teacher = _teacher(base, config)
        torch.manual_seed(config.seed)  # the same gates with a teacher and without
        network = attach(base, config.gates)
        if config.start == "importance":
            start_by_importance(network)
        memory = Memory(config.memory)
        beside = 0 if teacher is None else weight_bytes(teacher.model)
        part, tested = plan_training(network, images, validation, preprocessing, memory, config, group.world, beside)
        if notice is not None and group.rank == 0:
            notice(memory.summary())
        gating = _Gating(network, config, group, len(images) // config.batch, teacher)
        loop = Loop(gating, config, gating.steps_per_epoch, group=group, part=part)
        if not loop.open(folder, run) and config.target.latency is not None:
            timed = next(images.sample(_TIMED, config.seed).batches(preprocessing))[0]
            gating.target.measure(config.target.latency, timed, group)
        if expect is not None and not gating.finished:  # all that can be refused has been
            expect(_expected(network, base, images, config, config.epochs - loop.epochs_done))
        validate = None
        if validation is not None:
            validate = partial(top1_of, images=validation, preprocessing=preprocessing, batch=tested)

        def told(epoch: shared.EpochReport) -> None:
            if report is not None:
                report(EpochReport(**vars(epoch), **gating.means()))

        loop.run(images, preprocessing, validate=validate, report=told, progress=progress)
        network.to("cpu", memory_format=torch.contiguous_format).eval()
        if not gating.finished:
            finish(network, preprocessing, images, config.target, config.seed, finishing, tested)
            gating.finished.fill_(True)
            loop.save()  # stored too: with another number of threads the statistics of norms would round differently
    return network


def _expected(
    network: GatedNetwork, base: BaseModel, images: LabelledImages, config: TrainConfig, epochs: int
) -> Estimate:
    """How long the epochs that are left and the end take, from the time of the base model."""
    network.enabled, training = False, network.training
    network.eval()
    try:
        each, fixed = activations(network.graph).forward, 2 * weight_bytes(base.module)
        at_once = Memory(config.memory).batch("an estimate of the time", each, BATCH, fixed=fixed)
        pace = Pace.of(network.graph, base.spec.preprocessing.size, at_once)
    finally:
        network.enabled = True
        network.train(training)
    taught, finishing = config.distillation.weight > 0, finishing_images(len(images), config.target)
    return gated_time(pace, images=len(images), epochs=epochs, finishing=finishing, taught=taught)


def _teacher(base: BaseModel, config: TrainConfig) -> Teacher | None:
    """The base model as it is before gates and training change it, folded."""
    if not config.distillation.weight:
        return None
    return Teacher(prepare(trace(base.module, base.spec.preprocessing)), config.distillation).ready(config.device)


class _Gating(Objective):
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
        logits, seen, taught = answer
        each = F.cross_entropy(logits.float(), labels, reduction="none")
        share = len(labels) / (whole // self.group.world)
        trained = Trained(seen.saliencies, seen.features, each, whole, share, float(self.mean_before), self.group)
        self._sums.add(self.network, seen, each.detach())
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
    def add(self, network: GatedNetwork, seen: Observed, cross_entropy: Tensor) -> None:
        sums = [s.detach().double().sum(0).cpu() for s in seen.saliencies]
        self.saliencies = [a + b for a, b in zip(self.saliencies, sums, strict=True)] if self.saliencies else sums
        keep = network.keep(seen)
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


def _fingerprint(base: BaseModel, config: TrainConfig, images: LabelledImages) -> str:
    recipe = asdict(config)
    del recipe["memory"]  # a run may go on with more of it
    if not config.distillation.weight:
        del recipe["distillation"]  # the base model, of which the weights are known, teaches nothing
    return fingerprint(base.spec, recipe, images, weights=hash_tensors(base.module.state_dict()))
