"""How much memory a pass takes: its sums, and what an image takes while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import fx, nn

from sinf.graph.coupling import Coupling
from sinf.machine.memory import activations, value_bytes
from sinf.statistics.kernel_rows import KernelRows, has_kernel_rows
from sinf.statistics.statistic import OfGradients, OfMaps, OfOutputs, OfReads, OfUnits, Place, Statistic


class Need(NamedTuple):
    """Bytes: of all ``sums`` together, and of one ``image`` while it runs."""

    sums: int
    image: int


def need_of(
    graph: fx.GraphModule, coupling: Coupling, needs: Iterable[type[Statistic]], classes: int, pool: int = 1
) -> Need:
    """What :func:`sinf.statistics.collect` takes for the statistics ``needs``."""
    kinds, sites = set(needs), set(coupling.with_grouped().mixers.values())  # some read those in groups as well
    counted = activations(graph)

    def some(*families: type[Statistic]) -> bool:
        return any(issubclass(kind, families) for kind in kinds)

    writes, changes = some(OfGradients), some(OfUnits)
    image = counted.backward if writes or changes else counted.forward
    sums = work = 0
    counted_targets: set[str] = set()
    for node in graph.graph.nodes:
        target = str(node.target)
        if node.op != "call_module" or target not in sites:
            continue
        read, written = value_bytes(node.all_input_nodes[0]), value_bytes(node)
        # a copy of what is kept, and its gradient; all gradients come at once
        image += 2 * (writes * written + changes * read)
        module = graph.get_submodule(target)
        columns = module.kernel_size[1] if has_kernel_rows(module) else 1
        work = max(
            work,
            2 * read * some(OfReads, OfMaps),
            5 * written * some(OfOutputs),
            3 * columns * read * (KernelRows in kinds and has_kernel_rows(module)),
        )
        if target not in counted_targets:
            place = Place(module, len(coupling.reads[target].units), classes, pool)
            sums += sum(kind.bytes_at(place) for kind in kinds)
        counted_targets.add(target)
    return Need(sums, image + work)


def metric_bytes(graph: fx.GraphModule, coupling: Coupling) -> int:
    """Bytes of :mod:`sinf.compress.low_rank.metric`: two roots and a basis of what is written, and what kernel rows are
    read and written by, of every site, and work on one."""
    sites = set(coupling.with_grouped().mixers.values())
    modules = [graph.get_submodule(target) for target in sites if _is_there(graph, target)]
    written = [len(module.weight) for module in modules]
    read = [
        module.weight.shape[1] * module.kernel_size[1] if has_kernel_rows(module) else 0 for module in modules
    ]  # by a row of the kernel
    kept = 24 * sum(width**2 for width in written) + 8 * sum(width**2 for width in read)
    return kept + 40 * max([*written, *read], default=0) ** 2


def _is_there(graph: fx.GraphModule, target: str) -> bool:
    return any(str(node.target) == target for node in graph.graph.nodes)


def patch_bytes(graph: fx.GraphModule, coupling: Coupling) -> int:
    """Bytes of the patches of one image of the widest layer."""
    most = 0
    for node in graph.graph.nodes:
        if node.op == "call_module" and str(node.target) in set(coupling.mixers.values()):
            module, shape = graph.get_submodule(str(node.target)), node.meta.get("shape")
            if isinstance(module, nn.Conv2d) and shape:
                most = max(most, 4 * module.weight[0].numel() * math.prod(shape) // shape[1])
    return most
