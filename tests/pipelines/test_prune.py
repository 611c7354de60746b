"""Static pruning to a plain model: what is made, measured and saved, and who can load it."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sinf.bundle.folder import require_place
from sinf.bundle.plain import deployed
from sinf.data.images import LabelledImages
from sinf.errors import BundleError, ConfigError, ModelError, VerificationError
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.network import Network
from sinf.graph.price import LayerTimes
from sinf.graph.slice import slice_graph
from sinf.graph.trace import trace
from sinf.graph.weight_cost import WEIGHT_COST
from sinf.measure.limits import Limits
from sinf.measure.timing import interleaved, summary
from sinf.models import BaseModel, ModelSpec, load_model, load_spec
from sinf.models import plain as plain_module
from sinf.models.to_plain import make_plain, to_plain
from sinf.pipelines import comparison as pruned_module
from sinf.pipelines import latency_budget
from sinf.pipelines import prune as pruning
from sinf.pipelines.comparison import Size, compare, save
from sinf.pipelines.prune import Amount, FineTuning, PruneConfig, Pruned, prune
from sinf.pipelines.prune_config import describe
from sinf.training.recipe import Distillation
from times import like_macs
from tiny import COLOUR, NETWORKS, Attention, random_keep, randomise, traced

CONFIG = PruneConfig(Amount(macs=0.5), "channels", limits=None, images=36)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.manual_seed(0)
    made = load_model("vgg11", classes=6, options={"width": 0.125})
    randomise(made.module)
    return made


@pytest.fixture(scope="module")
def pruned(base: BaseModel, tiny_images: LabelledImages, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    return prune(base, tiny_images, CONFIG, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def folder(pruned: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write into it."""
    path = tmp_path_factory.mktemp("pruned") / "model"
    save(pruned, path, list("abcdef"))
    return path


def answers(model: nn.Module, seed: int = 0) -> torch.Tensor:
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.eval()(x)


def test_a_plain_model_answers_as_the_network_that_it_describes(pruned: Pruned) -> None:
    x = torch.randn(3, 3, 32, 32)
    pruned.require_answers_of(pruned.module, x)
    with pytest.raises(VerificationError, match="must answer as the pruned network"):
        pruned.require_answers_of(nn.Sequential(pruned.module, nn.ReLU()), x)


# ---- what is made


@pytest.mark.parametrize("method", ["channels", "ranks"])
def test_a_transformer_is_pruned(method: str, tiny_images: LabelledImages, tmp_path: Path) -> None:
    """Its attention is counted and stays; its linear layers become smaller."""
    torch.manual_seed(0)
    base = BaseModel(Attention(24).eval(), ModelSpec("own:Attention", 6, COLOUR))
    made = prune(base, tiny_images, replace(CONFIG, amount=Amount(macs=0.9), method=method, round_to=1), tmp_path)
    before, after = Size.of(base), Size.of(made)
    assert 0.7 < after.macs / before.macs <= 0.9
    x = torch.randn(3, *COLOUR.size)
    with torch.no_grad():
        assert made.module(x).shape == base.module(x).shape


def test_a_budget_of_macs_is_kept(base: BaseModel, pruned: BaseModel) -> None:
    before, after = Size.of(base), Size.of(pruned)
    assert 0.3 < after.macs / before.macs <= 0.5
    assert after.parameters < before.parameters
    assert answers(pruned.module).shape == (3, 6)


def test_names_of_tensors_stay(base: BaseModel, pruned: BaseModel) -> None:
    before, after = base.module.state_dict(), pruned.module.state_dict()
    assert after.keys() == before.keys()
    assert after["features.0.weight"].shape[0] <= before["features.0.weight"].shape[0]


