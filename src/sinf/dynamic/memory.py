"""How many images a training of gates runs at once."""

from __future__ import annotations

import math
from typing import Protocol

from sinf.data.images import LabelledImages, Preprocessing
from sinf.dynamic.network import GatedNetwork
from sinf.machine.memory import Memory, activations, near, weight_bytes
from sinf.training.teacher import Teacher

TESTED = 500  # images at once without gradients, where memory allows it
_STATE = 5  # weights, their copy to compare with, gradients, momenta, and what a checkpoint is written from


class _Recipe(Protocol):
    @property
    def batch(self) -> int: ...


def plan_training(
    network: GatedNetwork,
    images: LabelledImages,
    validation: LabelledImages | None,
    preprocessing: Preprocessing,
    memory: Memory,
    config: _Recipe,
    processes: int = 1,
    teacher: Teacher | None = None,
) -> tuple[int, int]:
    """Images of a process's share of a batch that run at once with gradients, all or nearly equal parts of it, and
    images at once without, few enough that what they make stays near the processor. Decoded images are kept where they
    fit, beside the ``teacher``.

    Raises:
        ConfigError: two images do not fit: a batch norm needs as many.
    """
    sets = [part for part in (images, validation) if part is not None]
    fixed = _STATE * weight_bytes(network) + memory.decoded(preprocessing.size, *sets)
    fixed += 0 if teacher is None else weight_bytes(teacher.model)
    for part in sets:
        part.limit(memory.cache, part.batch)
    values = activations(network.graph)
    share = config.batch // processes
    more = 3 * values.largest  # the model's own code keeps what it calls a layer with, and a mask makes a product
    most = memory.batch("training", values.backward + more, share, fixed=fixed, least=2)
    tested = memory.batch("thresholds", values.forward + more, min(TESTED, near(network.graph)), fixed=fixed)
    return math.ceil(share / math.ceil(share / most)), tested
