"""How many images the passes of compression run at once, within a budget of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import fx, nn

from sinf.compress.side_by_side import CHUNK
from sinf.data.images import BATCH, LabelledImages
from sinf.graph.coupling import Coupling
from sinf.graph.network import PartedNetwork
from sinf.machine.memory import Memory, activations, equation_bytes, near, weight_bytes
from sinf.statistics import Statistic
from sinf.statistics.need import need_of, patch_bytes

_CHECKED = 4  # images on which a smaller network is checked
_PATCHES = 3 << 26  # bytes of patches, however small an image's are
_LEAST = 4  # images in a chunk of a reconstruction


@dataclass(frozen=True)
class Passes:
    """What passes may take: ``at_once`` images in a pass for statistics (None: a whole batch), bytes of ``activations``
    and of the ``equations`` of one layer while weights are solved for (None: no limit), and ``checked`` images."""

    at_once: int | None = None
    activations: int | None = None
    equations: int | None = None
    checked: int = _CHECKED


def plan_passes(
    memory: Memory,
    graph: fx.GraphModule,
    coupling: Coupling,
    needs: Iterable[type[Statistic]],
    *,
    classes: int,
    pool: int = 1,
    fixed: int = 0,
    beside: int = 0,
    part: str = "",
) -> Passes:
    """Passes of ``graph`` for the statistics ``needs``, beside ``fixed`` bytes that are always taken and those
    ``beside`` the sums; ``part`` names the part of a network that ``graph`` is.

    Raises:
        ConfigError: the fewest images do not fit.
    """
    needed, values = need_of(graph, coupling, needs, classes, pool), activations(graph)
    kept = fixed + needed.sums + beside
    at_once = memory.batch(f"statistics{part}", needed.image, min(BATCH, near(graph, 2)), fixed=kept)
    widest = max((equation_bytes(*shape) for shape in _layers(graph, coupling)), default=0)
    kept += min(_PATCHES, 3 * patch_bytes(graph, coupling))
    equations = min(widest, memory.room(kept) // 3)
    memory.batch(f"reconstruction{part}", 4 * values.forward, CHUNK, fixed=kept + equations, least=_LEAST)
    checked = memory.batch(f"check{part}", 4 * values.total, _CHECKED, fixed=fixed)
    # Convolutions copy what they read and make, and rows of a chunk are copied when they are added up.
    return Passes(at_once, memory.room(kept + equations) // 2, max(equations, memory.room(kept) // 3), checked)


def plan_build(
    memory: Memory,
    network: PartedNetwork,
    module: nn.Module,
    images: Sequence[LabelledImages],
    needs: Iterable[type[Statistic]],
    *,
    pool: int = 1,
    beside: Callable[[fx.GraphModule, Coupling], int] = lambda graph, coupling: 0,
    whole: bool = False,
) -> tuple[Passes, Passes]:
    """Passes of a whole network (those of the tail, unless it is made smaller as a ``whole``) and of its tail. The
    ``images`` that score come first; all are given in batches that fit. ``beside`` says what is taken beside the sums.

    Raises:
        ConfigError: the memory is too small.
    """
    sets, needs, classes = list({id(part): part for part in images}.values()), tuple(needs), images[0].classes
    fixed = 4 * weight_bytes(module) + memory.decoded(input_shape(network.graph), *sets)
    # the base model, and the extractor and the tail; then features of all images on the shelf
    most = min(BATCH, near(network.graph))
    batch = memory.batch("features", 2 * activations(network.graph).forward, most, fixed=fixed)
    for part in sets:
        part.limit(memory.cache, batch)
    held = (2 if whole else 1) * min(memory.cache, 4 * math.prod(network.cut.shape) * len(images[0]))
    tail = plan_passes(
        memory, network.parts.tail, network.coupling, needs, classes=classes, pool=pool, fixed=fixed + held,
        beside=beside(network.parts.tail, network.coupling), part=" of subgraphs",
    )  # fmt: skip
    if not whole:
        return tail, tail
    return plan_passes(
        memory, network.graph, network.coupling, needs, classes=classes, pool=pool, fixed=fixed,
        beside=beside(network.graph, network.coupling),
    ), tail  # fmt: skip


def _layers(graph: fx.GraphModule, coupling: Coupling) -> list[tuple[int, int]]:
    """Unknowns and outputs of every layer where channels meet."""
    targets = set(coupling.mixers.values()) & {str(node.target) for node in graph.graph.nodes}
    weights = [graph.get_submodule(target).weight for target in targets]
    return [(weight[0].numel() + 1, len(weight)) for weight in weights]


def input_shape(graph: fx.GraphModule) -> tuple[int, ...]:
    """``(C, H, W)`` of what a traced graph reads."""
    first = next(node for node in graph.graph.nodes if node.op == "placeholder")
    return tuple(first.meta["shape"][1:])


def smaller_limit(first: int | None, second: int | None) -> int | None:
    """The smaller of two limits, of which None is none."""
    return second if first is None else first if second is None else min(first, second)
