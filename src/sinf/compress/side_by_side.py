"""A network and its smaller version over many images, node by node, in as much memory as is given.

Images are held in chunks. A chunk needs memory for the values that later nodes read, and mostly these shrink with
depth: more chunks join when they will fit to the end, and catch up with what is solved by then. So every image passes
every layer once, and deep layers see more images than early ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Protocol

from torch import Tensor, fx

from sinf.machine.memory import near

CHUNK = 256
_LEAST_CHUNK = 4  # images, of which one is held out


class Rows(Protocol):
    """Images (N, C, H, W), or features, whose rows are made or read when they are asked for; or a tensor."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Tensor: ...


class Chosen:
    """Some rows of a tensor, in an order, which are copied when they are asked for."""

    def __init__(self, whole: Tensor, rows: Tensor) -> None:
        self.whole, self.rows = whole, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.whole[self.rows[rows]]


class ChunkRun:
    """One graph over one chunk, up to some node; values that nobody will read again are forgotten."""

    def __init__(self, interpreter: fx.Interpreter, inputs: Tensor) -> None:
        self.interpreter = interpreter
        self.inputs: Tensor | None = inputs.clone()  # a model may begin in place
        self.values: dict[fx.Node, Any] = {}

    def step(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            first = self.inputs is not None
            self.values[node] = self.inputs if first else node.args[0]
            self.inputs = None
        elif node.op != "output":
            args = fx.node.map_arg(node.args, self.values.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, self.values.__getitem__)
            self.values[node] = getattr(self.interpreter, node.op)(node.target, args, kwargs)

    def forget(self, ends: list[fx.Node]) -> None:
        for source in ends:
            self.values.pop(source, None)

    def bytes(self) -> int:
        return sum(v.nbytes for v in self.values.values() if isinstance(v, Tensor))


class SideBySide:
    """Steps ``base`` and ``smaller``, whose graphs have the same nodes, over images (N, ...) and what the smaller one
    reads in their place."""

    def __init__(
        self,
        base: fx.GraphModule,
        smaller: fx.GraphModule,
        inputs: Rows,
        smaller_inputs: Rows,
        memory: int | None = None,
    ) -> None:
        self.interpreters = (fx.Interpreter(base), fx.Interpreter(smaller))
        self.memory = memory
        self.inputs, self.smaller_inputs = inputs, smaller_inputs
        self.running: list[tuple[ChunkRun, ChunkRun]] = []
        self.nodes = list(zip(base.graph.nodes, smaller.graph.nodes, strict=True))
        self.ends = (_last_uses(base), _last_uses(smaller))
        self.done = 0
        self.needs = self._needs(inputs[:1], smaller_inputs[:1])
        fitting = CHUNK if memory is None else memory // max(1, self.needs[0])
        self.chunk = min(CHUNK, near(base), max(_LEAST_CHUNK, fitting))
        self.waiting = list(range(0, len(inputs), self.chunk))

    def __iter__(self) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Each pair of nodes when the base network has run it and the smaller one has not: what is changed in the
        smaller network by then is what runs."""
        for node, twin in self.nodes:
            self._join()
            for left, _ in self.running:
                left.step(node)
            yield node, twin
            for left, right in self.running:
                left.forget(self.ends[0][node])
                right.step(twin)
                right.forget(self.ends[1][twin])
            self.done += 1

    def inputs_of(self, node: fx.Node, twin: fx.Node) -> Iterator[tuple[Tensor, Tensor]]:
        """What both read now, chunk by chunk."""
        for left, right in self.running:
            yield left.values[node.args[0]], right.values[twin.args[0]]

    def answers_of(self, node: fx.Node, twin: fx.Node) -> Iterator[tuple[Tensor, Tensor]]:
        """What the base network made now, and what the smaller one reads, chunk by chunk."""
        for left, right in self.running:
            yield left.values[node], right.values[twin.args[0]]

    def _needs(self, *inputs: Tensor) -> list[int]:
        """Most bytes that one image will hold in both networks from each node on."""
        held = [0] * len(self.nodes)
        for side, x in enumerate(inputs):
            run = ChunkRun(self.interpreters[side], x)
            for position, pair in enumerate(self.nodes):
                before = run.bytes()
                run.step(pair[side])
                both = run.bytes()
                run.forget(self.ends[side][pair[side]])
                # All chunks of the base network keep what a node reads beside what it made; the smaller one's do not.
                held[position] += both if side == 0 else max(before, run.bytes())
        return list(accumulate(reversed(held), max))[::-1]

    def _join(self) -> None:
        """Let waiting chunks in while there is room for them to the end; one is always let in."""
        while self.waiting and (not self.running or self._room()):
            first = self.waiting.pop(0)
            rows = slice(first, first + self.chunk)
            x = self.inputs[rows]
            same = self.smaller_inputs is self.inputs
            left = ChunkRun(self.interpreters[0], x)
            right = ChunkRun(self.interpreters[1], x if same else self.smaller_inputs[rows])
            for pair in self.nodes[: self.done]:
                for run, node, ends in zip((left, right), pair, self.ends, strict=True):
                    run.step(node)
                    run.forget(ends[node])
            self.running.append((left, right))

    def _room(self) -> bool:
        return self.memory is None or (len(self.running) + 1) * self.chunk * self.needs[self.done] <= self.memory


def _last_uses(graph: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """By node, the values that it is the last to read."""
    last = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}
    ends: dict[fx.Node, list[fx.Node]] = {node: [] for node in graph.graph.nodes}
    for source, node in last.items():
        ends[node].append(source)
    return ends
