"""One pass of the images: run a part of the network to its logits, and add up what was asked for."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar, cast

import torch
from torch import Tensor, fx, nn

from sinf.errors import ConfigError
from sinf.graph.coupling import Coupling
from sinf.machine.memory import near
from sinf.statistics.maps import MapSource, map_source
from sinf.statistics.of_maps import LOOKED_AT
from sinf.statistics.of_outputs import Sensitivity
from sinf.statistics.of_reads import PooledGram, SecondMoments, SumsByClass
from sinf.statistics.positions import by_image, rows_at, some_positions
from sinf.statistics.site import SiteStatistics, Statistics
from sinf.statistics.statistic import (
    Batch,
    OfGradients,
    OfMaps,
    OfOutputs,
    OfReads,
    OfUnits,
    Statistic,
    Visit,
)

# The answer's distribution is softened by this before its sensitivity is taken: a network that has seen the scoring
# images in training is so sure of them that its own distribution says nothing.
TEMPERATURE = 2.0

_RELUS = (torch.relu, nn.functional.relu, "relu")

#: What is added up unless other statistics are asked for.
DEFAULT: tuple[type[Statistic], ...] = (SecondMoments, Sensitivity, PooledGram, SumsByClass)

_Family = TypeVar("_Family", bound=Statistic)


def collect(
    graph: fx.GraphModule,
    coupling: Coupling,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
    answer: list[int] | None = None,
    needs: Iterable[type[Statistic]] = DEFAULT,
    pool: int = 1,
    seed: int = 0,
    at_once: int | None = None,
) -> Statistics:
    """Run ``graph`` (to logits) over batches of (inputs, labels) and return the statistics of every site, by target.

    ``answer`` limits the answer whose gradients are taken to some classes in ascending order, those of a cluster, of
    which alone ``graph`` may have logits; ``needs`` are the types
    of the statistics; ``pool`` is p, the side to which channels are pooled for the discriminative
    features. Without needs no image is looked at. A batch runs in parts of at most ``at_once`` images, which changes
    nothing but the memory that it takes (:func:`sinf.statistics.need.need_of` says how much).
    """
    kinds = list(dict.fromkeys(needs))
    others = [str(kind) for kind in kinds if not (isinstance(kind, type) and issubclass(kind, Statistic))]
    if others:
        raise ConfigError(
            "statistics are asked for by their type", got=", ".join(others), remedy="take those of sinf.statistics"
        )
    if pool < 1:
        raise ConfigError("pool must be at least 1", got=pool, remedy="take 1")
    recorder = _Recorder(graph, coupling, kinds)
    statistics = recorder.statistics
    if not kinds:
        return statistics
    generator = torch.Generator().manual_seed(seed)
    draw, images_so_far = random.Random(seed), torch.zeros(classes, dtype=torch.int64)
    step = near(graph, 2 if recorder.gradients else 1)
    step = step if at_once is None else min(at_once, step)
    for inputs, labels in batches:
        whole, noise = _describe(labels, classes, pool, draw, images_so_far), None
        for start in range(0, len(labels), step):
            rows = slice(start, start + step)
            recorder.batch, x = whole.part(rows), inputs[rows]
            with torch.set_grad_enabled(recorder.gradients):
                logits = recorder.run(x.detach().requires_grad_(recorder.gradients).clone())  # may begin in place
                logits = logits if answer is None or logits.shape[1] < classes else logits[:, answer]
                if recorder.outputs:
                    if noise is None:  # drawn for the whole batch: its parts do not matter
                        noise = torch.randn((len(labels), logits.shape[1]), generator=generator)
                    recorder.add_written((logits * _direction(logits, noise[rows])).sum())
                if recorder.reads:
                    recorder.add_changes(_loss(logits, labels[rows], answer), len(x))
            recorder.outputs, recorder.reads = [], []
            del logits
        statistics.images += len(labels)
    for site in statistics.values():
        site.images = statistics.images
    return statistics


def weights_of(graph: fx.GraphModule, coupling: Coupling) -> dict[str, Tensor]:
    """``(O, C, K)`` by target, of every site."""
    mixers, weights = set(coupling.mixers.values()), {}
    for node in graph.graph.nodes:
        target = str(node.target)
        if node.op == "call_module" and target in mixers:
            weight = graph.get_submodule(target).weight.detach()
            repeat = coupling.reads[target].repeat
            weights[target] = weight.unflatten(1, (-1, repeat)) if weight.ndim == 2 else weight.flatten(2)
    return weights


def _describe(labels: Tensor, classes: int, pool: int, draw: random.Random, images_so_far: Tensor) -> Batch:
    """``images_so_far`` (classes,) counts the images of every class so far."""
    ranks = torch.tensor([draw.random() for _ in labels], dtype=torch.float64)
    mine = nn.functional.one_hot(labels, classes)
    before = (images_so_far + mine.cumsum(0) - mine)[torch.arange(len(labels)), labels]
    images_so_far += mine.sum(0)
    return Batch(labels, classes, pool, ranks, before < LOOKED_AT)


def _direction(logits: Tensor, normal: Tensor) -> Tensor:
    """A random vector with the covariance of the softened answer, diag(p) - p p', from ``normal`` numbers."""
    p = (logits.detach() / TEMPERATURE).softmax(1)
    noise = p.sqrt() * normal
    return noise - p * noise.sum(1, keepdim=True)


