"""What every engine must do: answer as torch does, whatever the batch, its order and the thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sinf.bundle.semantic import Bundle
from sinf.engine import session_runtimes
from sinf.engine.engines import RUNTIMES, native, open_engine, register, runtime_of
from sinf.engine.network_engine import open_network
from sinf.engine.quantise import Quantiser
from sinf.engine.torch_engine import SemanticModel
from sinf.engine.torch_runtime import Torch
from sinf.errors import ConfigError, DataError, DependencyError
from sinf.graph.delta import Factors
from sinf.graph.prepare import prepare
from sinf.routing.grouping import TailTimes
from sinf.routing.router import FIRST, FRONT, FeatureRouter, Routed, part_name
from tiny import ENGINES

ALL = [*ENGINES, "as-written"]  # the last is not in the package
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
COUNT = 24


BUILT = ["built", "built_whole", "built_ranks", "built_cascade", "built_depth", "built_sparse"]


@pytest.fixture(scope="module", params=BUILT)
def model(request: pytest.FixtureRequest) -> SemanticModel:
    """A bundle whose thresholds part its inputs: some stop early, some fall back after their subgraph."""
    return SemanticModel(Bundle.load(request.getfixturevalue(request.param)))


@pytest.fixture(scope="module", params=ALL)
def engine(request: pytest.FixtureRequest, model: SemanticModel) -> Iterator[FeatureRouter]:
    """The model in an engine; torch's is a model of its own, so that nothing is compared with itself."""
    own = SemanticModel(model.bundle) if request.param == "torch" else model
    opened = open_engine(own, request.param, threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def images(model: SemanticModel) -> torch.Tensor:
    return torch.randn(COUNT, *model.bundle.spec.preprocessing.size, generator=torch.Generator().manual_seed(0))


def at(router: FeatureRouter, threshold: float, early: float = 0.0) -> FeatureRouter:
    router.threshold, router.early_threshold = threshold, early
    return router


def middle(model: SemanticModel, images: torch.Tensor) -> tuple[float, float]:
    """An early threshold and one that both part these images; neither is near any confidence."""
    early = model.engine.run(FRONT, images)[3]
    late = at(model.feature_router, 0.0).route(images).confidence
    return between(early, 0.25), between(late, 0.5)


def between(values: torch.Tensor, share: float) -> float:
    ordered = values.sort().values
    place = int(share * len(ordered))
    return float(ordered[place - 1] + ordered[place]) / 2


def same(ours: Routed, expected: Routed) -> None:
    for name in ("route", "subgraph_ran", "fell_back"):
        assert np.asarray(getattr(ours, name)).tolist() == getattr(expected, name).tolist(), name
    for name in ("confidence", "logits"):
        torch.testing.assert_close(torch.as_tensor(getattr(ours, name)), getattr(expected, name), **CLOSE)


@pytest.mark.parametrize("threshold", ["zero", "calibrated", "middle", "never"])
def test_answers_are_those_of_torch(
    model: SemanticModel, engine: FeatureRouter, images: torch.Tensor, threshold: str
) -> None:
    calibrated = model.bundle.threshold
    early, late = {
        "zero": (0.0, 0.0),
        "calibrated": (calibrated.early, calibrated.value),
        "middle": middle(model, images),
        "never": (0.0, 2.0),
    }[threshold]
    expected = at(model.feature_router, late, early).route(images)
    same(at(engine, late, early).route(images), expected)
    if threshold == "middle":
        assert 0 < int(expected.fell_back.sum()) < COUNT


def test_a_batch_is_its_images_one_by_one_in_order(
    model: SemanticModel, engine: FeatureRouter, images: torch.Tensor
) -> None:
    early, late = middle(model, images)
    together = at(engine, late, early).route(images)
    alone = [engine.route(image[None]) for image in images]
    same(
        together,
        Routed(*(torch.cat([torch.as_tensor(value) for value in values]) for values in zip(*alone, strict=True))),
    )
    turned = engine.route(images.flip(0))
    assert np.asarray(turned.route)[::-1].tolist() == np.asarray(together.route).tolist()


def test_the_base_model_is_there(model: SemanticModel, engine: FeatureRouter, images: torch.Tensor) -> None:
    for count in (1, COUNT):
        expected = model.network.graph(images[:count])
        torch.testing.assert_close(torch.as_tensor(engine.base(images[:count])), expected, **CLOSE)


def test_the_first_part_of_a_cascade_is_its_front_and_its_small_tail(
    model: SemanticModel, engine: FeatureRouter, images: torch.Tensor
) -> None:
    if not model.bundle.cascade:
        with pytest.raises(ConfigError, match=r"bundles with one cluster \(got [23]\)"):
            engine.engine.run(FIRST, images)
        return
    features, log_clusters, *_ = model.engine.run(FRONT, images)
    expected = features, *model.engine.run(part_name(0), features, log_clusters)
    for found, theirs in zip(engine.engine.run(FIRST, images), expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(found), theirs, **CLOSE)


def test_numpy_and_torch_are_taken(engine: FeatureRouter, images: torch.Tensor) -> None:
    at(engine, 0.0)
    expected = torch.as_tensor(engine(images))
    torch.testing.assert_close(torch.as_tensor(engine(images.numpy())), expected)
    fixed = images.numpy().copy()
    fixed.flags.writeable = False  # as those of np.frombuffer
    torch.testing.assert_close(torch.as_tensor(engine(fixed)), expected)


def test_what_is_closed_opens_again(engine: FeatureRouter, images: torch.Tensor) -> None:
    at(engine, 0.0)
    before = torch.as_tensor(engine(images[:2]))
    engine.close()
    torch.testing.assert_close(torch.as_tensor(engine(images[:2])), before)


def test_bad_images_are_refused(engine: FeatureRouter, images: torch.Tensor) -> None:
    broken = images[:2].clone()
    broken[1, 0, 3, 3] = float("inf")
    for wrong, says in (
        (images[0], "shape"),
        (images[:0], "shape"),
        (images[:1, :, :5], "shape"),
        (images[:1].to(torch.uint8), "float"),
        (broken, "finite"),
    ):
        for kind in (wrong, wrong.numpy()):
            with pytest.raises(DataError, match=says):
                engine.route(kind)


@pytest.mark.parametrize("name", ALL)
def test_more_threads_change_nothing(model: SemanticModel, images: torch.Tensor, name: str) -> None:
    at(model.feature_router, 2.0)
    expected = model.route(images)
    before = torch.get_num_threads()
    try:
        same(open_engine(model, name, threads=2).route(images), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ALL)
def test_an_engine_carries_the_thresholds_over_and_leaves_the_model_alone(built: Path, name: str) -> None:
    measured = TailTimes(name, "f32", 1, "a processor", (1, 4), (1.0, 2.0), (2.0, 3.0), 0.0)
    model = SemanticModel(replace(Bundle.load(built), times=(measured,)))
    model.threshold, model.feature_router.times = 0.25, None
    router = open_engine(model, name)
    assert (router.threshold, router.times) == (0.25, measured)
    router.threshold = 0.75
    assert (model.threshold, model.feature_router.times) == (0.25, None)
    assert open_engine(model, name) is not router


@pytest.mark.parametrize("name", ALL)
def test_one_network_answers_as_in_torch(model: SemanticModel, images: torch.Tensor, name: str) -> None:
    network, size = model.network.graph, model.bundle.spec.preprocessing.size
    run = open_network(prepare(network), size, name)
    for some in (images[:1], images):
        torch.testing.assert_close(torch.as_tensor(run(native(name, some))), network(some), **CLOSE)


def test_channels_that_are_computed_together() -> None:
    """In blocks in ONNX Runtime's f32; elsewhere nothing is known of any."""
    for name in RUNTIMES:
        for precision in runtime_of(name).precisions:
            blocks = (8, 16) if (name, precision) == ("onnxruntime", "f32") else (1,)
            assert runtime_of(name).together(precision) in blocks


def test_names_of_engines_are_their_own() -> None:
    class Second(Torch):
        """Another engine with the name of one."""

    register(Torch())
    with pytest.raises(ConfigError, match=r"name of its own \(got torch\)"):
        register(Second())


# Largest difference of a logit, as a share of what those of the base model span, and share of images whose route may
# change. A deferral head maps larger numbers, log-probabilities, in the engine's precision too.
LOWER = {("openvino", "bf16"): (0.03, 0.05), ("openvino", "int8"): (0.05, 0.1), ("onnxruntime", "int8"): (0.05, 0.1)}


@pytest.fixture(scope="module", params=LOWER, ids="-".join)
def lower(request: pytest.FixtureRequest, model: SemanticModel, images: torch.Tensor) -> Iterator[tuple]:
    """An engine in lower precision, with its tolerances."""
    at(model.feature_router, 0.0)
    name, precision = request.param
    try:
        opened = open_engine(model, name, precision=precision, calibration=images)
    except ConfigError as error:
        pytest.skip(str(error))  # a processor without bf16
    yield opened, *LOWER[request.param]
    opened.close()


def test_lower_precision_is_near(model: SemanticModel, lower: tuple, images: torch.Tensor) -> None:
    """In every part: base model, front and subgraphs, full tail. And it is lower: not all is as in f32."""
    router, share, changed = lower
    logits = model.engine.run("base", images)[0]
    gap = share * float(logits.max() - logits.min())
    if any(isinstance(layer, Factors) for part in model.bundle.parts.values() for layer in part.layers.values()):
        gap *= 2  # what is between the two layers is rounded too
    for threshold in (0.0, 2.0):
        expected, found = at(model.feature_router, threshold).route(images), at(router, threshold).route(images)
        assert float((torch.as_tensor(found.route) != expected.route).float().mean()) <= changed
        same_route = torch.as_tensor(found.route) == expected.route
        difference = (torch.as_tensor(found.logits) - expected.logits)[same_route].abs().max()
        assert 1e-5 < float(difference) < gap
    assert 1e-5 < float((torch.as_tensor(router.base(images)) - logits).abs().max()) < gap


def test_int8_leaves_what_decides_in_f32(model: SemanticModel, images: torch.Tensor) -> None:
    quantiser = Quantiser(model.engine, images)
    for part in (FRONT, "cluster000", "full_tail", *[FIRST] * model.bundle.cascade):
        graph = quantiser.quantise(session_runtimes.part_to_onnx(model.engine, part), part).graph
        types = {t.name: t.data_type for t in graph.initializer}
        whole = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}
        assert onnx.TensorProto.INT8 in types.values()
        if part == FRONT:
            assert {name for name in types if "router." in name} <= whole
            if len(model.bundle.clusters) == 1:
                continue  # nothing is decided there
        products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        assert products[-1].input[1] in whole
        assert products[0].input[1] not in whole