def test_a_ratio_is_the_same_in_every_layer(base: BaseModel, tiny_images: LabelledImages, tmp_path: Path) -> None:
    made = prune(base, tiny_images, replace(CONFIG, amount=Amount(ratio=0.5), round_to=1), tmp_path)
    widths = [m.out_channels for m in made.module.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [m.out_channels // 2 for m in base.module.modules() if isinstance(m, nn.Conv2d)]


def test_a_ratio_of_nothing_is_the_base_model(base: BaseModel, tiny_images: LabelledImages, tmp_path: Path) -> None:
    made = prune(base, tiny_images, replace(CONFIG, amount=Amount(ratio=0)), tmp_path)
    assert torch.equal(answers(made.module), answers(base.module))


def test_without_reconstruction_weights_are_those_that_stay(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path
) -> None:
    made = prune(base, tiny_images, replace(CONFIG, reconstruct=False), tmp_path)
    for name, value in made.module.state_dict().items():
        whole = base.module.state_dict()[name]
        if value.ndim:
            assert bool(torch.isin(value, whole).all()), name


def test_reconstruction_answers_more_like_the_base_model(
    base: BaseModel, pruned: BaseModel, tiny_images: LabelledImages, tmp_path: Path
) -> None:
    bare = prune(base, tiny_images, replace(CONFIG, reconstruct=False), tmp_path)
    x = torch.cat([x for x, _ in tiny_images.batches(base.spec.preprocessing)])
    with torch.no_grad():
        wanted = base.module(x)
        distances = [float((model.module(x) - wanted).norm()) for model in (pruned, bare)]
    assert distances[0] < 0.8 * distances[1]


def test_recalibration_changes_statistics_alone(base: BaseModel, tiny_images: LabelledImages, tmp_path: Path) -> None:
    bare = prune(base, tiny_images, replace(CONFIG, reconstruct=False), tmp_path)
    again = prune(base, tiny_images, replace(CONFIG, reconstruct=False, recalibrate=True), tmp_path)
    before, after = bare.module.state_dict(), again.module.state_dict()
    for name in before:
        moves = "running" in name or "num_batches" in name
        assert torch.equal(before[name], after[name]) != moves, name
    x = torch.cat([x for x, _ in tiny_images.sample(36, 0).batches(base.spec.preprocessing)])
    with torch.no_grad():
        first = again.module.get_submodule("features.0")(x)
    torch.testing.assert_close(after["features.1.running_mean"], first.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


class NoNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_recalibration_without_batch_norms_is_refused(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path
) -> None:
    bare = BaseModel(NoNorm().eval(), ModelSpec("own:NoNorm", 6, base.spec.preprocessing))
    with pytest.raises(ConfigError, match="batch norms"):
        prune(bare, tiny_images, replace(CONFIG, recalibrate=True, round_to=4), tmp_path)


# ---- a latency budget


def test_a_latency_budget_finds_the_largest_network_in_time(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With time as the square root of the MACs, 0.7 of the time is 0.49 of the MACs."""
    whole = Network(trace(base.module, base.spec.preprocessing)).macs.total()

    class Times:
        def __init__(self, ratio: float) -> None:
            self.median, self.base_median = ratio, 1.0

    def measured(before: nn.Module, after: nn.Module, x: torch.Tensor, **options: object) -> Times:
        graph = trace(after, base.spec.preprocessing)
        return Times((MacCount(graph, couple(graph, free_output=True)).total() / whole) ** 0.5)

    monkeypatch.setattr(latency_budget, "latency", measured)
    monkeypatch.setattr(latency_budget, "layer_times", lambda graph, *_, **__: like_macs(graph))
    monkeypatch.setattr(latency_budget, "open_network", lambda network, *_, **__: network)
    config = replace(CONFIG, amount=Amount(latency=0.7), round_to=4, reconstruct=False)
    made = prune(base, tiny_images, config, tmp_path)
    assert 0.4 < Size.of(made).macs / whole <= 0.49
    with pytest.raises(ConfigError, match="within reach"):
        prune(base, tiny_images, replace(config, amount=Amount(latency=0.02)), tmp_path)


def test_a_latency_budget_where_the_network_will_run(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers and whole networks are timed in the engine and precision, with the threads and the batch, that are asked
    for; the budget that comes out names them."""
    opened: list[tuple[object, ...]] = []

    def fake(
        network: nn.Module, size: tuple[int, ...], engine: str, *, calibration: object, **options: object
    ) -> object:
        opened.append((engine, *options.values()))
        return network

    def times(graph: nn.Module, run: object, size: object, engine: str, *, batch: int, **options: object) -> LayerTimes:
        opened.append((engine, *(options[name] for name in ("threads", "precision")), batch))
        return replace(like_macs(graph), where="there")

    monkeypatch.setattr(latency_budget, "open_network", fake)
    monkeypatch.setattr(latency_budget, "layer_times", times)
    monkeypatch.setattr(latency_budget, "latency", lambda before, after, *_, **__: Halved())
    config = replace(
        CONFIG,
        amount=Amount(latency=0.7, engine="onnxruntime", precision="int8", latency_batch=8),
        limits=Limits(1.0, threads=2, pairs=2, batches=(1,), keep_anyway=True),
        round_to=4,
        reconstruct=False,
    )
    made = prune(base, tiny_images, config, tmp_path)
    assert set(opened) == {("onnxruntime", 2, "int8"), ("onnxruntime", 2, "int8", 8)}
    assert describe(made.rule).endswith("of the time in there kept")


def test_a_latency_budget_that_was_found_is_found_again(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill the same command goes on with the same budget, whatever the clock and the machine's table say by
    then; another command, in another folder or for another share, measures."""
    timed: list[str] = []

    def times(graph: nn.Module, *given: object, **options: object) -> LayerTimes:
        timed.append("layers")
        return replace(like_macs(graph), where=f"run {len(timed)}")

    monkeypatch.setattr(latency_budget, "open_network", lambda network, *_, **__: network)
    monkeypatch.setattr(latency_budget, "layer_times", times)
    monkeypatch.setattr(latency_budget, "latency", lambda before, after, *_, **__: Halved())
    config = replace(CONFIG, amount=Amount(latency=0.7), round_to=4, reconstruct=False)
    first = prune(base, tiny_images, config, tmp_path / "work")
    monkeypatch.setattr(latency_budget, "latency", lambda before, after, *_, **__: None)
    again = prune(base, tiny_images, config, tmp_path / "work")
    assert timed == ["layers"]
    assert again.rule == first.rule
    assert describe(again.rule).endswith("in run 1 kept")
    monkeypatch.setattr(latency_budget, "latency", lambda before, after, *_, **__: Halved())
    assert prune(base, tiny_images, config, tmp_path / "other").rule != first.rule
    prune(base, tiny_images, replace(config, amount=Amount(latency=0.6)), tmp_path / "work")
    assert len(timed) == 3
    monkeypatch.setattr(latency_budget, "FORMAT", 0)  # as a version stored it that timed layers in another way
    prune(base, tiny_images, config, tmp_path / "work")
    assert len(timed) == 4


def test_a_latency_budget_where_layers_cannot_be_timed_one_by_one(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What compiles for seconds is not asked for a hundred small networks: MACs and weights count there."""
    monkeypatch.setattr(latency_budget, "open_network", lambda network, *_, **__: network)
    monkeypatch.setattr(latency_budget, "latency", lambda before, after, *_, **__: Halved())
    amount = Amount(latency=0.7, engine="torch-compile")
    made = prune(base, tiny_images, replace(CONFIG, amount=amount, round_to=4, reconstruct=False), tmp_path)
    assert made.rule.times is None
    assert made.rule.weight_cost == WEIGHT_COST


class Halved:
    median, base_median = 0.5, 1.0


@pytest.mark.parametrize("value", [0, 1, -1, 2])
def test_a_latency_budget_out_of_range(value: float) -> None:
    with pytest.raises(ConfigError, match="latency budget"):
        Amount(latency=value)


# ---- fine-tuning


def test_fine_tuning_resumes_and_ends_the_same(base: BaseModel, tiny_images: LabelledImages, tmp_path: Path) -> None:
    config = replace(CONFIG, finetuning=FineTuning(2, batch=30, learning_rate=0.01))

    def stop(epoch: object) -> None:
        raise KeyboardInterrupt

    whole = prune(base, tiny_images, config, tmp_path / "whole", training=tiny_images)
    with pytest.raises(KeyboardInterrupt):
        prune(base, tiny_images, config, tmp_path / "part", training=tiny_images, report=stop)
    epochs: list[int] = []
    resumed = prune(
        base, tiny_images, config, tmp_path / "part", training=tiny_images, report=lambda e: epochs.append(e.epoch)
    )
    assert epochs == [2]
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name
    bare = prune(base, tiny_images, replace(config, finetuning=FineTuning()), tmp_path / "part")
    assert not torch.equal(answers(bare.module), answers(whole.module))


def test_fine_tuning_learns_as_much_from_the_base_model_as_it_is_told(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path
) -> None:
    """Each in a folder of its own, so that one work folder serves all; without a weight there is no teacher."""
    config = replace(CONFIG, finetuning=FineTuning(2, batch=30, learning_rate=0.01))

    def made(distillation: Distillation) -> torch.Tensor:
        config_now = replace(config, distillation=distillation)
        return answers(prune(base, tiny_images, config_now, tmp_path, training=tiny_images).module)

    ways = [Distillation(), Distillation(0.0), Distillation(1.0), Distillation(0.9, temperature=1.0)]
    found = [made(way) for way in ways]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(found, 2))
    assert torch.equal(made(Distillation(0.0, temperature=2.0)), found[1])
    assert torch.equal(made(Distillation(0.9, 4.0)), found[0])


def test_fine_tuning_needs_images(base: BaseModel, tiny_images: LabelledImages, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images"):
        prune(base, tiny_images, replace(CONFIG, finetuning=FineTuning(finetune=1)), tmp_path)


# ---- a description of a network


@pytest.mark.parametrize("name", NETWORKS)
def test_every_way_of_coupling_can_be_described(name: str) -> None:
    graph = traced(NETWORKS[name]())
    coupling = couple(graph)
    smaller = slice_graph(graph, coupling, random_keep(coupling))
    description, state = to_plain(smaller)
    made = make_plain(json.loads(json.dumps(description)), COLOUR.size)
    made.load_state_dict(state)
    x = torch.randn(4, *COLOUR.size)
    with torch.no_grad():
        expected = smaller(x.clone())
        torch.testing.assert_close(made(x.clone()), expected)
        torch.testing.assert_close(trace(made, COLOUR)(x.clone()), expected)
        torch.testing.assert_close(torch.export.export(made, (x.clone(),)).module()(x.clone()), expected)


class Same(nn.Conv2d):
    """A layer of another library: it pads by the size of what it reads, as TensorFlow does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        down, across = (max(0, (math.ceil(n / 2) - 1) * 2 + 3 - n) for n in (height, width))
        return nn.functional.conv2d(nn.functional.pad(x, (0, across, 0, down)), self.weight, self.bias, 2)


def sometimes(x: torch.Tensor, training: bool) -> torch.Tensor:
    return x * 2 if training else x


def clipped(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(0, 6)


def halved_(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(0.5)


torch.fx.wrap("halved_")
torch.fx.wrap("sometimes")
torch.fx.wrap("clipped")


class Foreign(nn.Module):
    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.same, self.head, self.activation = Same(3, 6, 3), nn.Linear(6, 6), activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.activation(sometimes(self.same(x), self.training)).mean((2, 3)))


def test_layers_of_other_libraries_are_opened() -> None:
    graph = traced(Foreign(torch.relu))
    description, state = to_plain(graph)
    assert [layer["type"] for layer in description["layers"].values()] == ["Linear"]
    assert {step.get("of") for step in description["steps"]} >= {"same.weight", "torch.nn.functional.pad", "torch.relu"}
    made = make_plain(description, COLOUR.size)
    made.load_state_dict(state)
    x = torch.randn(5, *COLOUR.size)
    with torch.no_grad():
        torch.testing.assert_close(made(x), graph(x))


@pytest.mark.parametrize(("name", "activation"), [("clipped", lambda x: clipped(x)), ("halved_", lambda x: halved_(x))])
def test_a_function_that_cannot_be_described_is_named(
    name: str, activation: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    with pytest.raises(ModelError, match=name):
        to_plain(traced(Foreign(activation)))


# ---- what is timed and saved


def by_its_own_loader(folder: Path) -> nn.Module:
    """By the load.py that lies in the folder."""
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)


def assert_same_network(loaded: nn.Module, timed: nn.Module) -> None:
    """The same layers, steps, tensors, order of these in memory, and answers, to the bit."""
    assert str(loaded) == str(timed)
    steps, timed_steps = ([each[:5] for each in network._steps] for network in (loaded, timed))
    assert str(steps) == str(timed_steps)
    own, timed_state = loaded.state_dict(), timed.state_dict()
    assert own.keys() == timed_state.keys()
    for name, value in own.items():
        assert torch.equal(value, timed_state[name])
        assert value.stride() == timed_state[name].stride()
        assert value.dtype == timed_state[name].dtype
        assert value.data_ptr() % 64 == timed_state[name].data_ptr() % 64 == 0
    assert loaded.training == timed.training
    assert not any(value.requires_grad for network in (loaded, timed) for value in network.parameters())
    assert torch.equal(answers(loaded), answers(timed))


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_saved_is_what_was_timed(
    base: BaseModel, pruned: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    keep: bool,
) -> None:  # fmt: skip
    """To the order of the weights in memory; the user's own model runs as it was loaded, in the same run."""
    runs: list[dict[str, nn.Module]] = []

    def timed(before: nn.Module, candidates: dict[str, nn.Module], x: torch.Tensor, **options: object) -> object:
        runs.append({"prepared": before, **candidates})
        return interleaved(before, candidates, x, **options)

    monkeypatch.setattr(pruned_module, "interleaved", timed)
    found = compare(base, pruned, tiny_images, batches=(1, 4), pairs=2, keep_batch_norm=keep)
    save(pruned, tmp_path / "model", list("abcdef"), comparison=found, keep_batch_norm=keep)
    assert len(runs) == 2
    loaded = by_its_own_loader(tmp_path / "model")
    for run in runs:
        assert run["own"] is base.module
        assert_same_network(loaded, run["pruned"])
        assert not any(isinstance(m, nn.BatchNorm2d) for m in run["prepared"].modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in loaded.modules()) == keep
    convolutions = [m.weight for m in loaded.modules() if isinstance(m, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)
    assert len(found.own_times) == len(found.times) == 2
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| your model, as loaded | base, prepared | pruned, as saved |" in card


def test_what_is_loaded_does_not_change_with_its_file(pruned: BaseModel, tmp_path: Path) -> None:
    """Nothing of it stays mapped: a folder that is overwritten in place while it serves changes no answer."""
    save(pruned, tmp_path / "model", list("abcdef"))
    loaded, weights = by_its_own_loader(tmp_path / "model"), tmp_path / "model" / "model.safetensors"
    before = answers(loaded)
    size, header = weights.stat().st_size, 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    with weights.open("r+b") as file:
        file.seek(header)
        file.write(bytes(size - header))
    assert torch.equal(answers(loaded), before)


def test_what_decides_is_what_is_saved(
    base: BaseModel, tiny_images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network whose time is printed first, and that is refused where it is not faster, is that of the folder."""
    runs: list[nn.Module] = []

    def beside(before: nn.Module, networks: dict[str, nn.Module], *given: object) -> object:
        runs.append(networks["ours"])
        return {"ours": (summary(torch.tensor([[10.0], [5.0]]).expand(2, 9).double(), 1, 1),)}

    monkeypatch.setattr(pruning, "time_beside", beside)
    config = replace(CONFIG, limits=Limits(max_loss=1.0))
    save(prune(base, tiny_images, config, tmp_path / "work"), tmp_path / "model", list("abcdef"))
    (timed,) = runs
    assert_same_network(by_its_own_loader(tmp_path / "model"), timed)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_laid_out_answers_the_same(name: str) -> None:
    graph = traced(NETWORKS[name]())
    model = BaseModel(graph, ModelSpec("own:network", 6, COLOUR))
    ready = deployed(model)
    x = torch.randn(4, *COLOUR.size)
    with torch.no_grad():
        expected = graph(x.clone())
        for images in (x.clone(), x.clone().to(memory_format=torch.channels_last)):
            torch.testing.assert_close(ready.module(images), expected, rtol=1e-3, atol=1e-3)


def test_layers_that_are_exchanged_are_run(pruned: BaseModel) -> None:
    """What runs a plain model keeps no layers of its own: quantisers put others in their place."""
    made = deployed(pruned).module
    head = next(name for name, layer in made.named_modules() if isinstance(layer, nn.Linear))
    made.set_submodule(head, nn.Sequential(made.get_submodule(head), nn.Softmax(1)))
    torch.testing.assert_close(answers(made).sum(1), torch.ones(3))


def test_it_loads_without_this_library(folder: Path, pruned: BaseModel, tmp_path: Path) -> None:
    """In a process that cannot import sinf, and that torch.export takes it."""
    code = f"""
import sys
sys.path.insert(0, {str(folder)!r})
sys.modules["sinf"] = None
import torch
from load import load
model = load({str(folder)!r})
x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
batch = torch.export.Dim("batch", min=2, max=64)
exported = torch.export.export(model, (x,), dynamic_shapes=({{0: batch}},)).module()
more = torch.cat([x, x])
with torch.no_grad():
    assert torch.equal(exported(more), model(more)) or (exported(more) - model(more)).abs().max() < 1e-5
    print(model(x).flatten().tolist())
print([name for name in ("sinf.models", "torchvision", "timm") if sys.modules.get(name)])
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    numbers, modules = run.stdout.strip().splitlines()
    torch.testing.assert_close(
        torch.tensor(json.loads(numbers)), answers(pruned.module).flatten(), atol=1e-4, rtol=1e-4
    )
    assert modules == "[]"


def test_the_loader_stands_alone() -> None:
    tree = ast.parse(Path(plain_module.__file__).read_text())
    found = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    found |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert found - set(sys.stdlib_module_names) == {"torch", "safetensors"}


def test_a_folder_is_a_model(folder: Path, pruned: BaseModel) -> None:
    loaded, ready = load_model(str(folder)), deployed(pruned)
    assert loaded.spec == ready.spec
    assert torch.equal(answers(loaded.module), answers(ready.module))
    assert not any(p.is_meta for p in load_spec(loaded.spec).parameters())


def test_a_pruned_model_can_be_pruned_again(folder: Path, tiny_images: LabelledImages, tmp_path: Path) -> None:
    again = prune(load_model(str(folder)), tiny_images, replace(CONFIG, amount=Amount(macs=0.7), round_to=1), tmp_path)
    assert Size.of(again).macs < 0.71 * Size.of(load_model(str(folder))).macs
    assert again.spec.name == "plain:vgg11"


def test_what_was_measured_is_written_down(
    base: BaseModel, pruned: BaseModel, tiny_images: LabelledImages, tmp_path: Path
) -> None:
    compared = compare(base, pruned, tiny_images, pairs=3)
    assert compared.loss == pytest.approx(100 * (compared.base_top1 - compared.top1))
    assert [t.batch for t in compared.times] == [1, 32]
    save(pruned, tmp_path / "out", list("abcdef"), provenance={"criterion": "residual"}, comparison=compared)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["measured"]["pruned"]["macs"] == Size.of(pruned).macs
    card = (tmp_path / "out" / "README.md").read_text()
    for word in ("top-1", "MACs", "batch 32", "criterion: residual", "from load import load"):
        assert word in card


def test_only_a_pruned_model_is_replaced(pruned: BaseModel, tmp_path: Path) -> None:
    save(pruned, tmp_path / "out", list("abcdef"))
    save(pruned, tmp_path / "out", list("abcdef"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    for path in (tmp_path / "other", tmp_path / "out" / "config.json"):
        with pytest.raises(BundleError, match="only a bundle"):
            require_place(path)
        with pytest.raises(BundleError, match="only a bundle"):
            save(pruned, path, list("abcdef"))


def damage(folder: Path, target: Path, change: object) -> Path:
    """A copy of the folder with its config changed."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "config.json").read_text())
    change(config)  # type: ignore[operator]
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("sinf_format",), 7),
        (("model", "options", "steps", 1, "do"), "exec"),
        (("model", "options", "steps", 1, "of"), "__class__"),
        (("model", "options", "layers", "features.0", "type"), "Module.__init__"),
        (("model", "options", "layers", "features.0", "type"), "functional"),
        (("model", "options", "layers", "features.0", "args"), {"colour": 1}),
        (("model", "options", "steps"), []),
        (("model", "options"), {}),
        (("sha256",), {}),
        (("model", "preprocessing"), None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_damaged_description_is_refused(folder: Path, tmp_path: Path, path: tuple, value: object) -> None:
    def change(config: dict) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    with pytest.raises(ModelError):
        load_model(str(damage(folder, tmp_path / "copy", change)))


@pytest.mark.parametrize(
    ("do", "of", "args"),
    [
        ("function", "torch.load", ["x"]),
        ("function", "torch.save", []),
        ("function", "os.system", ["true"]),
        ("function", "builtins.eval", ["1"]),
        ("function", "torch.os.system", ["true"]),
        ("function", "operator.attrgetter", ["x"]),
        ("method", "__reduce__", [{"$step": "x"}]),
        ("method", "_make_subclass", [{"$step": "x"}]),
        ("layer", "a b", []),
        ("function", "torch.relu", [{"$step": "later"}]),
        ("import", "os", []),
    ],
)
def test_nothing_but_functions_of_tensors_can_be_named(do: str, of: str, args: list) -> None:
    steps = [
        {"name": "x", "do": "input"},
        {"name": "y", "do": do, "of": of, "args": args},
        {"name": "out", "do": "output", "args": [{"$step": "y"}]},
    ]
    with pytest.raises(ValueError, match=r"no |must be|reads"):
        plain_module.Plain({"layers": {}, "tensors": {}, "steps": steps})


def test_attributes_other_than_shapes_are_refused() -> None:
    step = {"name": "y", "do": "function", "of": "builtins.getattr", "args": [{"$step": "x"}, "__class__"]}
    steps = [{"name": "x", "do": "input"}, step, {"name": "out", "do": "output", "args": [{"$step": "y"}]}]
    model = plain_module.Plain({"layers": {}, "tensors": {}, "steps": steps})
    with pytest.raises(ValueError, match="attribute"):
        model(torch.zeros(1))


def test_changed_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = damage(folder, tmp_path / "copy", lambda config: None)
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ModelError, match="changed"):
        load_model(str(copy))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="changed"):
        plain_module.load(copy)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a folder with a config\.json"):
        load_model(str(tmp_path))


def test_options_beside_a_folder_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="size"):
        load_model(str(folder), size=(3, 32, 32))
    with pytest.raises(ModelError, match="classes"):
        load_model(str(folder), classes=7)
