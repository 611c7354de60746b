"""From a pretrained network to a dynamically pruned one: SGD with Nesterov momentum and a cosine, gates and weights
together, the share of remaining channels falling meanwhile.

The loss is that of :mod:`sinf.dynamic.losses`. A checkpoint is written after every epoch; a run that was killed and
started again ends with the weights of a run that was not. Started by torchrun, several processes train as one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinf.data.images import BATCH, LabelledImages, Pixels
from sinf.dynamic.calibrate import finish, finishing_images
from sinf.dynamic.distributed import Group, joined, shared_statistics
from sinf.dynamic.memory import TESTED, plan_training
from sinf.dynamic.methods import Trained
from sinf.dynamic.network import GatedNetwork, Observed, attach
from sinf.dynamic.recipe import TrainConfig as TrainConfig
from sinf.dynamic.start import start_by_importance
from sinf.dynamic.targets import Controller
from sinf.errors import ConfigError
from sinf.machine.memory import Memory, Notice, activations, weight_bytes
from sinf.measure.estimate import Estimate, Pace, gated_time
from sinf.models import BaseModel, fit_state
from sinf.storage.files import hash_tensors
from sinf.training.checkpoint import (
    epoch_batches,
    load_momenta,
    momenta,
    open_folder,
    read_checkpoint,
    with_prefix,
    write_checkpoint,
)

_TIMED = 32  # images, for a target in time


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to: means over its images; ``remaining`` and ``macs`` are fractions of the base model's
    channels (of gated convolutions) and MACs; ``top1`` is None where there are no validation images."""

    epoch: int
    epochs: int
    loss: float
    cross_entropy: float
    remaining: float
    macs: float
    top1: float | None
    seconds: float


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
    if images.classes > base.spec.classes:
        got = f"{base.spec.classes} of {images.classes}"
        raise ConfigError("the model must have the classes of the data", got=got, remedy="take another model")
    fingerprint = _fingerprint(base, config, images)
    with joined(config.device) as group, torch.random.fork_rng(devices=[]):
        if config.batch % group.world:
            got = f"{config.batch} over {group.world} processes"
            raise ConfigError("a batch must part evenly", got=got, remedy="take another --batch")
        torch.manual_seed(config.seed)
        network = attach(base, config.gates)
        if config.start == "importance":
            start_by_importance(network)
        memory = Memory(config.memory)
        part, tested = plan_training(network, images, validation, base.spec.preprocessing, memory, config, group.world)
        if notice is not None and group.rank == 0:
            notice(memory.summary())
        run = _Run(network, config, group, len(images) // config.batch, part)
        if run.steps_per_epoch == 0:
            raise ConfigError("a batch must not be larger than the data", got=config.batch, remedy="lower --batch")
        folder = open_folder(folder)
        found = read_checkpoint(folder, fingerprint)
        if found is None and config.target.latency is not None:
            timed = next(images.sample(_TIMED, config.seed).batches(base.spec.preprocessing))[0]
            run.target.measure(config.target.latency, timed, group)
        first = 0 if found is None else run.load(*found)
        if expect is not None and not run.finished:  # all that can be refused has been
            expect(_expected(network, base, images, config, config.epochs - first))
        pixels, labels = Pixels(images, base.spec.preprocessing, config.device), images.labels.to(config.device)
        with run.slower_norms(), shared_statistics(network.model, group):
            for epoch in range(first, config.epochs):
                start = time.perf_counter()
                torch.manual_seed(config.seed * 100_003 + epoch)  # of dropout, if there is any
                means = _epoch(run, base, pixels, labels, epoch, progress)
                top1 = None if validation is None else top1_of(network, base, validation, tested)
                if group.rank == 0:
                    write_checkpoint(folder, run.tensors(), fingerprint, epoch + 1)
                group.wait()
                if report is not None and group.rank == 0:
                    report(EpochReport(epoch + 1, config.epochs, *means, top1, time.perf_counter() - start))
        network.to("cpu", memory_format=torch.contiguous_format).eval()
        if not run.finished:
            finish(network, base.spec.preprocessing, images, config.target, config.seed, finishing, tested)
            run.finished.fill_(True)
            # Stored too: with another number of threads the statistics of norms would round differently.
            if group.rank == 0:
                write_checkpoint(folder, run.tensors(), fingerprint, config.epochs)
            group.wait()
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
    return gated_time(pace, images=len(images), epochs=epochs, finishing=finishing_images(len(images), config.target))


class _Run:
    """All that changes while training."""

    def __init__(
        self, network: GatedNetwork, config: TrainConfig, group: Group, steps_per_epoch: int, part: int
    ) -> None:
        self.network, self.config, self.group, self.steps_per_epoch = network, config, group, steps_per_epoch
        self.part = part  # images of this process's share of a batch that run at once
        network.to(config.device, memory_format=torch.channels_last)
        network.detach_features = config.detach_features
        network.wants_features = config.gates.method.reads_features(config)
        network.model.requires_grad_(True)
        self.parameters = list({id(p): p for p in network.parameters()}.values())
        gates = {id(p) for p in network.gate_parameters()}
        self.optimizer = torch.optim.SGD(
            [
                {"params": [p for p in self.parameters if id(p) not in gates], "weight_decay": config.weight_decay},
                {"params": network.gate_parameters() or [torch.zeros(1)], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
        )
        self.target = Controller(config.target, network)
        self.mean_before = torch.full((), math.inf, dtype=torch.float64)
        self.finished = torch.tensor(False)
        self._sums = _Sums(network)

    def step(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """One step on the total batch; the loss, and the cross entropies (B / world,) of this process's share."""
        config, total = self.config, len(x)
        rate = config.learning_rate * (1 + math.cos(math.pi * step / (config.epochs * self.steps_per_epoch))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x, y = self.group.share(x), self.group.share(y)
        self.optimizer.zero_grad(set_to_none=True)
        found, every = torch.zeros((), device=x.device), []
        for px, py in zip(x.split(self.part), y.split(self.part), strict=True):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bf16):
                logits, seen = self.network.observe(px)
            each = F.cross_entropy(logits.float(), py, reduction="none")
            trained = Trained(
                seen.saliencies, seen.features, each, total, len(px) / len(x), float(self.mean_before), self.group
            )
            loss = each.sum() / total + config.gates.method.loss(trained, config)
            loss.backward()
            found += loss.detach()
            every.append(each.detach())
            self._sums.add(self.network, seen, every[-1])
            del logits, seen, each, trained, loss
        self.group.add_gradients(self.parameters)
        self.optimizer.step()
        return found, torch.cat(every)

    @contextmanager
    def slower_norms(self) -> Iterator[None]:
        """While inside, batch norms that see a batch in parts follow it as fast as if they saw it whole."""
        norms = [m for m in self.network.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        parts = math.ceil(self.config.batch / self.group.world / self.part)
        for norm in norms if parts > 1 else ():
            norm.momentum = None if norm.momentum is None else 1 - (1 - norm.momentum) ** (1 / parts)
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    @torch.no_grad()
    def move_thresholds(self, steps_done: int) -> tuple[float, float, float]:
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

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint must hold."""
        tensors = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        tensors |= {"state.mean_before": self.mean_before, "state.target": self.target.state()}
        tensors["state.finished"] = self.finished
        return tensors | momenta(self.network, self.optimizer)

    def load(self, tensors: dict[str, Tensor], epochs_done: int) -> int:
        fit_state(self.network, with_prefix(tensors, "network."), "the checkpoint")
        self.mean_before.copy_(tensors["state.mean_before"])
        self.target.load(tensors["state.target"])
        self.finished.copy_(tensors["state.finished"])
        load_momenta(self.network, self.optimizer, tensors)
        return epochs_done


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


def _epoch(
    run: _Run,
    base: BaseModel,
    pixels: Pixels,
    labels: Tensor,
    epoch: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[float, float, float, float]:
    """Loss, cross entropy, remaining channels and MACs, means over the epoch."""
    config, steps = run.config, run.steps_per_epoch
    run.network.train()
    loss = torch.zeros((), device=labels.device)
    parts: list[tuple[float, float, float]] = []
    batches = epoch_batches(pixels, labels, base.spec.preprocessing, config.batch, config.seed, epoch)
    for step, (x, y) in enumerate(batches):
        loss += run.step(x, y, epoch * steps + step)[0]
        if (step + 1) * config.updates // steps > step * config.updates // steps:
            parts.append(run.move_thresholds(epoch * steps + step + 1))
        if progress is not None:
            progress(epoch * steps + step + 1, config.epochs * steps)
    means = torch.tensor(parts).mean(0).tolist()
    return float(run.group.total(loss)) / steps, *means


@torch.no_grad()
def top1_of(network: GatedNetwork, base: BaseModel, images: LabelledImages, batch: int = TESTED) -> float:
    """Accuracy with the gates as they are now."""
    network.eval()
    device = next(network.parameters()).device
    batches = images.batches(base.spec.preprocessing, batch)
    return sum(int((network(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in batches) / len(images)


def _fingerprint(base: BaseModel, config: TrainConfig, images: LabelledImages) -> str:
    recipe = {**asdict(config), "device": None}
    del recipe["memory"]  # a run may go on with more of it
    record = {
        "model": base.spec.to_json(),
        "weights": hash_tensors(base.module.state_dict()),
        "recipe": recipe,
        "images": images.fingerprint(),
    }
    return json.dumps(record, sort_keys=True)
