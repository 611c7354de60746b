"""The single-file export: plain operators, weights once, the answers of the bundle at every threshold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sinf.bundle.semantic import Bundle
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError, VerificationError
from sinf.export import single
from sinf.export.single import OUTPUTS, export_single
from sinf.routing.deferral import Deferral
from sinf.routing.router import BASE


def images_of(model: SemanticModel, count: int = 30) -> torch.Tensor:
    return torch.randn(count, *model.bundle.spec.preprocessing.size, generator=torch.Generator().manual_seed(1))


def answers(path: Path, images: torch.Tensor) -> list[np.ndarray]:
    """The outputs of all images, run one by one, by code that knows nothing of sinf."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = [session.run(list(OUTPUTS), {"images": image[None].numpy()}) for image in images]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("fixture", "kind"),
    [
        ("built", "zero"),
        ("built", "calibrated"),
        ("built", "mixed"),
        ("built", "never"),
        ("built_whole", "mixed"),
        *((name, kind) for name in ("built_ranks", "built_cascade") for kind in ("zero", "calibrated", "never")),
    ],
)
def test_answers_are_those_of_the_bundle(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, kind: str
) -> None:
    model = SemanticModel.from_pretrained(request.getfixturevalue(fixture))
    x = images_of(model)
    if kind == "mixed":
        model = mixed(model, x)
    elif kind != "calibrated":
        model.threshold = {"zero": 0.0, "never": 2.0}[kind]
    export_single(model, tmp_path / "out.onnx")
    expected = model.route(x)
    if kind == "mixed":
        assert 0 < int((~expected.subgraph_ran).sum()) < int(expected.fell_back.sum()) < len(x)
    for name, ours, theirs in zip(OUTPUTS, answers(tmp_path / "out.onnx", x), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=name)


def mixed(model: SemanticModel, images: torch.Tensor) -> SemanticModel:
    """Some images stop early, some are answered by subgraphs, some fall back after theirs."""
    routes = model.route_all(model.extractor(images), torch.zeros(len(images), dtype=torch.long))
    early = float(routes.log_route.exp().quantile(0.31))
    energies = routes.energy.sort().values
    middle = float(energies[len(energies) // 2 :][:2].mean())  # between two, so that no image is at the threshold
    value = (1 + early) / 2  # a threshold below the early one would lower that, too
    deferral = Deferral(math.log(value / (1 - value)) - middle, 0.0, 1.0)
    thresholds = replace(model.bundle.threshold, early=early, value=value)
    return SemanticModel(replace(model.bundle, deferral=deferral, threshold=thresholds))


def test_operators_are_plain_and_metadata_is_there(built: Path, tmp_path: Path) -> None:
    model = SemanticModel.from_pretrained(built)
    export_single(model, tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx")
    assert [opset.domain for opset in graph.opset_import] == [""]
    assert not graph.functions
    properties = {item.key: item.value for item in graph.metadata_props}
    assert json.loads(properties["sinf"])["classes"] == list(model.bundle.class_names)
    clusters = model.bundle.clusters
    stored = [(each["name"], tuple(each["classes"])) for each in json.loads(properties["sinf"])["clusters"]]
    assert stored == list(zip(clusters.names, clusters.members, strict=True))


def test_base_weights_are_stored_once(built_whole: Path, tmp_path: Path) -> None:
    """Without pruned extractor and full tail all that comes on top are indices, mixes and the route predictor."""
    model = SemanticModel.from_pretrained(built_whole)
    export_single(model, tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx").graph
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer if tensor.name.startswith("base/")}
    base = {f"base/{t.name}": list(t.dims) for t in single.part_to_onnx(model.engine, BASE).graph.initializer if t.dims}
    assert weights.items() <= base.items()
    assert {name for name in base if name.endswith((".weight", ".bias"))} == set(weights)
    own = [t for branch in branches(graph) for t in branch.initializer if t.data_type == onnx.TensorProto.FLOAT]
    heads = sum(head.matrix.numel() + head.bias.numel() for head in model.engine.deferral_heads.values())
    assert sum(np.prod(t.dims) for t in own) <= heads + 10


def branches(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """All graphs inside a graph."""
    inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [*inner, *(deeper for each in inner for deeper in branches(each))]


def test_a_file_that_answers_otherwise_is_not_written(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SemanticModel.from_pretrained(built)
    right = single.single_graph

    def wrong(*options: object) -> onnx.ModelProto:
        whole = right(*options)
        table = next(t for t in whole.graph.initializer if t.name == "front/router.head.bias")
        table.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(table)[::-1] + 1, table.name))
        return whole

    monkeypatch.setattr(single, "single_graph", wrong)
    (tmp_path / "out.onnx").write_text("before")
    with pytest.raises(VerificationError, match="bundle"):
        export_single(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_name_must_be_that_of_a_file(built: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.onnx"):
        export_single(SemanticModel(Bundle.load(built)), tmp_path / "out")
