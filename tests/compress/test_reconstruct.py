"""Reconstruction: exact where it can be, never worse than the weights as they are, and rebuilt from its mixes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from sinf.compress.least_squares import NormalEquations
from sinf.compress.reconstruct import _mix, _patches, _patches_at, kernel_equations, reconstruct
from sinf.graph.apply import apply
from sinf.graph.coupling import Coupling, Slot, couple
from sinf.graph.cut import find_cut, partition
from sinf.graph.delta import Mix, mixed
from sinf.graph.network import Part
from sinf.graph.slice import slice_graph
from tiny import CLASSES, COLOUR, NETWORKS, Chain, Mixed, Residual, conv, random_keep, traced

SMALL = 1e-9  # damping that changes nothing visible


class Linear(nn.Module):
    """No activation anywhere: a channel that is a combination of others stays one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.head = nn.Linear(5 * 64, CLASSES)
        with torch.no_grad():
            for layer, last in ((self.one, 5), (self.two, 4)):
                for tensor in (layer.weight, layer.bias):
                    tensor[last] = 0.5 * tensor[1] - 2 * tensor[3]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.two(self.one(x)), 1))


def without(coupling: Coupling, **removed: list[int]) -> Tensor:
    """Everything but some channels of some layers (``first_0`` stands for ``first.0``)."""
    keep = coupling.keep_all()
    for target, channels in removed.items():
        keep[coupling.writes[target.replace("_", ".")].units[channels]] = False
    return keep


def outputs(graph: fx.GraphModule, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return graph(inputs.clone())


def error(graph: fx.GraphModule, smaller: fx.GraphModule, inputs: Tensor) -> float:
    return float((outputs(graph, inputs) - outputs(smaller, inputs)).square().mean())


def images(count: int = 64, seed: int = 1) -> Tensor:
    return torch.randn(count, *COLOUR.size, generator=torch.Generator().manual_seed(seed))


def test_with_nothing_removed_there_is_nothing_to_solve() -> None:
    graph, x = traced(Chain()), images()
    coupling = couple(graph)
    smaller = slice_graph(graph, coupling, coupling.keep_all())
    assert reconstruct(graph, coupling, coupling.keep_all(), smaller, x, x) == {}
    assert torch.equal(outputs(smaller, x), outputs(graph, x))


def test_combinations_of_other_channels_are_made_up_for_exactly() -> None:
    """Also behind the flattening, where a channel is 64 neighbouring inputs."""
    graph = traced(Linear())
    coupling = couple(graph)
    keep = without(coupling, one=[5], two=[4])
    smaller = slice_graph(graph, coupling, keep)
    new = images(seed=2)
    before, scale = error(graph, smaller, new), float(outputs(graph, new).square().mean())
    assert before > 1e-2 * scale
    mixes = reconstruct(graph, coupling, keep, smaller, images(), images(), damping=SMALL)
    assert error(graph, smaller, new) < 1e-6 * scale
    assert mixes["head"].matrix.shape == (5, 4)
    expected = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0.5, 0, -2]])
    torch.testing.assert_close(mixes["head"].matrix, expected, atol=1e-2, rtol=0)


def test_duplicates_are_made_up_for_behind_activations() -> None:
    net = Chain()
    graph = traced(net)
    with torch.no_grad():
        for tensor in (net.first[0].weight, net.first[1].weight, net.first[1].bias, net.first[1].running_mean,
                       net.first[1].running_var):  # fmt: skip
            tensor[4] = tensor[0]
        for tensor in (net.second[0].weight, net.second[0].bias):
            tensor[3] = tensor[1]
    coupling = couple(graph)
    keep = without(coupling, first_0=[0], second_0=[3])
    smaller = slice_graph(graph, coupling, keep)
    new = images(seed=2)
    scale = float(outputs(graph, new).square().mean())
    assert error(graph, smaller, new) > 1e-3 * scale
    reconstruct(graph, coupling, keep, smaller, images(), images(), damping=SMALL)
    assert error(graph, smaller, new) < 1e-6 * scale


