"""The law: a sliced network computes what the base model computes with the removed channels masked."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from sinf.errors import VerificationError
from sinf.graph.coupling import Coupling, couple
from sinf.graph.cut import cut_points, partition
from sinf.graph.slice import Masked, parameters_of, slice_graph
from sinf.graph.trace import trace
from sinf.graph.verify import TOLERANCE, verify
from sinf.models import REFERENCE_NAMES, load_model
from tiny import COLOUR, NETWORKS, PIECES, Chain, Mixed, Residual, Shared, random_keep, randomise, traced

NARROW = {"width": 0.125}
FOREIGN = [
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:densenet121",
    "torchvision:regnet_y_400mf",
    "torchvision:convnext_tiny",
    "timm:mobilenetv3_small_050",
    "timm:regnetx_002",
]

#: Small networks of transformers, by their configuration.
HF = {
    "ResNet": {"image_size": 32, "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]},
    "ViT": {
        "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "ConvNext": {"image_size": 64, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]},
    "MobileNetV2": {"image_size": 64, "depth_multiplier": 0.35},
}  # fmt: skip


def hf_folder(kind: str, tmp_path: Path) -> Path:
    """A model folder as ``from_pretrained`` reads it."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(num_labels=10, **HF[kind])
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / kind)
    return tmp_path / kind


