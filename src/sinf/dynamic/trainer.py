"""From a pretrained network to a dynamically pruned one: gates and weights are trained together, the share of remaining
channels falling meanwhile, and thresholds are set for good at the end.

What they are trained for is in :mod:`sinf.dynamic.gating`, the loop in :mod:`sinf.training.loop`. Started by torchrun,
several processes train as one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from sinf.data.images import BATCH, LabelledImages
from sinf.dynamic.calibrate import finish, finishing_images
from sinf.dynamic.gating import Gating
from sinf.dynamic.memory import plan_training
from sinf.dynamic.network import GatedNetwork, attach
from sinf.dynamic.recipe import TrainConfig as TrainConfig
from sinf.dynamic.start import start_by_importance
from sinf.errors import ConfigError
from sinf.machine.memory import Memory, Notice
from sinf.measure.estimate import Estimate, Pace, gated_time
from sinf.models import BaseModel
from sinf.storage.files import hash_tensors
from sinf.training import loop as shared
from sinf.training.checkpoint import fingerprint
from sinf.training.distributed import joined
from sinf.training.loop import Loop, require_images, top1_of
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
    recipe, preprocessing = config.identity(), base.spec.preprocessing
    require_images(base.spec, images, config)
    run = fingerprint(base.spec, recipe, images, weights=hash_tensors(base.module.state_dict()))
    with joined(config.device) as group, torch.random.fork_rng(devices=[]):
        if config.batch % group.world:
            got = f"{config.batch} over {group.world} processes"
            raise ConfigError("a batch must part evenly", got=got, remedy="take another --batch")
        teacher = Teacher.of(base, config.distillation, config.device)
        torch.manual_seed(config.seed)  # the same gates with a teacher and without
        network = attach(base, config.gates)
        if config.start == "importance":
            start_by_importance(network)
        gating = Gating(network, config, group, len(images) // config.batch, teacher)
        memory = Memory(config.memory)
        part, tested = plan_training(network, images, validation, preprocessing, memory, config, group.world, teacher)
        if notice is not None and group.rank == 0:
            notice(memory.summary())
        loop = Loop(gating, config, gating.steps_per_epoch, group=group, part=part)
        if not loop.open(folder, run) and config.target.latency is not None:
            timed = next(images.sample(_TIMED, config.seed).batches(preprocessing))[0]
            gating.target.measure(config.target.latency, timed, group)
        if expect is not None and not gating.finished:  # all that can be refused has been
            with network.switched_off():
                pace = Pace.of(network.graph, preprocessing.size, min(BATCH, tested))
            count, left = len(images), config.epochs - loop.epochs_done
            ending = finishing_images(count, config.target)
            expect(gated_time(pace, images=count, epochs=left, finishing=ending, taught=teacher is not None))
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
