"""One model serves many threads with the answers of one, after a fork too; what torch may ask of a model is done, or
refused by one clear error."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from gated import stir
from once import ONCE, Once
from sinf.dynamic.bundle import DynamicBundle
from sinf.dynamic.model import DynamicModel
from sinf.dynamic.network import GateConfig, attach
from sinf.engine import onnx_parts
from sinf.engine.compiled_engine import CompiledTorchEngine
from sinf.engine.engines import open_engine
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError
from sinf.machine.threads import Lock
from sinf.models import BaseModel, load_model
from sinf.routing.router import FRONT, FeatureRouter, Routed
from tiny import CLASSES, ENGINES, randomise

THREADS, CALLS = 8, 6
SIZE = (3, 32, 32)


@pytest.fixture(scope="module")
def semantic(built: Path) -> SemanticModel:
    """Some inputs of it fall back."""
    model = SemanticModel.from_pretrained(built)
    model.threshold = 0.5
    return model


@pytest.fixture(scope="module")
def dynamic() -> DynamicModel:
    torch.manual_seed(0)
    base = load_model("resnet20", classes=CLASSES, options={"width": 0.25})
    base = BaseModel(randomise(base.module), base.spec)
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    network = stir(attach(base, GateConfig(sites=("layer1.0.conv1", "layer2.1.conv1"))).eval())
    with torch.no_grad():
        _, seen = network.observe(torch.randn(8, *SIZE))
    for index, saliency in enumerate(seen.saliencies):
        network.gate(index).set_remaining(0.5, saliency.mean(0).detach())
    names = ["red", "orange", "green", "teal", "blue", "violet"]
    return DynamicModel(DynamicBundle.of(network, base.spec, before, names, {}), batches="mask")


@pytest.fixture(params=["semantic", "dynamic"])
def model(request: pytest.FixtureRequest) -> SemanticModel | DynamicModel:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    """Single images, and a few together."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(count, *SIZE, generator=draw) for count in (1, 1, 1, 1, 5, 3)]


def values(answer: Any) -> list[Any]:
    parts = answer if isinstance(answer, tuple) else (answer,)
    return [np.asarray(part) for part in parts]


def same_in_threads(run: Callable[[torch.Tensor], Any], batches: list[torch.Tensor], expected: list[Any]) -> None:
    """Every thread gets for every batch what one thread alone gets."""
    start = threading.Barrier(THREADS)

    def work(number: int) -> list[tuple[int, Any]]:
        start.wait()
        indices = [(number + call) % len(batches) for call in range(CALLS)]
        return [(place, run(batches[place])) for place in indices]

    with ThreadPoolExecutor(THREADS) as pool:
        for answers in list(pool.map(work, range(THREADS))):
            for place, answer in answers:
                for ours, theirs in zip(values(answer), values(expected[place]), strict=True):
                    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, None])
def test_a_memory_budget_serves_many_threads(
    built: Path, semantic: SemanticModel, batches: list[torch.Tensor], share: float | None
) -> None:
    expected = [semantic.route(x) for x in batches]
    budget = None if share is None else int(share * semantic.tails.bytes)
    shared = SemanticModel.from_pretrained(built, memory_budget=budget)
    shared.threshold = 0.5
    same_in_threads(shared.route, batches, expected)
    if budget:
        assert shared.tails.bytes <= budget
    if budget is None:
        assert shared.tails.made == semantic.tails.made


def test_threads_of_a_dynamic_model(dynamic: DynamicModel, batches: list[torch.Tensor]) -> None:
    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (dynamic(x), *dynamic.choose(x))

    same_in_threads(run, batches, [run(x) for x in batches])


@pytest.mark.parametrize("name", ENGINES)
def test_engines_serve_many_threads(semantic: SemanticModel, batches: list[torch.Tensor], name: str) -> None:
    """Parts are opened by whatever thread needs them first."""
    expected = [semantic.route(x) for x in batches]
    router = open_engine(semantic, name).one_by_one()
    loosely = [Routed(*(np.asarray(value) for value in answer)) for answer in expected]
    start = threading.Barrier(THREADS)

    def work(number: int) -> list[tuple[int, Routed]]:
        start.wait()
        return [(place, router.route(batches[place])) for place in [(number + i) % len(batches) for i in range(CALLS)]]

    with ThreadPoolExecutor(THREADS) as pool:
        for answers in list(pool.map(work, range(THREADS))):
            for place, answer in answers:
                for ours, theirs in zip(values(answer), loosely[place], strict=True):
                    np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol=1e-3, atol=1e-4)


