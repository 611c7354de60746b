"""What is counted of a network."""

from __future__ import annotations

import copy
import math
import operator
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from sinf.errors import CutError
from sinf.graph.cost import MacCount
from sinf.graph.coupling import couple
from sinf.graph.network import Network, PartedNetwork, macs_before
from sinf.graph.operations import counted
from sinf.graph.slice import slice_graph
from sinf.graph.trace import trace
from sinf.models import load_model
from tiny import CLASSES, COLOUR, NETWORKS, Attention, Shared, Windows, random_keep, traced


def by_torch(graph: fx.GraphModule, size: tuple[int, ...] = COLOUR.size) -> int:
    """As torch counts, who looks at every operation that runs; on its device without values all that is made of several
    runs as these."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(graph).to("meta")(torch.zeros(1, *size, device="meta"))
    return counter.get_total_flops() // 2


def count_of(graph: fx.GraphModule) -> MacCount:
    return MacCount(graph, couple(graph, free_output=True))


class Multiplied(nn.Module):
    """Attention by hand: two products of values by values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        weights = (x @ x.transpose(1, 2)).softmax(-1)
        return self.head(torch.matmul(weights, x).mean(1))


class Called(nn.Module):
    """A function of images (B, 3, 8, 8) and of weights of some shapes."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.count = function, len(shapes)
        for index, shape in enumerate(shapes):
            self.register_parameter(f"weight{index}", nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, f"weight{index}") for index in range(self.count)))


class OnTokens(nn.Module):
    """A layer that reads 16 tokens of 12 numbers, as often as its input has arguments."""

    def __init__(self, layer: nn.Module, inputs: int = 1, **options: object) -> None:
        super().__init__()
        self.layer, self.inputs, self.options = layer, inputs, options

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unflatten(2, (4, 2)).unflatten(4, (4, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        result = self.layer(*[tokens] * self.inputs, **self.options)
        return result if isinstance(self.layer, nn.TransformerEncoderLayer) else result[0]


def tokens(x: Tensor) -> Tensor:
    """``(B, 64, 3)``."""
    return x.flatten(2).transpose(1, 2)


# What no layer multiplies: a function or a layer kept whole, and its MACs by hand.
PRODUCTS: dict[str, tuple[nn.Module, int]] = {
    "conv1d": (Called(lambda x, w: F.conv1d(x.flatten(2), w), (5, 3, 3)), 62 * 5 * 3 * 3),
    "conv2d": (Called(lambda x, w: F.conv2d(x, w, padding="same"), (5, 3, 3, 3)), 64 * 5 * 3 * 9),
    "conv2d in groups": (Called(lambda x, w: F.conv2d(x, weight=w, groups=3), (6, 1, 3, 3)), 36 * 6 * 9),
    "conv3d": (Called(lambda x, w: F.conv3d(x[:, None], w), (2, 1, 2, 2, 2)), 2 * 7 * 7 * 2 * 8),
    "conv_transpose2d": (Called(lambda x, w: F.conv_transpose2d(x, w, stride=2), (3, 4, 2, 2)), 64 * 3 * 4 * 4),
    "linear": (Called(lambda x, w, b: F.linear(tokens(x), w, b), (5, 3), (5,)), 64 * 3 * 5),
    "@": (Called(lambda x: tokens(x) @ x.flatten(2)), 64 * 64 * 3),
    "@ of one twice": (Called(lambda x: x @ x), 3 * 8 * 8 * 8),
    "@ of a weight": (Called(lambda x, w: w @ x, (5, 8)), 3 * 5 * 8 * 8),
    "@ of a vector": (Called(lambda x, w: x @ w, (8,)), 3 * 8 * 8),
    "matmul": (Called(lambda x: torch.matmul(other=x.flatten(2), input=tokens(x))), 64 * 64 * 3),
    "method matmul": (Called(lambda x: tokens(x).matmul(x.flatten(2))), 64 * 64 * 3),
    "operator": (Called(lambda x: operator.matmul(x, x.transpose(2, 3))), 3 * 8 * 8 * 8),
    "bmm": (Called(lambda x: tokens(x).bmm(x.flatten(2))), 64 * 64 * 3),
    "mm": (Called(lambda x, w: torch.mm(x.flatten(1), w), (192, 7)), 192 * 7),
    "addmm": (Called(lambda x, b, w: torch.addmm(b, x.flatten(1), w), (7,), (192, 7)), 192 * 7),
    "baddbmm": (Called(lambda x: torch.baddbmm(tokens(x)[..., :1], tokens(x), x.flatten(2))), 64 * 64 * 3),
    "addbmm": (Called(lambda x, w: torch.addbmm(w, x[0], x[0]), (8, 8)), 3 * 8 * 8 * 8),
    "addmv": (Called(lambda x, b, w: torch.addmv(b, x[0, 0], w), (8,), (8,)), 8 * 8),
    "dot": (Called(lambda x, w: x.flatten().dot(w), (192,)), 192),
    "tensordot": (Called(lambda x, w: torch.tensordot(x, w, 2), (8, 8, 5)), 3 * 8 * 8 * 5),
    "einsum": (Called(lambda x: torch.einsum("bhqd,bhkd->bhqk", x, x)), 3 * 8 * 8 * 8),
    "einsum of a weight": (Called(lambda x, w: torch.einsum("bchw,oc->bohw", x, w), (5, 3)), 64 * 5 * 3),
    "einsum of three": (
        Called(lambda x, v, w: torch.einsum("bchw,cd,do->bohw", x, v, w), (3, 4), (4, 5)),
        64 * 3 * 4 + 64 * 4 * 5,  # from left to right
    ),
    "attention": (Called(lambda x: F.scaled_dot_product_attention(x, x + 1, x - 1)), 2 * 3 * 8 * 8 * 8),
    "attention to itself": (Called(lambda x: F.scaled_dot_product_attention(x, x, x)), 2 * 3 * 8 * 8 * 8),
    "attention of two": (
        Called(lambda x: F.scaled_dot_product_attention(query=x, key=x[:, :, :4], value=x[:, :, :4, :6])),
        3 * 8 * 4 * (8 + 6),
    ),
    "attention of groups": (
        Called(lambda x: F.scaled_dot_product_attention(x, x[:, :1], x[:, :1], enable_gqa=True)),
        2 * 3 * 8 * 8 * 8,
    ),
    "attention with a mask": (
        Called(lambda x, m: F.scaled_dot_product_attention(x, x, x, attn_mask=m), (8, 8)),
        2 * 3 * 8 * 8 * 8,
    ),
    "attention of one head": (
        Called(lambda x: F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x))),
        2 * 64 * 64 * 3,
    ),
    "MultiheadAttention": (
        OnTokens(nn.MultiheadAttention(12, 3, batch_first=True), 3),
        4 * 16 * 12 * 12 + 2 * 16 * 16 * 12,
    ),
    "MultiheadAttention without weights": (
        OnTokens(nn.MultiheadAttention(12, 3, batch_first=True), 3, need_weights=False),
        4 * 16 * 12 * 12 + 2 * 16 * 16 * 12,
    ),
    "TransformerEncoderLayer": (
        OnTokens(nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)),
        4 * 16 * 12 * 12 + 2 * 16 * 16 * 12 + 2 * 16 * 12 * 20,
    ),
    "LSTM": (OnTokens(nn.LSTM(12, 5, batch_first=True, bidirectional=True)), 2 * 16 * 4 * 5 * (12 + 5)),
    "GRU": (OnTokens(nn.GRU(12, 5, batch_first=True)), 16 * 3 * 5 * (12 + 5)),
    "number by number": (Called(lambda x, w: x * w + x.exp() * torch.einsum("bchw,bchw->bchw", x, x), (8,)), 0),
}
_NOT_BY_TORCH = {"@ of a vector", "addbmm", "addmv", "dot"}


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_no_layer_multiplies_is_counted(name: str) -> None:
    module, macs = PRODUCTS[name]
    graph = traced(module)
    count = count_of(graph)
    assert (count.products, count.by_layer()) == (macs, {})
    assert by_torch(graph) == (0 if name in _NOT_BY_TORCH else macs)


LAYERS: dict[str, tuple[nn.Module, int]] = {
    "Conv1d": (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 5, 3, stride=2)), 31 * 5 * 3 * 3),
    "Conv2d": (nn.Conv2d(3, 5, (3, 1), padding=1), 8 * 10 * 5 * 3 * 3),
    "Conv2d in groups": (nn.Conv2d(3, 6, 3, groups=3, dilation=2), 16 * 6 * 9),
    "Conv3d": (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 2)), 2 * 7 * 7 * 2 * 8),
    "ConvTranspose2d": (nn.ConvTranspose2d(3, 4, 3, stride=2), 64 * 3 * 4 * 9),
    "ConvTranspose2d in groups": (nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3), 64 * 3 * 2 * 9),
    "Linear": (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 192 * 5),
    "Linear of tokens": (nn.Linear(8, 5), 3 * 8 * 8 * 5),
    "twice": (Shared(), 64 * 27 * 5 + 2 * 64 * 45 * 5 + 5 * CLASSES),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_counted(name: str) -> None:
    module, macs = LAYERS[name]
    graph = traced(nn.Sequential(module))  # a network that is a layer is traced into it
    count = count_of(graph)
    assert (count.total(), count.products) == (macs, 0)
    assert by_torch(graph) == macs
    weights = {id(m.weight): m.weight.numel() for _, m, _ in count.nodes}
    assert count.total(weight_cost=2) >= macs + 2 * sum(weights.values())


def test_windows_are_counted_and_not_taken_for_images() -> None:
    count = count_of(traced(Windows()))
    assert count.by_layer() == {
        "stem": 64 * 3 * 6, "local.0.0": 4 * 16 * 54 * 8, "local.1": 4 * 16 * 8 * 8,
        "qkv": 4 * 16 * 8 * 24, "hidden": 4 * 16 * 8 * 16, "out": 4 * 16 * 16 * 8, "head": 8 * CLASSES,
    }  # fmt: skip
    assert count.products == 4 * 2 * 16 * 16 * 8
    assert count.total() == by_torch(traced(Windows()))


@pytest.mark.parametrize("made", [Windows, Attention])
def test_what_stays_of_windows_is_counted_as_a_new_trace_counts_it(made: type[nn.Module]) -> None:
    graph = traced(made())
    count = count_of(graph)
    keep = random_keep(count.coupling, 0.5)
    sliced = slice_graph(graph, count.coupling, keep)
    assert count.total(keep) == MacCount(sliced, count.coupling).total() == count_of(trace(sliced, COLOUR)).total()
    assert count.products < count.total(keep) < count.total()


@pytest.mark.parametrize("made", [*NETWORKS.values(), Multiplied, Attention])
def test_all_multiplications_are_counted(made: type[nn.Module]) -> None:
    graph = traced(made())
    assert count_of(graph).total() == by_torch(graph)


def test_shares_of_macs_count_products_and_every_call_where_it_stands() -> None:
    attention, shared = traced(Attention()), traced(Shared())
    shares = macs_before(attention)
    last = next(node.name for node in attention.graph.nodes if node.target == "mlp.3")
    assert shares[last] == pytest.approx(1 - 12 * CLASSES / count_of(attention).total())
    assert shares["output"] == 1
    first = next(node.name for node in shared.graph.nodes if node.target == "twice")
    assert macs_before(shared)[first] == pytest.approx(
        (64 * 27 * 5 + 64 * 45 * 5) / (64 * 27 * 5 + 2 * 64 * 45 * 5 + 5 * CLASSES)
    )


def test_operations_of_inference_mode_and_of_other_threads_are_told_apart() -> None:
    layer, x = nn.Linear(4, 5), torch.zeros(3, 4)
    other = threading.Thread(target=layer, args=(x,))
    with torch.inference_mode(), counted() as operations:
        other.start()
        other.join()
        F.scaled_dot_product_attention(x[None, None], x[None, None], layer(x)[None, None])
    assert operations.macs == 3 * 4 * 5 + 3 * 3 * (4 + 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("swin_tiny_patch4_window7_224", 224), ("maxvit_rmlp_pico_rw_256", 256), ("botnet26t_256", 256),
        ("vit_tiny_patch16_224", 224), ("coat_lite_tiny", 224), ("convnext_atto", 64), ("regnetx_002", 64),
        ("mixer_s32_224", 224), ("xcit_nano_12_p16_224", 224), ("efficientvit_b0", 64), ("sequencer2d_s", 224),
    ],
)  # fmt: skip
def test_networks_of_timm_are_counted(name: str, side: int) -> None:
    pytest.importorskip("timm")
    base = load_model(f"timm:{name}", classes=10, pretrained=False, size=(3, side, side))
    graph = trace(base.module, base.spec.preprocessing)
    assert count_of(graph).total() == by_torch(graph, base.spec.preprocessing.size)


def test_products_are_no_layer_s() -> None:
    graph = traced(Attention())
    count = MacCount(graph, couple(graph))
    tokens, width = 16, 12
    assert count.products == 2 * tokens * tokens * width
    assert count.total() - sum(count.by_layer().values()) == count.products
    assert count.of({"head"}).total() == width * CLASSES


def test_a_network_without_a_cut_is_a_network() -> None:
    graph = traced(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(COLOUR.size), CLASSES)))
    assert Network(graph).macs.total() == math.prod(COLOUR.size) * CLASSES
    with pytest.raises(CutError, match="prune makes the whole network smaller"):
        PartedNetwork(graph)