def test_a_precision_is_chosen_only_where_it_is(
    model: SemanticModel, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine, precision, says in (
        ("onnxruntime", "bf16", "f32 or int8 .* take the engine openvino"),
        ("torch", "int8", "take the engine onnxruntime or openvino"),
        ("openvino", "int3", "take one of these"),
    ):
        with pytest.raises(ConfigError, match=says.replace(" .* ", ".*")):
            open_engine(model, engine, precision=precision, calibration=images)
    with pytest.raises(ConfigError, match="calibration images"):
        open_engine(model, "onnxruntime", precision="int8")
    for wrong in (images[:0], images[:, :1]):
        with pytest.raises(ConfigError, match="shape"):
            open_engine(model, "onnxruntime", precision="int8", calibration=wrong)
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *given: ["FP32"])
    with pytest.raises(ConfigError, match="processor"):
        open_engine(model, "openvino", precision="bf16")


def test_exported_parts_hold_no_strides_of_torch(model: SemanticModel) -> None:
    """A pool of features in channels_last was exported as gathers from computed places: slower in every engine, and
    wrong in OpenVINO's int8."""
    for part in ("full_tail", "cluster000", "base"):
        operators = {node.op_type for node in session_runtimes.part_to_onnx(model.engine, part).graph.node}
        assert not operators & {"Shape", "Range"}, part


def test_bad_options_are_refused(model: SemanticModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="tensorflow"):
        open_engine(model, "tensorflow")
    for name in ALL:
        if isinstance(name, str):
            with pytest.raises(ConfigError, match="threads"):
                open_engine(model, name, threads=0)
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(DependencyError, match=f"pip install {name}"):
            open_engine(model, name)