def test_a_call_has_one_threshold_from_its_beginning_to_its_end(semantic: SemanticModel) -> None:
    """As if another thread changed it before every part that runs."""
    x = torch.randn(6, *SIZE, generator=torch.Generator().manual_seed(1))

    class Changing:
        array, close = staticmethod(semantic.engine.array), staticmethod(semantic.engine.close)

        def run(self, part: str, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            router.threshold = 2.0 - router.threshold
            return semantic.engine.run(part, *inputs)

    router = FeatureRouter(Changing(), SIZE, 0.0, 0.0)
    for threshold, falls in ((0.0, False), (2.0, True)):
        for count in (1, 6):
            router.threshold = threshold
            routed = router.route(x[:count])
            assert routed.fell_back.tolist() == routed.subgraph_ran.logical_not().tolist() == [falls] * count


def test_a_model_answers_while_others_are_loaded(built: Path, semantic: SemanticModel) -> None:
    """torch changes nn.Module for all threads while it traces."""
    x = torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(2))
    expected = semantic(x)

    def load(_: int) -> None:
        SemanticModel.from_pretrained(built)

    with ThreadPoolExecutor(2) as pool:
        loading = [pool.submit(load, number) for number in range(4)]
        while not all(each.done() for each in loading):
            assert torch.equal(semantic(x), expected)
        for each in loading:
            each.result()
    assert torch.equal(copy.deepcopy(semantic)(x), expected)


def test_a_model_answers_while_a_part_is_exported(built: Path, semantic: SemanticModel) -> None:
    """torch exports, and compiles, with nn.Module changed for all threads: they answered wrongly, in silence."""
    x = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(8))
    expected, base = semantic(x), semantic.feature_router.base(x)
    with ThreadPoolExecutor(1) as pool:
        exporting = pool.submit(onnx_parts.part_to_onnx, SemanticModel.from_pretrained(built).engine, FRONT)
        while not exporting.done():
            assert torch.equal(semantic(x), expected)
            assert torch.equal(semantic.feature_router.base(x), base)
        exporting.result()


# ---- other processes