def _loss(logits: Tensor, labels: Tensor, answer: list[int] | None) -> Tensor:
    """Sum over images of the cross entropy; images of classes outside the answer have none."""
    target = labels
    if answer is not None:
        matches = labels[:, None] == torch.tensor(answer)
        target = torch.where(matches.any(1), matches.int().argmax(1), -100)
    return nn.functional.cross_entropy(logits, target, reduction="sum", ignore_index=-100)


def _may_overwrite(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a ReLU that alone reads what a batch norm made: neither keeps that for its gradient."""
    if node.op == "call_module":
        if not isinstance(graph.get_submodule(str(node.target)), nn.ReLU):
            return False
    elif node.op == "output" or node.target not in _RELUS:
        return False
    before = node.all_input_nodes[0]
    if before.op != "call_module" or len(before.users) != 1:
        return False
    return isinstance(graph.get_submodule(str(before.target)), nn.modules.batchnorm._BatchNorm)


def _family(family: type[_Family], kinds: list[type[Statistic]]) -> list[type[_Family]]:
    """Those of a family."""
    return [kind for kind in kinds if issubclass(kind, family)]


class _Recorder(fx.Interpreter):
    """Adds up while the graph runs, so that nothing is kept but what gradients need: ``outputs`` are what sites wrote
    and ``reads`` what they read in this batch, at every call."""

    def __init__(self, graph: fx.GraphModule, coupling: Coupling, kinds: list[type[Statistic]]) -> None:
        super().__init__(graph)
        self.coupling = coupling
        self.of_reads, self.of_maps = _family(OfReads, kinds), _family(OfMaps, kinds)
        self.of_outputs = _family(OfOutputs, kinds)
        self.of_gradients, self.of_units = _family(OfGradients, kinds), _family(OfUnits, kinds)
        self.gradients = bool(self.of_gradients or self.of_units)
        self.sites: set[fx.Node] = set()
        self.over = {node for node in graph.graph.nodes if _may_overwrite(graph, node)}
        self.sources: dict[fx.Node, list[tuple[str, MapSource]]] = {}
        self.statistics = Statistics()
        self.batch: Batch
        self.outputs: list[tuple[str, Tensor]] = []
        self.reads: list[tuple[fx.Node, Tensor]] = []
        self.of_images: set[fx.Node] = set()  # all that is not made of weights alone
        weights = weights_of(graph, coupling)
        for node in graph.graph.nodes:
            target = str(node.target)
            if node.op == "placeholder" or not self.of_images.isdisjoint(node.all_input_nodes):
                self.of_images.add(node)
            if node.op != "call_module" or target not in weights:
                continue
            self.sites.add(node)
            self.statistics.setdefault(target, SiteStatistics(target, weights[target]))
            if self.of_maps:
                source = map_source(graph, coupling, node)
                self.sources.setdefault(source.node, []).append((target, source))

    def run(self, *args: Tensor) -> Tensor:
        self.outputs, self.reads = [], []
        return super().run(*args)

    def run_node(self, n: fx.Node) -> object:
        if n in self.over:
            value: object = torch.relu_(self.env[n.all_input_nodes[0]])
        else:
            value = self._visit(n) if n in self.sites else super().run_node(n)
        for target, source in self.sources.get(n, ()):
            maps = source.maps(self._of_all_images(n, cast(Tensor, value)), len(self.batch.labels))
            for kind in self.of_maps:
                self.statistics[target].add(kind.of(maps, self.batch))
        return value

    def _visit(self, n: fx.Node) -> Tensor:
        (x, *more), kwargs = self.fetch_args_kwargs_from_env(n)
        target = str(n.target)
        if self.of_units:
            x = x.clone()  # so that its gradient is of what this site reads, not of all who read the same
            self.reads.append((n, x))
        value = self.call_module(target, (x, *more), kwargs)
        read = self._of_all_images(n.all_input_nodes[0], x.detach())
        visit = Visit(self.layer_of(target), read, self.coupling.reads[target].repeat, self.batch)
        with torch.no_grad():
            for of_reads in self.of_reads:
                self.statistics[target].add(of_reads.of(visit))
            if self.of_outputs:
                rows, count = self._outputs(target, value.detach())
                for of_outputs in self.of_outputs:
                    self.statistics[target].add(of_outputs.of(rows, count))
        if not self.of_gradients:
            return value
        self.outputs.append((target, value))
        return value.clone()  # an activation in place would overwrite what is kept

    def _of_all_images(self, node: fx.Node, value: Tensor) -> Tensor:
        """A value with all images in its first dimension: what is made of weights alone is the same for each."""
        if node in self.of_images:
            return value
        return value.repeat(len(self.batch.labels), *[1] * (value.ndim - 1))

    def layer_of(self, target: str) -> nn.Module:
        return self.module.get_submodule(target)

    def _outputs(self, target: str, written: Tensor) -> tuple[Tensor, int]:
        """``(images * positions, O)`` float64 of what a site writes, at some positions of a large map, and how many
        there are in all."""
        if isinstance(self.layer_of(target), nn.Linear):
            rows = written.flatten(0, -2)
            return rows.double(), len(rows)
        count = written[:, 0].numel()
        positions = some_positions(written[0, 0].numel())
        rows = written.movedim(1, -1).flatten(0, -2) if positions is None else rows_at(written, positions)
        return rows.double(), count

    def _maps(self, target: str, gradient: Tensor) -> Tensor:
        """``(images, O, positions)`` of a gradient by what a site writes."""
        if isinstance(self.layer_of(target), nn.Linear):
            return gradient.flatten(0, -2)[..., None]
        return gradient.flatten(2)

    def add_written(self, answer: Tensor) -> None:
        """``answer``: the softened answer along a random direction, summed over images."""
        values = [value for _, value in self.outputs]
        gradients = torch.autograd.grad(answer, values, allow_unused=True, retain_graph=bool(self.reads))
        for (target, value), gradient in zip(self.outputs, gradients, strict=True):
            gradient = torch.zeros_like(value) if gradient is None else gradient
            for kind in self.of_gradients:
                self.statistics[target].add(kind.of(self._maps(target, gradient)))

    def add_changes(self, loss: Tensor, images: int) -> None:
        """``loss``: summed over images. The changes at all sites are added before they lose their sign."""
        gradients = torch.autograd.grad(loss, [x for _, x in self.reads], allow_unused=True)
        changes = torch.zeros(images, self.coupling.units)
        with torch.no_grad():
            for (node, x), gradient in zip(self.reads, gradients, strict=True):
                if gradient is None:
                    continue
                target, source = str(node.target), node.all_input_nodes[0]
                slot = self.coupling.reads[target]
                linear = isinstance(self.layer_of(target), nn.Linear)
                product = (x * gradient).movedim(-1 if linear else 1, 1)  # (images or windows, C * repeat, ...)
                product = product.flatten(2).sum(2) if product.ndim > 2 else product
                product = product.unflatten(1, (-1, slot.repeat)).sum(2)
                if source not in self.of_images:  # one gradient of all losses: each has the same share of it
                    product = self._of_all_images(source, product) / images
                changes.index_add_(1, slot.units, by_image(product, images).sum(1))
            for kind in self.of_units:
                more = kind.of(changes)
                units = self.statistics.units
                units[kind] = units[kind] + more if kind in units else more
