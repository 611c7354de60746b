"""One ONNX file with the whole of a bundle: route predictor, deferral, and ``If``s around subgraphs and full tail.

    images (1, C, H, W) -> logits (1, classes), route (1,), confidence (1,), fell_back (1,), subgraph_ran (1,)

Plain operators, so that no code of sinf is needed, in any language. The batch is one image, because the condition of
``If`` is one for the whole batch. Base weights are stored once (see :mod:`sinf.export.weights`); thresholds are the
constants ``threshold`` and ``early_floor``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from sinf.edge import SUFFIXES
from sinf.engine.onnx_parts import part_to_onnx
from sinf.engine.onnxruntime_engine import OnnxRuntimeEngine
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError, ModelError
from sinf.export.describe import description, require_same, samples
from sinf.export.weights import Weights
from sinf.measure.accuracy import Progress
from sinf.routing.router import BASE, FRONT, FULL_TAIL, early_floor, part_name
from sinf.storage.files import replacing

#: Names in the file, in the order of ``Routed``.
OUTPUTS = ("logits", "route", "confidence", "fell_back", "subgraph_ran")
_SAMPLES = 8


def export_single(model: SemanticModel, path: str | Path, progress: Progress | None = None) -> None:
    """Write a bundle as one file.

    Raises:
        ConfigError: the name does not end in .onnx.
        VerificationError: the file does not answer as the bundle does.
        StorageError: it cannot be written; what was there stays.
    """
    path = Path(path)
    if path.suffix != SUFFIXES["onnx"] or path.is_dir():
        raise ConfigError("the single layout is one file that ends in .onnx", got=path, remedy="name such a file")
    whole = single_graph(model, progress)
    onnx.checker.check_model(whole, full_check=True)
    with replacing(path) as partial:
        onnx.save(whole, partial, format="protobuf")
        _verify(model, partial)


def _verify(model: SemanticModel, path: Path) -> None:
    engine = OnnxRuntimeEngine(lambda part: path)
    for image in samples(model, _SAMPLES):
        routed = model.route(image[None])
        require_same("an image", engine.run("single", image[None].numpy()), tuple(routed))


def single_graph(model: SemanticModel, progress: Progress | None = None) -> onnx.ModelProto:
    """The graph of :func:`export_single`."""
    clusters = len(model.bundle.clusters)
    base = part_to_onnx(model.engine, BASE)
    weights = Weights(model.engine, base)

    def part(name: str, of: str, outputs: list[str]) -> GraphProto:
        return _renamed(part_to_onnx(model.engine, name).graph, name, of, weights, outputs)

    def leaf(cluster: int) -> GraphProto:
        name = part_name(cluster)
        if progress is not None:
            progress(cluster + 1, clusters)
        return part(name, name, [f"{name}/logits", f"{name}/confidence"])

    front = part(FRONT, "extractor", ["features", "log_clusters", "route", "early"])

    routing = model.feature_router
    # The small tail of a cascade runs for every input.
    floor = 0.0 if routing.cascade else early_floor(routing.early_threshold, routing.threshold)
    constants = [
        _number("early_floor", floor, np.float32),
        _number("threshold", routing.threshold, np.float32),
        numpy_helper.from_array(np.zeros((1, model.bundle.clusters.classes), np.float32), "no_logits"),
    ]
    stop = helper.make_graph(
        [_same("no_logits", "stop/logits"), _same("early", "stop/confidence")],
        "stop",
        [],
        _values(["stop/logits", "stop/confidence"]),
    )
    full = part(FULL_TAIL, FULL_TAIL, [f"{FULL_TAIL}/logits"])
    stands = helper.make_graph(
        [_same("subgraph_ran/logits", "stands/logits")], "stands", [], _values(["stands/logits"])
    )
    nodes = [
        *front.node,
        helper.make_node("GreaterOrEqual", ["early", "early_floor"], ["subgraph_ran"]),
        _if("subgraph_ran", _tree(0, clusters, leaf, constants), stop, ["subgraph_ran/logits", "confidence"]),
        helper.make_node("Less", ["confidence", "threshold"], ["fell_back"]),
        _if("fell_back", full, stands, ["logits"]),
    ]
    types = (TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL, TensorProto.BOOL)
    shapes = ([1, model.bundle.clusters.classes], [1], [1], [1], [1])
    size = model.bundle.spec.preprocessing.size
    graph = helper.make_graph(
        nodes,
        "sinf",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, *size])],
        [helper.make_tensor_value_info(*value) for value in zip(OUTPUTS, types, shapes, strict=True)],
        [*weights.tensors(), *front.initializer, *constants],
    )
    whole = helper.make_model(graph, opset_imports=base.opset_import, ir_version=base.ir_version, producer_name="sinf")
    helper.set_model_props(whole, {"sinf": json.dumps(description(model))})
    return whole


def _tree(low: int, high: int, leaf: Callable[[int], GraphProto], constants: list[TensorProto]) -> GraphProto:
    """Clusters ``low`` to ``high`` (not included) by halves: a route is found in as many steps as it has bits."""
    if high - low == 1:
        return leaf(low)
    middle, name = (low + high) // 2, f"routes{low}_{high}"
    constants.append(_number(f"{name}/middle", middle, np.int64))
    outputs = [f"{name}/logits", f"{name}/confidence"]
    branches = _tree(low, middle, leaf, constants), _tree(middle, high, leaf, constants)
    nodes = [
        helper.make_node("Less", ["route", f"{name}/middle"], [f"{name}/lower"]),
        _if(f"{name}/lower", *branches, outputs),
    ]
    return helper.make_graph(nodes, name, [], _values(outputs))


def _renamed(graph: GraphProto, part: str, of: str, weights: Weights, outputs: list[str]) -> GraphProto:
    """A part as a graph that reads its inputs from around it, with names of its own and weights made from the base
    model's; ``of`` is its name in the bundle."""
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        raise ModelError("a part with control flow cannot be put into a single file", got=part, remedy="export split")
    names = {value.name: value.name for value in graph.input}
    names |= dict(zip((value.name for value in graph.output), outputs, strict=True))
    constants, nodes = [], []
    for tensor in graph.initializer:
        recipe = weights.recipe(of, tensor, f"{part}/{tensor.name}")
        constants += recipe.constants
        nodes += recipe.nodes
        names[tensor.name] = recipe.last
    for node in graph.node:
        renamed = NodeProto()
        renamed.CopyFrom(node)
        renamed.name = f"{part}/{node.name}"
        for field in (renamed.input, renamed.output):
            field[:] = [names.get(name, f"{part}/{name}") if name else "" for name in field]
        nodes.append(renamed)
    return helper.make_graph(nodes, part, [], _values(outputs), constants)


def _if(condition: str, then: GraphProto, otherwise: GraphProto, outputs: list[str]) -> NodeProto:
    return helper.make_node("If", [condition], outputs, then_branch=then, else_branch=otherwise)


def _same(value: str, name: str) -> NodeProto:
    return helper.make_node("Identity", [value], [name])


def _number(name: str, value: float, kind: type) -> TensorProto:
    return numpy_helper.from_array(np.array([value], kind), name)


def _values(names: list[str]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
