"""What a verb that runs a model takes of its memory: said before it starts, and kept by the sizes of its batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import fx

from sinf.cli.progress import announce
from sinf.data.images import BATCH, LabelledImages
from sinf.data.preprocessing import Preprocessing
from sinf.engine.quantise import MOST_AT_ONCE, at_once
from sinf.engine.rounding import rounding_bytes
from sinf.errors import CutError
from sinf.graph.trace import trace
from sinf.machine.memory import Memory, activations, weight_bytes
from sinf.models import BaseModel

_INPUTS = 3  # copies of an image in float32 while it is normalised, one of which stays until the pass is done
_FLOAT = 4
_WRITTEN = 4  # as much as a pass takes of weights, while a model is written for another engine
_STATE = 7  # weights, gradients, momenta, their average, what they are loaded from, and what a checkpoint is made of


@dataclass(frozen=True)
class Need:
    """Bytes: of the values that one image makes, of weights with their copies, and of rounding these to int8."""

    each: int
    weights: int
    rounding: int = 0

    @staticmethod
    def of(graph: fx.GraphModule, *, copies: int = 3, largest: int = 0, tails: int = 0) -> Need:
        """Of a pass without gradients, in which ``largest`` values as large as the largest are kept besides; ``tails``
        are bytes of weights that the graph does not have."""
        values = activations(graph)
        each, rounding = values.forward + largest * values.largest, values.total + rounding_bytes(graph)
        return Need(each, copies * weight_bytes(graph) + tails, rounding)

    @staticmethod
    def of_model(model: BaseModel) -> Need:
        return Need.of(trace(model.module, model.spec.preprocessing))

    @staticmethod
    def of_training(model: BaseModel) -> Need:
        """Of a step with gradients."""
        graph = trace(model.module, model.spec.preprocessing)
        return Need(activations(graph).backward, _STATE * weight_bytes(graph))

    def exported(self) -> Need:
        """While it is written for another engine: the exporter, its checks, the file and a session each have weights of
        their own."""
        return replace(self, weights=_WRITTEN * self.weights)

    def beside(self, other: Need) -> Need:
        """Of two models in turns."""
        rounding = max(self.rounding, other.rounding)
        return Need(max(self.each, other.each), self.weights + other.weights, rounding)


class Room:
    """A budget, of which weights and the decoded images of ``parts`` have theirs; batches take what is left."""

    def __init__(self, memory: int, need: Need, feed: Preprocessing, *parts: LabelledImages | None) -> None:
        self.size = feed.size
        self.memory, self.parts = Memory(memory), [part for part in parts if part is not None]
        self.input = _INPUTS * _FLOAT * math.prod(feed.size)
        self.each, self.rounding = need.each + self.input, need.rounding
        self.fixed = need.weights + self.memory.decoded(feed.size, *self.parts)

    def limit(self, name: str, most: int = BATCH, least: int = 1) -> int:
        """How many images run at once, which is how many the parts give from now on."""
        batch = self.memory.batch(name, self.each, most, fixed=self.fixed, least=least)
        for part in self.parts:
            part.limit(self.memory.cache, batch)
        return batch

    def calibrate(self, count: int) -> None:
        """Keep ``count`` normalised images that set the ranges of int8, of which a fixed number runs at once, and round
        weights by what layers read of them."""
        self.fixed += count * self.input
        # ONNX Runtime takes up to twice what it needs, which is little of images as small as many run of.
        together = min(MOST_AT_ONCE, 2 * at_once(self.size))
        self.memory.batch("calibration", self.each, together, fixed=self.fixed, least=together)
        self.memory.whole("rounding", self.rounding, 1, fixed=self.fixed)

    def sizes(self, sizes: list[int], named: bool) -> list[int]:
        """Sizes of batches that are timed: ``named`` ones are as they are, or refused."""
        if named:
            for size in sizes:
                self.memory.whole(f"timing in batches of {size}", self.each, size, fixed=self.fixed)
            return sizes
        return sorted({self.memory.batch("timing", self.each, size, fixed=self.fixed) for size in sizes})

    def kept(self, name: str, most: int, sizes: list[int]) -> int:
        """How many images are normalised once, and kept while batches of ``sizes`` run: at least one such batch."""
        self.each -= self.input
        count = self.memory.batch(name, self.input, most, fixed=self.fixed + max(sizes) * self.each, least=max(sizes))
        self.fixed += count * self.input
        return count

    def announce(self) -> None:
        announce(self.memory.summary())


def fit(
    memory: int, name: str, need: Need, feed: Preprocessing, *parts: LabelledImages | None, most: int = BATCH
) -> int:
    """Have ``parts`` give their images in batches that fit, of ``most`` images at most, and say what that takes.

    Raises:
        ConfigError: not even one image fits.
    """
    room = Room(memory, need, feed, *parts)
    batch = room.limit(name, most)
    room.announce()
    return batch


def fit_training(
    memory: int,
    model: BaseModel,
    images: LabelledImages,
    validation: LabelledImages | None,
    *,
    batch: int,
    on_cpu: bool,
) -> None:
    """Refuse a batch whose step does not fit, since it is part of the recipe, and say what it takes. What another
    device computes takes none of this memory. Decoded images are kept where they fit.

    Raises:
        ConfigError: a step does not fit; it names the batch that would.
    """
    try:
        step, passes = Need.of_training(model), Need.of_model(model)
    except CutError:  # it can be trained nonetheless
        for part in (images, validation):
            if part is not None:
                part.limit(Memory(memory).cache, BATCH)
        announce("memory: not known, since the model cannot be traced")
        return
    each, most = (step.each, passes.each) if on_cpu else (0, 0)
    room = Room(memory, Need(most, step.weights), model.spec.preprocessing, images, validation)
    room.memory.whole("a training step", each + room.input, batch, fixed=room.fixed, least=2)
    room.limit("validation", 1 if validation is None else BATCH)
    room.announce()
