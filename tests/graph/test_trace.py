"""A model as a graph: shapes, places, what stays whole, and models that cannot be traced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sinf.data.images import Preprocessing
from sinf.errors import CutError
from sinf.graph.trace import attribute, layer, trace
from sinf.models import load_model
from tiny import COLOUR, GREY, NETWORKS, Chain, Residual, randomise, traced


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_what_the_module_does(name: str) -> None:
    module = randomise(NETWORKS[name]())
    x = torch.randn(3, *COLOUR.size)
    with torch.no_grad():
        expected = module(x)
        torch.testing.assert_close(trace(module, COLOUR)(x), expected, rtol=0, atol=0)


def test_every_node_has_the_shape_for_one_image() -> None:
    shapes = {node.name: node.meta["shape"] for node in traced(Chain()).graph.nodes}
    assert shapes["x"] == (1, 3, 8, 8)
    assert shapes["first_0"] == (1, 6, 8, 8)
    assert shapes["pool"] == (1, 5, 4, 4)
    assert shapes["flatten"] == (1, 80)
    assert shapes["head"] == shapes["output"] == (1, 6)


def test_what_is_no_tensor_has_no_shape() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(x.size(0), -1)

    shapes = {node.name: node.meta["shape"] for node in traced(Reads()).graph.nodes}
    assert shapes["size"] is None
    assert shapes["view"] == (1, 192)


def test_a_model_may_decide_by_shapes() -> None:
    """All but the size of the batch is known; the graph serves any batch."""

    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            images, channels, height, _ = x.shape
            if channels != 3 or x.ndim != 4 or x.dtype != self.conv.weight.dtype:
                raise ValueError("not an image")
            x = self.conv(x) if height > 4 else x
            return x.reshape(images, x.size(1), -1).mean(2)

    module = Decides().eval()
    graph = trace(module, COLOUR)
    for batch in (1, 3, 5):
        x = torch.randn(batch, *COLOUR.size)
        with torch.no_grad():
            torch.testing.assert_close(graph(x), module(x))
    assert {str(n.target) for n in graph.graph.nodes if n.op in ("get_attr", "call_module")} == {"conv"}
    assert next(n for n in graph.graph.nodes if n.target == "conv").meta["shape"] == (1, 4, 6, 6)


def test_a_model_that_decides_by_the_batch_is_refused() -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.shape[0] > 1 else x.flatten()

    with pytest.raises(CutError, match="cannot be traced"):
        trace(Decides(), COLOUR)


def test_every_node_knows_the_module_in_which_it_was_made() -> None:
    paths = {node.name: node.meta["module_path"] for node in traced(Residual()).graph.nodes if node.op != "output"}
    assert paths["stem_0"] == "stem.0"
    assert paths["inner_0_1"] == "inner.0.1"
    assert paths["add_"] == ""


def test_layers_of_other_libraries_stay_whole_and_their_activations_are_seen() -> None:
    base = load_model("timm:mobilenetv3_small_050", size=(3, 32, 32), classes=4, pretrained=False)
    graph = trace(base.module, base.spec.preprocessing)
    layers = {str(n.target): layer(graph, n) for n in graph.graph.nodes if n.op == "call_module"}
    assert isinstance(layers["conv_stem"], nn.Conv2d)
    assert any(n.target is nn.functional.batch_norm for n in graph.graph.nodes)
    assert any(isinstance(m, nn.Hardswish) or type(m).__name__ == "HardSwish" for m in layers.values())


def test_attribute_reads_a_parameter() -> None:
    graph = traced(NETWORKS["Scaled"]())
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    assert sorted(targets) == ["gain", "shift"]
    assert attribute(graph, "gain").shape == (6, 1, 1)
    assert torch.equal(attribute(graph, "stem.0.weight"), graph.get_submodule("stem.0").weight)


def test_shapes_on_the_meta_device() -> None:
    with torch.device("meta"):
        module = Chain()
    graph = trace(module, COLOUR, device="meta")
    assert {n.name: n.meta["shape"] for n in graph.graph.nodes} == {
        n.name: n.meta["shape"] for n in traced(Chain()).graph.nodes
    }


def test_tracing_leaves_eval_mode() -> None:
    module = Chain().train()
    assert not trace(module, COLOUR).training
    assert not module.training


def test_an_argument_with_a_default_keeps_it() -> None:
    class Masked(Chain):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().forward(x)

    assert trace(Masked(), COLOUR)(torch.randn(2, *COLOUR.size)).shape == (2, 6)


# ---- what cannot be traced


class Branches(nn.Module):
    """Control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x + other


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("first line\nsecond line")


@pytest.mark.parametrize(
    ("module", "word"),
    [(Branches(), "Branches cannot be traced.*control flow"), (TwoInputs(), "other"), (Broken(), "first line")],
)
def test_module_that_cannot_be_traced(module: nn.Module, word: str) -> None:
    with pytest.raises(CutError, match=word) as caught:
        trace(module, COLOUR)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preprocessing", [GREY, Preprocessing((3, 5, 5), COLOUR.mean, COLOUR.std)])
def test_images_of_the_wrong_shape(preprocessing: Preprocessing) -> None:
    with pytest.raises(CutError, match="does not run on a batch of shape") as caught:
        trace(Chain(), preprocessing)
    assert "\n" not in str(caught.value)
