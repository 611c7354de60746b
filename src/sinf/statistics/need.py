"""How much memory a pass takes: its sums, and what an image takes while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import fx, nn

from sinf.graph.coupling import Coupling
from sinf.machine.memory import activations, value_bytes
from sinf.statistics.kernel_rows import has_kernel_rows
from sinf.statistics.site import SAMPLE
from sinf.statistics.sums import CHANGES, MADE, MAPS, READ, WRITTEN


class Need(NamedTuple):
    """Bytes: of all ``sums`` together, and of one ``image`` while it runs."""

    sums: int
    image: int


def need_of(graph: fx.GraphModule, coupling: Coupling, names: Iterable[str], classes: int, pool: int = 1) -> Need:
    """What :func:`sinf.statistics.collect` takes for the sums ``names``."""
    names, mixers = set(names), set(coupling.mixers.values())
    counted = activations(graph)
    writes, changes = bool(names & set(WRITTEN)), bool(names & set(CHANGES))
    image = counted.backward if writes or changes else counted.forward
    sums = work = 0
    known: set[str] = set()
    for node in graph.graph.nodes:
        target = str(node.target)
        if node.op != "call_module" or target not in mixers:
            continue
        read, written = value_bytes(node.all_input_nodes[0]), value_bytes(node)
        # a copy of what is kept, and its gradient; all gradients come at once
        image += 2 * (writes * written + changes * read)
        module = graph.get_submodule(target)
        columns = module.kernel_size[1] if has_kernel_rows(module) else 1
        work = max(
            work,
            2 * read * bool(names & set(READ) or names & set(MAPS)),
            5 * written * bool(names & set(MADE)),
            3 * columns * read * ("kernel_rows" in names and has_kernel_rows(module)),
        )
        if target not in known:
            sums += sum(_sum_bytes(name, module, len(coupling.reads[target].units), classes, pool) for name in names)
        known.add(target)
    return Need(sums, image + work)


def _sum_bytes(name: str, module: nn.Module, channels: int, classes: int, pool: int) -> int:
    """Bytes of one sum of one site; those of a few numbers are none."""
    outputs = len(module.weight)
    features = channels * pool**2
    wide = channels * module.kernel_size[1] if has_kernel_rows(module) else 0
    return {
        "gram": 4 * channels**2,
        "pooled_gram": 8 * features**2,
        "class_sums": 8 * classes * features,
        "class_moments": 16 * classes * features,
        "sample": 4 * SAMPLE * features,
        "kernel_rows": 8 * wide**2,
        "output_gram": 8 * outputs**2,
        "fisher": 4 * outputs**2,
    }.get(name, 0)


def metric_bytes(graph: fx.GraphModule, coupling: Coupling) -> int:
    """Bytes of :mod:`sinf.compress.low_rank.metric`: two roots of every site, and work on one."""
    widths = [len(graph.get_submodule(t).weight) for t in set(coupling.mixers.values()) if _is_there(graph, t)]
    return 16 * sum(width**2 for width in widths) + 40 * max(widths, default=0) ** 2


def _is_there(graph: fx.GraphModule, target: str) -> bool:
    return any(str(node.target) == target for node in graph.graph.nodes)


def patch_bytes(graph: fx.GraphModule, coupling: Coupling) -> int:
    """Bytes of the patches of one image of the widest layer."""
    most = 0
    for node in graph.graph.nodes:
        if node.op == "call_module" and str(node.target) in set(coupling.mixers.values()):
            module, shape = graph.get_submodule(str(node.target)), node.meta.get("shape")
            if isinstance(module, nn.Conv2d) and shape:
                most = max(most, 4 * module.weight[0].numel() * math.prod(shape[2:]))
    return most