@pytest.fixture(scope="module", params=[*REFERENCE_NAMES, *FOREIGN])
def network(request: pytest.FixtureRequest) -> tuple[fx.GraphModule, Tensor]:
    """A network with random weights and statistics, and two inputs for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param in REFERENCE_NAMES:
            base = load_model(request.param, options=NARROW if request.param.startswith("vgg") else None)
        else:
            base = load_model(request.param, size=(3, 64, 64), classes=10, pretrained=False)
        shape = base.spec.preprocessing
        return trace(randomise(base.module), shape), torch.randn(2, *shape.size)


def test_sliced_equals_masked(network: tuple[fx.GraphModule, Tensor]) -> None:
    graph, inputs = network
    coupling = couple(graph)
    keep = random_keep(coupling)
    sliced = slice_graph(graph, coupling, keep)
    assert verify(graph, coupling, keep, sliced, inputs) <= TOLERANCE
    assert parameters_of(sliced) < 0.9 * parameters_of(graph)
    with torch.no_grad():  # the mask matters: the law does not hold by doing nothing
        base, masked = graph(inputs), Masked(graph, coupling, keep).run(inputs.clone())
    assert (base - masked).abs().max() > 100 * TOLERANCE * base.abs().max()


def test_sliced_tail_equals_masked(network: tuple[fx.GraphModule, Tensor], request: pytest.FixtureRequest) -> None:
    """After cuts early, midway and late; the features and the classes lose channels too."""
    graph, inputs = network
    points = cut_points(graph)
    for place in {0, len(points) // 2, len(points) - 1}:
        parts = partition(graph, points[place])
        with torch.no_grad():
            features = parts.extractor(inputs)
        coupling = couple(parts.tail, free_input=True, free_output=True)
        keep = random_keep(coupling)
        sliced = slice_graph(parts.tail, coupling, keep)
        assert verify(parts.tail, coupling, keep, sliced, features) <= TOLERANCE
        with torch.no_grad():
            logits = sliced(features[:, coupling.input.index(keep)])
        assert logits.shape == (2, int(keep[coupling.output.units].sum()))
        assert int((~keep[coupling.output.units]).sum()) > 0
        if coupling.groups["input"].blocked is None:
            assert int((~keep[coupling.input.units]).sum()) > 0
        else:  # ConvNeXt normalises over all channels together
            assert "convnext_tiny" in request.node.name
            assert "LayerNorm" in coupling.groups["input"].blocked


@pytest.mark.parametrize("kind", HF)
def test_sliced_equals_masked_in_models_of_transformers(kind: str, tmp_path: Path) -> None:
    """They look at the shapes of their inputs, which fx alone cannot answer."""
    base = load_model(f"hf:{hf_folder(kind, tmp_path)}")
    shape = base.spec.preprocessing
    inputs = torch.randn(2, *shape.size)
    graph = trace(randomise(base.module), shape)
    with torch.no_grad():
        torch.testing.assert_close(graph(inputs), base.module(inputs))
    coupling = couple(graph)
    keep = random_keep(coupling)
    sliced = slice_graph(graph, coupling, keep)
    assert verify(graph, coupling, keep, sliced, inputs) <= TOLERANCE
    assert parameters_of(sliced) < 0.95 * parameters_of(graph)


@pytest.mark.parametrize("name", NETWORKS)
def test_sliced_tiny_network_equals_masked(name: str) -> None:
    graph = traced(NETWORKS[name]())
    coupling = couple(graph)
    for seed in range(4):
        keep = random_keep(coupling, 0.5, seed)
        verify(graph, coupling, keep, slice_graph(graph, coupling, keep), torch.randn(3, *COLOUR.size))


@settings(max_examples=40)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5),
    width=st.sampled_from([4, 6]),
    flat=st.booleans(),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    ends=st.tuples(st.booleans(), st.booleans()),
)
def test_any_mixture_of_operations_obeys_the_law(
    pieces: list[str], width: int, flat: bool, fraction: float, seed: int, ends: tuple[bool, bool]
) -> None:
    torch.manual_seed(seed)
    graph = traced(Mixed(pieces, width, flat))
    inputs = torch.randn(2, *COLOUR.size)
    coupling = couple(graph, free_input=ends[0], free_output=ends[1])
    keep = random_keep(coupling, fraction, seed)
    sliced = slice_graph(graph, coupling, keep)
    verify(graph, coupling, keep, sliced, inputs)
    everything = slice_graph(graph, coupling, coupling.keep_all())
    with torch.no_grad():
        torch.testing.assert_close(everything(inputs), graph(inputs), rtol=0, atol=0)


def test_masking_is_what_a_reader_would_write_by_hand() -> None:
    """Removed channels contribute nothing to the next layer: zero columns of its weight, all else as it was."""
    net = Chain()
    graph = traced(net)
    coupling = couple(graph)
    keep = coupling.keep_all()
    keep[coupling.writes["first.0"].units[[1, 4]]] = False
    keep[coupling.writes["second.0"].units[2]] = False
    by_hand = copy.deepcopy(net)
    by_hand.second[0].weight.data[:, [1, 4]] = 0
    by_hand.head.weight.data[:, 2 * 16 : 3 * 16] = 0
    inputs = torch.randn(3, *COLOUR.size)
    with torch.no_grad():
        expected = by_hand(inputs)
        torch.testing.assert_close(Masked(graph, coupling, keep).run(inputs.clone()), expected)
        torch.testing.assert_close(slice_graph(graph, coupling, keep)(inputs), expected)


def test_sliced_tensors_are_the_kept_rows_and_columns() -> None:
    graph = traced(Chain())
    coupling = couple(graph)
    keep = coupling.keep_all()
    keep[coupling.writes["first.0"].units[0]] = False
    sliced = slice_graph(graph, coupling, keep)
    assert torch.equal(sliced.get_submodule("first.0").weight, graph.get_submodule("first.0").weight[1:])
    assert torch.equal(sliced.get_submodule("first.1").running_var, graph.get_submodule("first.1").running_var[1:])
    assert torch.equal(sliced.get_submodule("second.0").weight, graph.get_submodule("second.0").weight[:, 1:])
    assert sliced.get_submodule("first.0").out_channels == sliced.get_submodule("second.0").in_channels == 5
    assert sliced.get_submodule("first.1").num_features == 5


def test_layers_that_lose_nothing_are_shared_and_the_base_stays_as_it_was() -> None:
    graph = traced(Chain())
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    coupling = couple(graph)
    keep = coupling.keep_all()
    keep[coupling.writes["second.0"].units[0]] = False
    sliced = slice_graph(graph, coupling, keep)
    assert sliced.get_submodule("first.0") is graph.get_submodule("first.0")
    assert sliced.get_submodule("head") is not graph.get_submodule("head")
    assert all(torch.equal(before[name], value) for name, value in graph.state_dict().items())
    assert graph.get_submodule("head").in_features == 5 * 16


def test_parameters_of_counts_shared_layers_once() -> None:
    graph = traced(Shared())
    assert parameters_of(graph) == sum(p.numel() for p in Shared().parameters())


# ---- verify finds what is wrong


def sliced_residual() -> tuple[fx.GraphModule, Coupling, Tensor, fx.GraphModule, Tensor]:
    graph = traced(Residual(8))
    coupling = couple(graph)
    keep = coupling.keep_all()
    for group in coupling.free_groups():
        keep[group.units[0]] = False
    sliced = slice_graph(graph, coupling, keep)
    return graph, coupling, keep, sliced, torch.randn(2, *COLOUR.size)


def test_verify_accepts_and_changes_nothing() -> None:
    graph, coupling, keep, sliced, inputs = sliced_residual()
    before = inputs.clone(), graph(inputs), sliced(inputs)
    assert verify(graph, coupling, keep, sliced, inputs) < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(before, (inputs, graph(inputs), sliced(inputs)), strict=True))


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("stem.0", "weight"),
        ("stem.1", "running_mean"),
        ("inner.0.0", "weight"),
        ("inner.1", "bias"),
        ("head", "weight"),
    ],
)
def test_verify_finds_two_kept_channels_in_the_wrong_order(target: str, name: str) -> None:
    graph, coupling, keep, sliced, inputs = sliced_residual()
    with torch.no_grad():
        tensor = getattr(sliced.get_submodule(target), name)
        tensor.copy_(tensor[[1, 0, *range(2, len(tensor))]])
    with pytest.raises(VerificationError, match=target):
        verify(graph, coupling, keep, sliced, inputs)


def test_verify_finds_inputs_in_the_wrong_order() -> None:
    graph, coupling, keep, sliced, inputs = sliced_residual()
    with torch.no_grad():
        weight = sliced.get_submodule("inner.0.0").weight
        weight.copy_(weight[:, [1, 0, *range(2, weight.shape[1])]])
    with pytest.raises(VerificationError, match=r"inner\.0\.0"):
        verify(graph, coupling, keep, sliced, inputs)


@pytest.mark.parametrize("factor", [1.01, 0.0, float("nan"), float("inf")])
def test_verify_finds_one_altered_number(factor: float) -> None:
    graph, coupling, keep, _, inputs = sliced_residual()
    slot, head = coupling.reads["head"], graph.get_submodule("head")

    weight = head.weight.detach()[:, slot.index(keep)].clone()
    weight.view(-1)[weight.abs().argmax()] *= factor
    altered = slice_graph(graph, coupling, keep)
    altered.get_submodule("head").weight = nn.Parameter(weight)
    with pytest.raises(VerificationError, match="head"):
        verify(graph, coupling, keep, altered, inputs)


def test_verify_finds_that_another_channel_was_removed() -> None:
    graph, coupling, keep, _, inputs = sliced_residual()
    other = keep.clone()
    units = coupling.writes["inner.0.0"].units
    other[units[0]], other[units[1]] = True, False
    with pytest.raises(VerificationError, match=r"inner\.0\.0"):
        verify(graph, coupling, keep, slice_graph(graph, coupling, other), inputs)


def test_verify_finds_a_network_of_another_width() -> None:
    graph, coupling, keep, _, inputs = sliced_residual()
    fewer = keep.clone()
    fewer[coupling.writes["inner.0.0"].units[1]] = False
    with pytest.raises(VerificationError, match="shape"):
        verify(graph, coupling, keep, slice_graph(graph, coupling, fewer), inputs)


def test_verify_refuses_a_network_that_does_not_run() -> None:
    graph, coupling, keep, sliced, inputs = sliced_residual()
    sliced.get_submodule("head").weight = nn.Parameter(torch.zeros(6, 3))
    with pytest.raises(VerificationError, match="must run, and this one fails at head"):
        verify(graph, coupling, keep, sliced, inputs)


def test_verify_compares_the_output_whatever_layers_are_called() -> None:
    class Named(nn.Module):
        """Layers with the names that graphs give to their own nodes."""

        def __init__(self) -> None:
            super().__init__()
            self.input, self.output = nn.Conv2d(3, 5, 3), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.input(x).mean((2, 3))) * 2

    graph = traced(Named())
    coupling = couple(graph)
    keep = random_keep(coupling)
    sliced = slice_graph(graph, coupling, keep)
    inputs = torch.randn(2, *COLOUR.size)
    verify(graph, coupling, keep, sliced, inputs)
    sliced.get_submodule("output").weight = nn.Parameter(sliced.get_submodule("output").weight + 1)
    with pytest.raises(VerificationError):
        verify(graph, coupling, keep, sliced, inputs)


def test_verify_compares_in_double_precision() -> None:
    """Large terms that cancel differ in single precision whenever they are added in another order."""

    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.head = nn.Conv2d(3, 256, 1), nn.Linear(256, 6)
            for tensor in (self.wide.weight, self.wide.bias):
                tensor.data[128:] = tensor.data[:128]
            self.head.weight.data[:, :128] = 1e5 * torch.randn(6, 128)
            self.head.weight.data[:, 128:] = 1 - self.head.weight.data[:, :128]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.wide(x).mean((2, 3)))

    graph = traced(Cancelling())
    coupling = couple(graph)
    keep = coupling.keep_all()
    keep[coupling.writes["wide"].units[[i for i in range(256) if i % 128 % 3 == 0]]] = False
    sliced = slice_graph(graph, coupling, keep)
    inputs = torch.rand(2, *COLOUR.size)
    with torch.no_grad():
        masked, found = Masked(graph, coupling, keep).run(inputs.clone()), sliced(inputs)
    assert (found - masked).abs().max() > TOLERANCE * masked.abs().max()
    assert verify(graph, coupling, keep, sliced, inputs) < 1e-9