@pytest.mark.parametrize("name", NETWORKS)
def test_error_on_the_scoring_images_does_not_grow(name: str) -> None:
    graph, x = traced(NETWORKS[name]()), images()
    coupling = couple(graph)
    for seed in range(3):
        keep = random_keep(coupling, 0.6, seed)
        smaller = slice_graph(graph, coupling, keep)
        before = error(graph, smaller, x)
        reconstruct(graph, coupling, keep, smaller, x, x)
        assert error(graph, smaller, x) <= before


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**16), pieces=st.lists(st.sampled_from(["plain", "residual", "concat", "gate"]), max_size=2)
)
def test_a_last_layer_that_is_solved_alone_cannot_be_worse(seed: int, pieces: list[str]) -> None:
    """With only the inputs of the head removed this is a law: least squares against one of its candidates."""
    torch.manual_seed(seed)
    graph, x = traced(Mixed([*pieces, "plain"], flat=True)), images(48, seed)
    coupling = couple(graph)
    read = coupling.reads["head"].units
    keep = coupling.keep_all()
    keep[read[torch.randperm(len(read))[: len(read) // 2]]] = False
    smaller = slice_graph(graph, coupling, keep)
    before = error(graph, smaller, x)
    assert list(reconstruct(graph, coupling, keep, smaller, x, x, damping=SMALL)) == ["head"]
    assert error(graph, smaller, x) <= before * (1 + 1e-3)


def test_mixes_rebuild_the_very_same_network() -> None:
    for name in ("Chain", "Concat", "Depthwise", "ChannelsLast"):
        graph, x = traced(NETWORKS[name]()), images(16)
        coupling = couple(graph)
        keep = random_keep(coupling)
        smaller = slice_graph(graph, coupling, keep)
        mixes = reconstruct(graph, coupling, keep, smaller, x, x)
        stored = {target: Mix(mix.matrix.half()) for target, mix in mixes.items()}
        rebuilt = apply(graph, coupling, keep, stored)
        ours, theirs = smaller.state_dict(), rebuilt.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert torch.equal(outputs(smaller, x), outputs(rebuilt, x))


def test_base_network_and_images_stay_as_they_were() -> None:
    graph, x = traced(Chain()), images()
    coupling = couple(graph)
    keep = without(coupling, second_0=[0, 2])  # the first layers are shared with the base network
    smaller = slice_graph(graph, coupling, keep)
    before, copy = {name: value.clone() for name, value in graph.state_dict().items()}, x.clone()
    mixes = reconstruct(graph, coupling, keep, smaller, x, x)
    assert list(mixes) == ["head"]
    assert torch.equal(x, copy)
    assert all(torch.equal(before[name], value) for name, value in graph.state_dict().items())
    assert not torch.equal(smaller.get_submodule("head").weight, slice_graph(graph, coupling, keep).head.weight)


def test_layer_after_changed_ones_is_solved_too() -> None:
    """``second`` loses inputs, so the head, which loses none, reads other values than before."""
    graph, x = traced(Chain()), images()
    coupling = couple(graph)
    keep = without(coupling, first_0=[0, 1, 2])
    smaller = slice_graph(graph, coupling, keep)
    seen: list[str] = []
    mixes = reconstruct(graph, coupling, keep, smaller, x, x, progress=seen.append)
    assert list(mixes) == seen == ["second.0", "head"]
    assert mixes["second.0"].matrix.shape == (6, 3)
    assert mixes["head"].matrix.shape == (5, 5)
    only_first = apply(graph, coupling, keep, {"second.0": mixes["second.0"]})
    assert error(graph, smaller, x) < error(graph, only_first, x)


def test_mix_is_the_damped_least_squares_solution() -> None:
    net, x = Chain(), images()
    graph = traced(net)
    coupling = couple(graph)
    keep = without(coupling, second_0=[1, 3])
    smaller = slice_graph(graph, coupling, keep)
    mix = reconstruct(graph, coupling, keep, smaller, x, x, damping=0.1)["head"].matrix.double()
    assert torch.equal(mix, mix.half().double())
    with torch.no_grad():
        pooled = net.pool(net.second(net.first(x)))
    rows = pooled.movedim(1, -1).flatten(0, -2).double()
    kept = rows[:, [0, 2, 4]]
    selection = torch.eye(5, dtype=torch.float64)[:, [0, 2, 4]]
    level = (0.1 * kept.square().sum(0).mean()).sqrt()
    stacked = torch.cat([kept, level * torch.eye(3)]), torch.cat([rows, level * selection.T])
    expected = torch.linalg.lstsq(*stacked).solution.T
    torch.testing.assert_close(mix, expected, rtol=2e-3, atol=1e-4)  # as exact as half precision is


def test_the_damping_of_a_mix_is_found_on_a_quarter_of_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last images of every chunk are held out of the fit that chooses, and not of the solution."""
    monkeypatch.setattr("sinf.compress.side_by_side.CHUNK", 10)
    net, x = Chain(), images(25)
    graph = traced(net)
    coupling = couple(graph)
    keep = without(coupling, second_0=[1, 3])
    mix = reconstruct(graph, coupling, keep, slice_graph(graph, coupling, keep), x, x)["head"].matrix
    with torch.no_grad():
        read = net.pool(net.second(net.first(x))).movedim(1, -1)
    sums = NormalEquations(3, 5)
    for chunk in read.split(10):
        fitting = len(chunk) - len(chunk) // 4
        for rows, held_out in ((slice(fitting), False), (slice(fitting, None), True)):
            flat = chunk[rows].flatten(0, -2)
            sums.add(flat[:, [0, 2, 4]], flat, held_out=held_out)
    torch.testing.assert_close(mix, sums.solve(torch.eye(5)[:, [0, 2, 4]]), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("kernels", [False, True])
def test_heavy_damping_is_the_plain_selection_of_channels(kernels: bool) -> None:
    graph, x = traced(Chain()), images()
    coupling = couple(graph)
    keep = without(coupling, first_0=[2], second_0=[0])
    plain, smaller = (slice_graph(graph, coupling, keep) for _ in range(2))
    reconstruct(graph, coupling, keep, smaller, x, x, damping=1e6, kernels=kernels)
    torch.testing.assert_close(outputs(smaller, x), outputs(plain, x), rtol=1e-4, atol=1e-4)


def test_large_batches_are_worked_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = traced(Mixed(["residual", "gate", "pool"], flat=True)), images(20)
    coupling = couple(graph)
    keep = random_keep(coupling)
    found = []
    for chunk in (256, 7, 1):
        monkeypatch.setattr("sinf.compress.side_by_side.CHUNK", chunk)
        smaller = slice_graph(graph, coupling, keep)
        found.append(reconstruct(graph, coupling, keep, smaller, x, x, damping=3e-3))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for target, mix in other.items():
            torch.testing.assert_close(mix.matrix, found[0][target].matrix, rtol=0, atol=5e-3)


def test_tail_makes_up_for_features_that_the_extractor_lost() -> None:
    """The smaller extractor's features are narrower; what they lack is a copy of what they have."""
    net = nn.Sequential(conv(3, 6), conv(6, 5), nn.Flatten(), nn.Linear(5 * 64, CLASSES))
    graph = traced(net)
    with torch.no_grad():
        for tensor in (net[0][0].weight, net[0][1].weight, net[0][1].bias, net[0][1].running_mean,
                       net[0][1].running_var):  # fmt: skip
            tensor[5] = tensor[2]
    coupling = couple(graph)
    parts = partition(graph, find_cut(graph, "0"))
    keep = coupling.keep_all()
    keep[coupling.writes["0.0"].units[2]] = False
    extractor, tail = slice_graph(parts.extractor, coupling, keep), slice_graph(parts.tail, coupling, keep)
    x, new = images(), images(seed=2)
    wide, narrow = outputs(parts.extractor, x), outputs(extractor, x)
    assert narrow.shape[1] == 5
    before = float((outputs(tail, outputs(extractor, new)) - outputs(graph, new)).square().mean())
    mixes = reconstruct(parts.tail, coupling, keep, tail, wide, narrow, damping=SMALL)
    assert list(mixes) == ["1.0", "3"]
    after = float((outputs(tail, outputs(extractor, new)) - outputs(graph, new)).square().mean())
    assert after < 1e-4 * before


def test_features_that_are_equal_are_not_changed() -> None:
    """The build hands over two copies of the features when the extractor is not pruned."""
    graph = traced(Chain())
    coupling = couple(graph)
    parts = partition(graph, find_cut(graph, "first"))
    keep = without(coupling, second_0=[0])
    features = outputs(parts.extractor, images())
    smaller = slice_graph(parts.tail, coupling, keep)
    assert list(reconstruct(parts.tail, coupling, keep, smaller, features, features.clone())) == ["head"]


def test_operations_in_place_do_not_spoil_the_inputs() -> None:
    graph = traced(Residual())
    coupling = couple(graph)
    tail = partition(graph, find_cut(graph, "stem")).tail
    features = outputs(partition(graph, find_cut(graph, "stem")).extractor, images())
    keep = without(coupling, inner_0_0=[0, 1])
    found = []
    for shared in (True, False):
        inputs = features.clone()
        smaller = slice_graph(tail, coupling, keep)
        mixes = reconstruct(tail, coupling, keep, smaller, inputs, inputs if shared else features.clone())
        found.append((mixes["head"].matrix, inputs))
    assert torch.equal(found[0][1], features)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=5e-3)


# ---- one weight


@pytest.mark.parametrize(
    ("shape", "repeat", "by_hand"),
    [
        ((4, 6, 3, 3), 1, lambda w, m: torch.einsum("ochw,ck->okhw", w, m)),
        ((4, 6), 1, lambda w, m: w @ m),
        ((4, 6 * 9), 9, lambda w, m: torch.einsum("ocr,ck->okr", w.view(4, 6, 9), m).reshape(4, -1)),
    ],
)
def test_mixed_weight_by_hand(shape: tuple[int, ...], repeat: int, by_hand: Callable[[Tensor, Tensor], Tensor]) -> None:
    weight, mix = torch.randn(shape), torch.randn(6, 2)
    result = mixed(weight, mix, Slot(1, torch.arange(6), repeat))
    torch.testing.assert_close(result, by_hand(weight, mix))
    assert result.is_contiguous()


def strided() -> fx.GraphModule:
    """Kernels, strides, dilation, padding, and a linear layer over a flattened map, with and without bias."""
    torch.manual_seed(3)
    net = nn.Sequential(
        conv(3, 6),
        nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(5, 8, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 16, CLASSES),
    )
    return traced(net)


def test_kernels_come_nearer_than_mixes() -> None:
    graph, x = strided(), images(300)
    coupling = couple(graph)
    keep = without(coupling, **{"0_0": [1, 4], "1": [2], "3": [0, 5, 6], "5": [1]})
    found = []
    for kernels in (False, True):
        smaller = slice_graph(graph, coupling, keep)
        solved = reconstruct(graph, coupling, keep, smaller, x, x, kernels=kernels)
        found.append(error(graph, smaller, images(300, seed=7)))
    assert found[1] < 0.9 * found[0]
    kinds = {(target, kind, *layer.tensors()) for target, layer in solved.items() for kind in [layer.kind]}
    whole = ("weights", "weight", "bias")
    assert kinds == {("1", *whole[:2]), ("3", *whole), ("5", "mix", "matrix"), ("7", *whole)}


def test_whole_kernels_rebuild_the_very_same_network() -> None:
    graph, x = strided(), images(40)
    coupling = couple(graph)
    keep = without(coupling, **{"0_0": [1, 4], "1": [2], "3": [0, 5, 6], "5": [1]})
    smaller = slice_graph(graph, coupling, keep)
    solved = reconstruct(graph, coupling, keep, smaller, x, x, kernels=True)
    part = Part.from_tensors(Part(keep, solved).to_tensors(coupling, "p."), coupling, "p.")
    assert torch.equal(part.keep, keep)
    rebuilt = apply(graph, coupling, keep, part.layers)
    assert torch.equal(outputs(rebuilt, x), outputs(smaller, x))


def test_a_kernel_that_is_solved_alone_cannot_be_worse_than_its_mix() -> None:
    """The mix is where the kernel starts."""
    graph, x = traced(nn.Sequential(conv(3, 6), nn.Conv2d(6, 5, 3, padding=1))), images(64)
    coupling = couple(graph)
    keep = without(coupling, **{"0_0": [1, 4]})
    found = []
    for kernels in (False, True):
        smaller = slice_graph(graph, coupling, keep)
        reconstruct(graph, coupling, keep, smaller, x, x, kernels=kernels, damping=SMALL)
        found.append(error(graph, smaller, x))
    assert found[1] <= found[0] * (1 + 1e-4)


def test_the_network_that_is_given_stays_as_it_is() -> None:
    graph, x = strided(), images(40)
    before = {name: t.clone() for name, t in graph.state_dict().items()}
    coupling = couple(graph)
    keep = without(coupling, **{"0_0": [1, 4]})
    reconstruct(graph, coupling, keep, slice_graph(graph, coupling, keep), x, x, kernels=True)
    assert all(torch.equal(t, before[name]) for name, t in graph.state_dict().items())


# ---- the equations of one kernel

LAYERS = {
    "kernel": (nn.Conv2d(3, 4, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), (3, 6, 7)),
    "point": (nn.Conv2d(5, 2, 1, bias=False), (5, 3, 3)),
    "linear": (nn.Linear(6, 3), (6,)),
    "tokens": (nn.Linear(6, 3, bias=False), (4, 6)),
}


def by_unit_weights(layer: nn.Module, x: Tensor) -> Tensor:
    """``(N, positions, inputs of one output)``: what a layer answers when each of its weights in turn is one."""
    columns = []
    for unit in torch.eye(layer.weight[0].numel()):
        one = copy.deepcopy(layer)
        one.weight = nn.Parameter(unit.view(1, *layer.weight.shape[1:]))
        one.bias = None
        answer = one(x)
        columns.append(answer.flatten(1, -2) if answer.ndim > 3 else answer)
    if isinstance(layer, nn.Conv2d):
        return torch.stack([column.reshape(len(x), -1) for column in columns], -1)
    return torch.cat([column.reshape(len(x), -1, 1) for column in columns], -1)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_equations_of_a_kernel_by_hand(name: str, constant: bool) -> None:
    """Of some outputs, from all that the layer reads; a quarter of each chunk's images, rounded down, is held out."""
    layer, shape = LAYERS[name]
    x = torch.randn(11, *shape)
    chunks = [(layer(2 * part), part) for part in x.split(7)]
    rows = torch.tensor([0, len(layer.weight) - 1])
    sums = kernel_equations(layer, rows, chunks, constant)
    expected = NormalEquations(layer.weight[0].numel() + constant, 2)
    for (whole, small), fitting in zip(chunks, (6, 3), strict=True):
        read = by_unit_weights(layer, small)
        made = (whole.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else whole)[..., rows]
        made = made.reshape(len(whole), -1, 2)
        read = torch.cat([read, torch.ones(*read.shape[:2], 1)], -1) if constant else read
        for some, held_out in ((slice(fitting), False), (slice(fitting, None), True)):
            expected.add(read[some].flatten(0, 1), made[some].flatten(0, 1), held_out=held_out)
    assert sums.rows == expected.rows
    torch.testing.assert_close(sums.gram.tril(), expected.gram.tril(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums.cross, expected.cross, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("floats", [1, 500, 5000])
@torch.no_grad()
def test_a_piece_of_patches_is_as_large_as_memory_lets_it(floats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shape = LAYERS["kernel"]
    chunks = [(layer(part), part) for part in torch.randn(20, *shape).split(12)]
    whole = kernel_equations(layer, torch.arange(4), chunks, True)
    monkeypatch.setattr("sinf.compress.reconstruct._PATCH_FLOATS", floats)
    pieces = kernel_equations(layer, torch.arange(4), chunks, True)
    assert pieces.rows == whole.rows
    torch.testing.assert_close(pieces.gram.tril(), whole.gram.tril(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pieces.cross, whole.cross, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("least", [8, 40])
@torch.no_grad()
def test_of_many_images_a_kernel_reads_as_many_positions_as_it_needs(
    least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty-two for each unknown, from as few chunks as have four times as many; and always those of the answers."""
    monkeypatch.setattr("sinf.compress.reconstruct._LEAST_IMAGES", least)
    layer = nn.Conv2d(2, 3, 2)
    x = torch.randn(120, 2, 9, 9)  # 64 positions
    chunks = [(layer(part), part) for part in x.split(10)]
    sums = kernel_equations(layer, torch.arange(3), chunks, True)
    images = max(least, 20)  # 9 unknowns, 288 positions, a quarter of 64 from each: 18 images, two chunks
    assert sum(sums.rows) == images * -(-288 // images)
    assert sums.rows[1] == images // 10 * 2 * -(-288 // images)
    fit = sums.solve(torch.zeros(3, 9), 1e-9)
    expected = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1)
    torch.testing.assert_close(fit, expected, rtol=1e-3, atol=1e-3)


def test_a_kernel_of_one_output_is_fitted_whole() -> None:
    net = nn.Sequential(conv(3, 6), nn.Conv2d(6, 1, 3), nn.Flatten(), nn.Linear(36, CLASSES))
    graph, x = traced(net), images(40)
    coupling = couple(graph)
    keep = without(coupling, **{"0_0": [2]})
    solved = reconstruct(graph, coupling, keep, slice_graph(graph, coupling, keep), x, x, kernels=True)
    assert {target: tuple(layer.tensors()) for target, layer in solved.items()} == dict.fromkeys(
        ("1", "3"), ("weight", "bias")
    )


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(5, 4, 3, padding=1),
        nn.Conv2d(5, 4, (3, 1), stride=(2, 1), padding=(0, 2)),
        nn.Conv2d(5, 4, 3, stride=2, padding=2, dilation=2, bias=False),
    ],
    ids=["plain", "oblong", "dilated"],
)
@pytest.mark.parametrize("few", [False, True], ids=["all positions", "some positions"])
@torch.no_grad()
def test_large_images_give_their_patches_in_bands(layer: nn.Conv2d, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums are the same however few patches are in memory at once."""
    x = torch.randn(9, 5, 13, 11)
    if few:
        monkeypatch.setattr("sinf.compress.reconstruct._ENOUGH_ROWS", 1)
        monkeypatch.setattr("sinf.compress.reconstruct._LEAST_IMAGES", 9)
    answers = [(layer(x), x)]
    unknowns, places = layer.weight[0].numel() + 1, layer(x)[0, 0].numel()
    monkeypatch.setattr("sinf.compress.reconstruct._PATCH_FLOATS", unknowns * places)  # one image at once
    whole = kernel_equations(layer, torch.arange(4), answers, True)
    monkeypatch.setattr("sinf.compress.reconstruct._PATCH_FLOATS", unknowns * places // 3)
    bands = kernel_equations(layer, torch.arange(4), answers, True)
    assert bands.rows[0] + bands.rows[1] == whole.rows[0] + whole.rows[1]
    every = torch.eye(unknowns)
    torch.testing.assert_close(bands.moments_of(every), whole.moments_of(every), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bands.cross.sum(0), whole.cross.sum(0), rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_a_kernel_whose_equations_do_not_fit_gets_a_mix() -> None:
    graph = traced(Chain())
    coupling = couple(graph, free_output=True)
    keep = random_keep(coupling)
    x = torch.randn(40, *COLOUR.size)
    kinds = {}
    for limit in (None, 1):
        smaller = slice_graph(graph, coupling, keep)
        solved = reconstruct(graph, coupling, keep, smaller, x, x, kernels=True, equations=limit)
        kinds[limit] = {type(delta).__name__ for delta in solved.values()}
    assert "Weights" in kinds[None]
    assert kinds[1] == {"Mix"}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 2, 3, padding=1),
        nn.Conv2d(3, 2, (3, 2), stride=(2, 1), padding=(0, 2)),
        nn.Conv2d(3, 2, 3, stride=2, padding=2, dilation=2),
        nn.Conv2d(3, 2, 1),
        nn.Linear(7, 2),
    ],
    ids=["plain", "oblong", "dilated", "pointwise", "linear"],
)
def test_patches_at_some_positions_are_those_of_all(layer: nn.Module) -> None:
    x = torch.randn(4, 3, 9, 7)
    whole = _patches(layer, x)
    chosen = torch.randperm(whole.shape[1])[:10]
    torch.testing.assert_close(_patches_at(layer, x, chosen), whole[:, chosen])


def test_of_large_maps_a_mix_reads_as_many_positions_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that is a copy of another is found at every position."""
    layer, kept = nn.Conv2d(6, 4, 1), torch.tensor([True] * 5 + [False])
    x = torch.randn(30, 6, 20, 20)
    x[:, 5] = x[:, 2]
    chunks = [(part, part[:, :5]) for part in x.split(8)]
    read: list[int] = []
    original = NormalEquations.add

    def spy(self: NormalEquations, x: Tensor, y: Tensor, *, held_out: bool = False) -> None:
        read.append(len(x))
        original(self, x, y, held_out=held_out)

    monkeypatch.setattr(NormalEquations, "add", spy)
    mix = _mix(layer, 1, kept, chunks, 1e-9)
    assert sum(read) == 30 * 64
    torch.testing.assert_close(mix, torch.cat([torch.eye(5), torch.eye(5)[2:3]]), rtol=1e-3, atol=1e-3)
