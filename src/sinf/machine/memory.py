"""How much memory a verb may take, and what its passes need: batches are as large as the budget allows.

All sizes are in bytes. What a pass needs is computed from the shapes of a traced graph, so that the same budget gives
the same batches on every machine, and is said before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from dataclasses import dataclass, field

from torch import fx, nn

from sinf.errors import ConfigError
from sinf.machine.sizes import DEFAULT as DEFAULT
from sinf.machine.sizes import parse as parse
from sinf.machine.sizes import say as say

#: What Python, torch and the libraries that read data take before anything of a user's is in memory.
OVERHEAD = 700_000_000

_FLOAT = 4
_SLACK = 1.15  # some values are alive longer than they need be
_KEPT = 10  # of the budget, one such part is left to allocators, which keep some of what was freed
_SAME_IN_EVAL = (nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd)
_VIEWS = {"flatten", "view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "dropout", "relu_", "add_"}

_NEAR, _FEW = 1 << 24, 8  # bytes of the largest value of all images that run together, and the fewest of these

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One step of a verb: the bytes that it takes, and how many images run at once where at most ``most`` would."""

    name: str
    bytes: int
    batch: int
    most: int


@dataclass
class Memory:
    """A budget in bytes, and the steps that were planned within it."""

    budget: int = DEFAULT
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ConfigError("a memory budget must be positive", got=self.budget, remedy="take 8 GB")

    @property
    def cache(self) -> int:
        """Bytes that the decoded images of one split may take."""
        return self.budget // 8

    def decoded(self, size: tuple[int, ...], *parts: Sized) -> int:
        """Bytes of what stays in memory of the decoded images (C, H, W) of some splits."""
        return sum(min(self.cache, len(part) * math.prod(size)) for part in parts)

    def room(self, fixed: int = 0) -> int:
        """Bytes that are left beside ``fixed`` ones."""
        return max(0, self.budget - self.budget // _KEPT - OVERHEAD - fixed)

    def batch(self, name: str, each: int, most: int, *, fixed: int = 0, least: int = 1) -> int:
        """How many images the step ``name`` runs at once, ``most`` or as many as fit: ``each`` is what an image takes,
        ``fixed`` what is there besides.

        Raises:
            ConfigError: not even ``least`` images fit.
        """
        count = min(most, self.room(fixed) // max(1, each))
        least = min(least, most)
        if count < least:
            raise self._too_small(name, OVERHEAD + fixed + least * each, least, "or smaller images")
        self.steps.append(Step(name, OVERHEAD + fixed + count * each, count, most))
        return count

    def whole(self, name: str, each: int, count: int, *, fixed: int = 0, least: int = 1) -> None:
        """As :meth:`batch`, of a number of images that is not made smaller, since results depend on it.

        Raises:
            ConfigError: they do not fit; it names the batch that would, if one of ``least`` images does.
        """
        fits = self.room(fixed) // max(1, each)
        if fits < count:
            instead = f"or take --batch {fits}" if fits >= least else "or smaller images"
            raise self._too_small(name, OVERHEAD + fixed + count * each, count, instead)
        self.steps.append(Step(name, OVERHEAD + fixed + count * each, count, count))

    def _too_small(self, name: str, size: int, count: int, instead: str) -> ConfigError:
        needed = size * _KEPT / (_KEPT - 1)
        return ConfigError(
            f"{name} must fit into memory",
            got=f"{say(self.budget)}, of about {say(needed)} that it takes with {_images(count)} at once",
            remedy=f"give it more with --memory {math.ceil(needed / 1e8) / 10:g}GB, {instead}",
        )

    def summary(self) -> str:
        """``memory: about 2.1 GB of 8.0 GB (statistics); batches of 12 in statistics``: the step that takes most, and
        those whose batches were made smaller."""
        if not self.steps:
            return f"memory: at most {say(self.budget)}"
        most = max(self.steps, key=lambda step: step.bytes)
        smaller = [f"{step.batch} in {step.name}" for step in self.steps if step.batch < step.most]
        told = f"; batches of {', '.join(smaller)}" if smaller else f"; batches of {most.batch}"
        return f"memory: about {say(most.bytes)} of {say(self.budget)} ({most.name}){told}"


def _images(count: int) -> str:
    return "one image" if count == 1 else f"{count} images"


@dataclass(frozen=True)
class Activations:
    """Bytes of the values that one image makes in a graph.

    Attributes:
        forward: the most at once, when every value is forgotten after its last use.
        backward: the most at once in a forward and a backward pass, which keeps all of them.
        total: all values together.
        largest: the largest one.
    """

    forward: int
    backward: int
    total: int
    largest: int


def activations(graph: fx.GraphModule) -> Activations:
    """What one image takes, from the shapes that the graph was traced with (float32)."""
    last = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}
    ends: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        ends.setdefault(node, []).append(source)
    live = peak = total = largest = 0
    for node in graph.graph.nodes:
        own = value_bytes(node)
        live += own
        total += 0 if _in_place(graph, node) else own
        largest = max(largest, own)
        peak = max(peak, live + _scratch(graph, node))
        live -= sum(value_bytes(source) for source in ends.get(node, ())) + (own if node not in last else 0)
    return Activations(int(_SLACK * peak), int(_SLACK * (total + 4 * largest)), total, largest)


def near(graph: fx.GraphModule, share: int = 1) -> int:
    """How many images run together at best: their largest value stays near the processor from one layer to the next,
    and its memory is used again, where that of larger ones is asked from the system page by page. ``share`` is how many
    such values are in use at once, by which fewer images run."""
    return max(_FEW, _NEAR // share // max(1, activations(graph).largest))


def value_bytes(node: fx.Node) -> int:
    """Bytes of what a node makes for one image; parameters and numbers are none of it."""
    shape = node.meta.get("shape")
    return 0 if node.op in ("get_attr", "output") or not shape else _FLOAT * math.prod(shape)


def _in_place(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether what a node makes lies where its input does: an activation in place, another shape, nothing at all."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return bool(getattr(module, "inplace", False)) or isinstance(module, _SAME_IN_EVAL)
    name = str(getattr(node.target, "__name__", node.target))
    return bool(node.kwargs.get("inplace", False)) or name in _VIEWS


def _scratch(graph: fx.GraphModule, node: fx.Node) -> int:
    """A convolution may copy what it reads and what it makes into another order."""
    if node.op != "call_module" or not isinstance(graph.get_submodule(str(node.target)), nn.modules.conv._ConvNd):
        return 0
    return value_bytes(node) + sum(value_bytes(source) for source in node.all_input_nodes)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.nbytes for t in tensors.values())


def equation_bytes(unknowns: int, outputs: int) -> int:
    """Bytes of normal equations in float64, and of solving them: sums for two sets of rows, and copies of a set."""
    return 8 * (2 * (unknowns**2 + outputs * unknowns) + 5 * unknowns**2 + 4 * outputs * unknowns)
