"""Base model -> feature extractor + tail, at a cut point: a place through which all data passes.

Both parts are ``torch.fx`` graph modules that share the base model's layers.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

from torch import fx, nn

from sinf.errors import CutError
from sinf.graph.trace import layer


@dataclass(frozen=True)
class CutPoint:
    """A place to cut: ``name`` is the outermost module that ends there, ``shape`` that of the features of one image."""

    name: str
    node: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Partition:
    """``extractor``: images -> features, ``tail``: features -> logits."""

    cut: CutPoint
    extractor: fx.GraphModule
    tail: fx.GraphModule


def cut_points(graph: fx.GraphModule) -> list[CutPoint]:
    """All places where exactly one tensor, with channels, height and width, is all that later layers read.

    Of a run such as convolution, batch norm, activation, pooling only the end is listed: it costs the same to cut there
    and the features are smallest.
    """
    nodes = list(graph.graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    reach = 0  # last position that reads any value made so far, this node's own apart
    points: dict[fx.Node, CutPoint] = {}
    last_in_module = _last_nodes(nodes)
    for i, node in enumerate(nodes[:-1]):
        own = max((position[user] for user in node.users if not _tells_batch_only(user)), default=0)
        shape = node.meta.get("shape")
        made = any(n.op == "call_module" for n in nodes[: i + 1])
        remaining = any(n.op == "call_module" for n in nodes[i + 1 :])
        maps = shape is not None and len(shape) == 4 and shape[0] == 1  # traced with one image; not its windows
        if maps and reach <= i and own > i and made and remaining:
            points[node] = CutPoint(_name(node, last_in_module), node.name, tuple(shape[1:]))
        if node.op != "get_attr" and not _tells_batch_only(node):
            reach = max(reach, own)
    kept = [point for node, point in points.items() if not _goes_on(graph, node, points)]
    names = [point.name for point in kept]  # an activation that is called again ends several places
    return [replace(p, name=p.node) if names.count(p.name) > 1 else p for p in kept]


def _goes_on(graph: fx.GraphModule, node: fx.Node, points: dict[fx.Node, CutPoint]) -> bool:
    """Whether the only reader of a cut point is another one that does not mix channels."""
    users = list(node.users)
    if len(users) != 1 or users[0] not in points:
        return False
    return not (users[0].op == "call_module" and isinstance(layer(graph, users[0]), nn.modules.conv._ConvNd))


def find_cut(graph: fx.GraphModule, name: str) -> CutPoint:
    """The cut point of this name, or an error that lists those there are."""
    points = cut_points(graph)
    for point in points:
        if name in (point.name, point.node):
            return point
    names = ", ".join(point.name for point in points) or "none"
    raise CutError(f"no cut point {name!r}", got=f"cut points {names}", remedy="take one of them (see sinf profile)")


def partition(graph: fx.GraphModule, cut: CutPoint) -> Partition:
    """Part a traced model at a cut point."""
    nodes = list(graph.graph.nodes)
    index = next(i for i, node in enumerate(nodes) if node.name == cut.node)
    return Partition(
        cut,
        _copy(graph, nodes[: index + 1], outer=None, name="FeatureExtractor"),
        _copy(graph, nodes[index + 1 :], outer=nodes[index], name="Tail"),
    )


def _copy(root: fx.GraphModule, nodes: list[fx.Node], outer: fx.Node | None, name: str) -> fx.GraphModule:
    """A graph of some nodes; ``outer`` becomes its input, or the last node its output."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    if outer is not None:
        new[outer] = graph.placeholder("features")
        new[outer].meta["shape"] = outer.meta["shape"]

    def bring(node: fx.Node) -> None:
        """A parameter read before the cut, or the batch size, which the features tell as well as the images did."""
        if outer is not None and _is_batch_size(node):
            new[node] = graph.call_method("size", (new[outer], 0))
            new[node].meta["shape"] = None
        elif node not in new:
            new[node] = graph.node_copy(node, lambda n: new[n])

    for node in nodes:
        outside = [source for source in node.all_input_nodes if source not in new]
        if outside and _tells_batch_only(node):
            if _is_batch_size(node):
                bring(node)
            continue
        for source in outside:
            bring(source)
        new[node] = graph.node_copy(node, lambda n: new[n])
    if outer is None:
        graph.output(new[nodes[-1]])
    graph.lint()
    return fx.GraphModule(root, graph, class_name=name)


def _is_shape(node: object) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.op == "call_function" and node.target is getattr and node.args[1] == "shape"


def _is_batch_size(node: fx.Node) -> bool:
    """``x.size(0)`` or ``x.shape[0]`` where the images of ``x`` stand, and nothing else such as windows of images."""
    if node.op == "call_method":
        read = node.target == "size" and tuple(node.args[1:]) == (0,)
        source = node.args[0]
    else:
        read = node.target is operator.getitem and node.args[1] == 0 and _is_shape(node.args[0])
        source = node.args[0].args[0] if read else None
    shape = source.meta.get("shape") if read and isinstance(source, fx.Node) else None
    return shape is not None and len(shape) > 0 and shape[0] == 1  # the graph was traced with one image


def _tells_batch_only(node: fx.Node) -> bool:
    return _is_batch_size(node) or (_is_shape(node) and all(_is_batch_size(user) for user in node.users))


def _last_nodes(nodes: list[fx.Node]) -> dict[str, fx.Node]:
    """For every module path, the last node made inside it."""
    last: dict[str, fx.Node] = {}
    for node in nodes:
        path = node.meta.get("module_path") or ""
        parts = path.split(".") if path else []
        for depth in range(1, len(parts) + 1):
            last[".".join(parts[:depth])] = node
    return last


def _name(node: fx.Node, last_in_module: dict[str, fx.Node]) -> str:
    ending = [path for path, last in last_in_module.items() if last is node]
    if ending:
        return min(ending, key=lambda path: path.count("."))
    return str(node.target) if node.op == "call_module" else node.name