class Answers(Dataset):
    def __init__(self, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
        self.run, self.x = run, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> Any:
        return torch.as_tensor(self.run(self.x[row : row + 1]))[0]


def in_workers(run: Callable[[torch.Tensor], Any], x: torch.Tensor) -> torch.Tensor:
    """What two workers answer, each forked from here."""
    loader = DataLoader(Answers(run, x), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
    return torch.cat(list(loader))


def test_after_a_fork(once: Once, built: Path) -> None:
    """Where OpenVINO has quantised or computed in bf16, a fork ends the process in its own threads: those tests need a
    process in which it has not."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "fork", __file__]
    environment = {**os.environ, ONCE: str(once.root)}
    root = Path(__file__).parents[2]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


@pytest.mark.fork
def test_workers_that_are_forked_answer_as_one_process(built: Path, dynamic: DynamicModel) -> None:
    """Also where a thread was making a subgraph when they were forked."""
    x = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(3))
    shared = SemanticModel.from_pretrained(built, memory_budget=0)
    cases = ((shared, shared.tails._lock), (lambda image: dynamic.choose(image).logits, dynamic._observing))
    for run, lock in cases:
        expected = torch.cat([run(image[None]) for image in x])
        held, done = threading.Event(), threading.Event()

        def hold(lock: Lock = lock, held: threading.Event = held, done: threading.Event = done) -> None:
            with lock:
                held.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            torch.testing.assert_close(in_workers(run, x), expected)
        finally:
            done.set()
            thread.join()


@pytest.mark.fork
def test_an_engine_of_another_runtime_says_where_it_runs(semantic: SemanticModel) -> None:
    x = torch.randn(2, *SIZE)
    for name in ("onnxruntime", "openvino"):
        router = open_engine(semantic, name)
        router(x)
        with pytest.raises(ConfigError, match=f"engine of {name} runs in the process that opened it.*fork"):
            in_workers(router, x)
        for duplicate in (copy.deepcopy, pickle.dumps):
            with pytest.raises(ConfigError, match="open the engine in the worker"):
                duplicate(router)
    with pytest.raises(ConfigError, match="torch-compile runs in the process that opened it"):
        copy.deepcopy(CompiledTorchEngine(semantic.engine))


# ---- what torch asks of modules


def test_copies_are_models_of_their_own(model: SemanticModel | DynamicModel) -> None:
    x = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(4))
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert torch.equal(other(x), expected)
        if isinstance(model, SemanticModel):
            assert other.threshold == model.threshold
            other.threshold = 2.0
            assert model.threshold == 0.5
    assert torch.equal(model(x), expected)


def test_an_engine_of_torch_can_be_copied(semantic: SemanticModel) -> None:
    x = torch.randn(2, *SIZE)
    for other in (copy.deepcopy(semantic.feature_router), pickle.loads(pickle.dumps(semantic.feature_router))):
        assert torch.equal(other(x), semantic(x))
        assert other.engine is not semantic.engine


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda m: m.half(), "float16 on cpu"),
        (lambda m: m.bfloat16(), "bfloat16 on cpu"),
        (lambda m: m.double(), "float64 on cpu"),
        (lambda m: m.to(torch.float64), "float64 on cpu"),
        (lambda m: m.to("meta"), "on meta"),
        (lambda m: m.to("cuda:77"), "float32 on the processor"),
        (lambda m: nn.Sequential(m).half(), "float16 on cpu"),
        (lambda m: m.requires_grad_(), "not trained"),
        (lambda m: m.state_dict(), "save_pretrained"),
        (lambda m: m.load_state_dict({}), "from_pretrained"),
    ],
)
def test_what_cannot_be_done_is_refused(
    model: SemanticModel | DynamicModel, ask: Callable[[nn.Module], Any], says: str
) -> None:
    x = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(5))
    expected = model(x)
    with pytest.raises(ConfigError, match=says):
        ask(model)
    assert torch.equal(model(x), expected)


def test_what_changes_nothing_is_done(model: SemanticModel | DynamicModel) -> None:
    x = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(6))
    expected = model(x)
    for same in (
        model.to("cpu"), model.cpu(), model.float(), model.eval(), model.train(), model.requires_grad_(False),
        model.to(memory_format=torch.channels_last), model.to(torch.float32),
    ):  # fmt: skip
        assert same is model
        assert not model.training
    assert torch.equal(model(x), expected)
    if isinstance(model, SemanticModel):
        assert torch.equal(model(x.double()), expected)


def test_a_module_that_holds_a_model_is_trained_and_stored_without_it(model: SemanticModel | DynamicModel) -> None:
    x = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(7))
    expected = model(x)
    parent = nn.Sequential(model, nn.Linear(CLASSES, 2))
    parent.train()
    optimizer = torch.optim.SGD(parent.parameters(), lr=0.1, weight_decay=0.5)
    parent(x).sum().backward()
    optimizer.step()
    assert list(parent.state_dict()) == ["1.weight", "1.bias"]
    parent.load_state_dict(parent.state_dict())
    parent.eval().train().to("cpu")
    assert not model.training
    assert torch.equal(model(x), expected)


def test_parameters_are_there_to_look_at(model: SemanticModel | DynamicModel) -> None:
    """Under names of their own, once each, frozen, where the model computes; what holds the model does not see them."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    held = model.network if isinstance(model, DynamicModel) else nn.ModuleList([model.network.graph, model.router])
    assert {id(p) for p in parameters.values()} == {id(p) for p in held.parameters()}
    assert {id(b) for b in buffers.values()} == {id(b) for b in held.buffers()}
    assert len({id(p) for p in parameters.values()}) == len(parameters) > 0
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters.values()]
    assert [id(b) for b in model.buffers()] == [id(b) for b in buffers.values()]
    assert all(p.device.type == "cpu" and not p.requires_grad for p in model.parameters())
    assert {name.split(".")[0] for name in parameters} == set(model.held())
    assert next(model.named_parameters("mine"))[0].startswith("mine.")
    assert list(model.parameters(recurse=False)) == list(model.buffers(recurse=False)) == []
    assert list(nn.Sequential(model).parameters()) == list(nn.Sequential(model).buffers()) == []


def test_an_optimizer_changes_nothing_of_a_model(model: SemanticModel | DynamicModel) -> None:
    x = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(8))
    expected = model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    model.zero_grad()
    optimizer.step()
    assert not model(x).requires_grad
    assert torch.equal(model(x), expected)


def test_front_and_base_are_made_once(built: Path) -> None:
    shared = SemanticModel.from_pretrained(built)
    start = threading.Barrier(THREADS)

    def ask(_: int) -> tuple[int, int]:
        start.wait()
        return id(shared.engine.front), id(shared.engine.base)

    with ThreadPoolExecutor(THREADS) as pool:
        assert len(set(pool.map(ask, range(THREADS)))) == 1
    assert shared.engine.run(FRONT, torch.randn(1, *SIZE))[0].shape[0] == 1
