"""Coupled groups of tiny networks, as one finds them by hand; and what blocks the rest, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinf.data.images import Preprocessing
from sinf.errors import CutError
from sinf.graph.coupling import Coupling, couple
from sinf.graph.slice import slice_graph
from sinf.graph.trace import trace
from sinf.graph.verify import verify
from sinf.models import load_model
from tiny import (
    CLASSES,
    COLOUR,
    AllShuffled,
    Chain,
    ChannelsLast,
    Concat,
    Depthwise,
    Grouped,
    HalfShuffled,
    Residual,
    Scaled,
    Shared,
    Spatial,
    conv,
    random_keep,
    traced,
)


def sizes(coupling: Coupling) -> dict[str, int]:
    """Free groups by name, with their number of units."""
    return {group.name: group.size for group in coupling.free_groups()}


def reasons(coupling: Coupling) -> dict[str, str]:
    return {group.name: group.blocked for group in coupling.groups.values() if group.blocked}


def test_a_chain_has_a_group_for_each_layer() -> None:
    coupling = couple(traced(Chain()))
    assert sizes(coupling) == {"first.0": 6, "second.0": 5}
    assert reasons(coupling) == {"input": "the network's input", "head": "the network's output"}
    group = coupling.groups["first.0"]
    assert (group.producers, group.consumers) == (("first.0",), ("second.0",))
    assert list(coupling.mixers.values()) == ["first.0", "second.0", "head"]
    assert coupling.units == 3 + 6 + 5 + CLASSES


def test_flattening_repeats_a_channel() -> None:
    coupling = couple(traced(Chain()))
    slot = coupling.reads["head"]
    assert slot.repeat == 16
    keep = coupling.keep_all()
    keep[slot.units[1]] = False
    assert slot.index(keep).tolist() == [*range(16), *range(32, 80)]


def test_ends_are_free_when_asked() -> None:
    coupling = couple(traced(Chain()), free_input=True, free_output=True)
    assert sizes(coupling) == {"input": 3, "first.0": 6, "second.0": 5, "head": CLASSES}
    assert coupling.groups["input"].producers == ()
    assert coupling.groups["head"].consumers == ()
    assert torch.equal(coupling.input.units, coupling.reads["first.0"].units)
    assert torch.equal(coupling.output.units, coupling.writes["head"].units)


def test_a_sum_couples_its_terms() -> None:
    coupling = couple(traced(Residual()))
    assert sizes(coupling) == {"stem.0": 6, "inner.0.0": 4}
    assert coupling.groups["stem.0"].producers == ("stem.0", "inner.1")
    assert coupling.groups["stem.0"].consumers == ("inner.0.0", "head")
    assert torch.equal(coupling.writes["stem.0"].units, coupling.writes["inner.1"].units)
    assert torch.equal(coupling.writes["stem.1"].units, coupling.writes["stem.0"].units)


def test_a_depthwise_convolution_and_a_gate_couple() -> None:
    coupling = couple(traced(Depthwise()))
    assert sizes(coupling) == {"expand.0": 8, "squeeze": 4, "project.0": 5}
    group = coupling.groups["expand.0"]
    assert group.producers == ("expand.0", "depthwise.0", "excite")
    assert group.consumers == ("squeeze", "project.0")


def test_concatenation_puts_channels_side_by_side() -> None:
    coupling = couple(traced(Concat()))
    left, right = coupling.writes["left.0"].units, coupling.writes["right.0"].units
    assert set(left.tolist()).isdisjoint(right.tolist())
    assert torch.equal(coupling.reads["join.0"].units, torch.cat([left, right, left]))
    assert torch.equal(coupling.writes["norm"].units, coupling.reads["join.0"].units)
    keep = coupling.keep_all()
    keep[left[0]] = False
    assert coupling.writes["norm"].index(keep).tolist() == [1, 2, 3, 4, 5, 6, 8, 9, 10]


def test_a_convolution_group_goes_as_a_whole() -> None:
    coupling = couple(traced(Grouped()))
    assert sizes(coupling) == {"stem.0": 3}
    assert coupling.groups["stem.0"].producers == ("stem.0", "grouped.0")
    into, out = coupling.reads["grouped.0"].units, coupling.writes["grouped.0"].units
    assert into.tolist() == [into[0], into[0], into[2], into[2], into[4], into[4]]
    assert out.tolist() == [u for u in (into[0], into[2], into[4]) for _ in range(4)]


def test_parameters_take_the_channels_they_meet() -> None:
    coupling = couple(traced(Scaled()))
    assert sizes(coupling) == {"stem.0": 6}
    units = coupling.writes["stem.0"].units
    assert {target: slot.dim for target, slot in coupling.writes.items() if target in ("gain", "shift")} == {
        "gain": 0,
        "shift": 1,
    }
    assert all(torch.equal(coupling.writes[target].units, units) for target in ("gain", "shift", "prelu"))


def test_a_layer_called_twice_has_the_same_channels_both_times() -> None:
    coupling = couple(traced(Shared()))
    assert sizes(coupling) == {"stem.0": 5}
    assert torch.equal(coupling.reads["twice"].units, coupling.writes["twice"].units)


def test_a_map_of_one_channel_ties_nothing_and_stays() -> None:
    coupling = couple(traced(Spatial()))
    assert sizes(coupling) == {"stem.0": 6}


def test_a_spread_channel_stays_also_in_a_larger_group() -> None:
    class SpreadAndJoined(nn.Module):
        """The map is concatenated with what it multiplies, and a depthwise convolution makes one group of both."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.map = conv(3, 6), nn.Conv2d(3, 1, 1)
            self.depthwise, self.join = conv(7, 7, groups=7), nn.Conv2d(7, 4, 1)
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            channel, x = self.map(x), self.stem(x)
            return self.head(self.join(self.depthwise(torch.cat([x * channel, channel], 1))).mean((2, 3)))

    graph = traced(SpreadAndJoined())
    coupling = couple(graph)
    assert coupling.writes["map"].units.tolist()[0] not in torch.cat([g.units for g in coupling.free_groups()]).tolist()
    keep = random_keep(coupling)
    verify(graph, coupling, keep, slice_graph(graph, coupling, keep), torch.randn(2, *COLOUR.size))


def test_channels_are_followed_to_the_last_dimension() -> None:
    coupling = couple(traced(ChannelsLast()))
    assert sizes(coupling) == {"stem.0": 6, "up": 9}
    assert coupling.groups["stem.0"].producers == ("stem.0", "down")
    assert coupling.groups["stem.0"].consumers == ("up", "head")


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50"])
def test_blocks_of_a_stage_share_one_group(name: str) -> None:
    base = load_model(name, options={"width": 0.25})
    coupling = couple(trace(base.module, base.spec.preprocessing))
    last = {"resnet20": "conv2", "resnet18": "conv2", "resnet50": "conv3"}[name]
    stage = [t for t in coupling.writes if t.startswith("layer2.") and t.endswith((last, "downsample.0"))]
    assert len(stage) == len(base.module.layer2) + 1
    assert len({tuple(coupling.writes[t].units.tolist()) for t in stage}) == 1


def test_groups_part_the_units() -> None:
    """No unit is in two groups."""
    for network in (Chain, Residual, Depthwise, Concat, Grouped, Shared):
        coupling = couple(traced(network()))
        members = torch.cat([group.units for group in coupling.groups.values()]).tolist()
        assert len(members) == len(set(members))
        assert max(members) < coupling.units


# ---- what is not followed


def test_a_shuffle_blocks_what_it_moves_and_nothing_after_it() -> None:
    coupling = couple(traced(HalfShuffled()))
    assert "view" in reasons(coupling)["moved.0"]
    assert sizes(coupling) == {"free.0": 6, "last.0": 5}


def test_where_all_is_shuffled_the_error_names_the_operation() -> None:
    coupling = couple(traced(AllShuffled()))
    with pytest.raises(CutError, match="view") as caught:
        coupling.free_groups()
    assert "the network's" not in str(caught.value)


def test_the_error_says_where_the_operation_stands() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = AllShuffled()

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x)

    with pytest.raises(CutError, match="in inside"):
        couple(traced(Outer())).free_groups()


def swin_of_torchvision() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=CLASSES)


def swin_of_timm() -> nn.Module:
    options = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "img_size": 32}
    name = "timm:swin_tiny_patch4_window7_224"
    return load_model(name, classes=CLASSES, size=(3, 32, 32), options=options, pretrained=False).module


@pytest.mark.parametrize("make", [swin_of_torchvision, swin_of_timm])
def test_swin_is_blocked_outside_its_hidden_layers(make: Callable[[], nn.Module]) -> None:
    """Windows and attention move channels that cannot be followed; what is still free obeys the law."""
    shape = Preprocessing((3, 32, 32), COLOUR.mean, COLOUR.std)
    graph = traced(make().eval(), shape)
    coupling = couple(graph)
    free = coupling.free_groups()
    assert all("mlp" in group.name for group in free)
    assert any("LayerNorm" in reason for reason in reasons(coupling).values())
    keep = random_keep(coupling)
    verify(graph, coupling, keep, slice_graph(graph, coupling, keep), torch.randn(2, *shape.size))


def test_shufflenet_is_cut_only_where_nothing_is_shuffled() -> None:
    base = load_model("torchvision:shufflenet_v2_x0_5", size=(3, 64, 64), classes=10, pretrained=False)
    graph = traced(base.module, base.spec.preprocessing)
    coupling = couple(graph)
    assert any("view" in reason for reason in reasons(coupling).values())
    keep = random_keep(coupling)
    verify(graph, coupling, keep, slice_graph(graph, coupling, keep), torch.randn(2, 3, 64, 64))


class Operation(nn.Module):
    """A layer with six channels, one operation, and another layer."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.operation = conv(3, 6), operation
        made = operation(torch.rand(1, 6, 8, 8))
        self.pooled = made.ndim == 4
        self.after = nn.Conv2d(made.shape[1], 5, 1) if self.pooled else nn.Linear(made.shape[1], 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.after(self.operation(self.stem(x))))
        return self.head(x.mean((2, 3)) if self.pooled else x)


def couple_and_cut(operation: Callable[[Tensor], Tensor]) -> Coupling:
    """The coupling, after a random cut of all that is free was verified, with more than one image."""
    graph = traced(Operation(operation))
    coupling = couple(graph)
    keep = random_keep(coupling, 0.5)
    verify(graph, coupling, keep, slice_graph(graph, coupling, keep), torch.randn(2, *COLOUR.size))
    return coupling


def swap_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([second, first], 1)


NOT_FOLLOWED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "group norm": (nn.GroupNorm(2, 6), "GroupNorm at operation"),
    "local response norm": (nn.LocalResponseNorm(3), "LocalResponseNorm at operation"),
    "pixel shuffle": (nn.PixelUnshuffle(2), "PixelUnshuffle at operation"),
    "transposed convolution": (nn.ConvTranspose2d(6, 6, 2, stride=2), "ConvTranspose2d at operation"),
    "softmax over channels": (lambda x: x.softmax(1), "softmax"),
    "flip": (lambda x: x.flip(1), "flip"),
    "index": (lambda x: x[:, [5, 4, 3, 2, 1, 0]], "getitem"),
    "slice": (lambda x: x[:, 1:], "getitem"),
    "roll": (lambda x: torch.roll(x, 1, 1), "roll"),
    "cumulative sum": (lambda x: x.cumsum(1), "cumsum"),
    "halves": (swap_halves, "chunk"),
    "channels in the batch": (lambda x: x.reshape(x.shape[0] * 2, 3, 8, 8).flip(1).view(-1, 6, 8, 8), "reshape"),
    "heads": (lambda x: x.view(x.shape[0], 2, 3, -1).permute(1, 0, 2, 3)[0].mean(-1), "view"),
    "mean over channels": (lambda x: x - x.mean(1, keepdim=True), "mean"),
    "maximum over channels": (lambda x: x * x.amax(1, keepdim=True), "amax"),
    "matrix product": (lambda x: torch.matmul(x, x.transpose(2, 3)), "matmul"),
    "fixed number of features": (lambda x: F.adaptive_avg_pool2d(x, 1).view(-1, 6), "view"),
    "channels and width change places": (lambda x: x[..., :6].transpose(1, 3), "getitem"),
}


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_an_operation_that_is_not_known_blocks_by_name_and_no_further(name: str) -> None:
    operation, word = NOT_FOLLOWED[name]
    coupling = couple_and_cut(operation)
    assert word in reasons(coupling)["stem.0"]
    assert sizes(coupling) == {"after": 5}


FOLLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu in place": nn.ReLU(inplace=True),
    "hardswish": F.hardswish,
    "dropout": nn.Dropout2d(0.5),
    "identity": nn.Identity(),
    "maximum pooling": nn.MaxPool2d(2),
    "maximum pooling by function": lambda x: F.max_pool2d(x, 2),
    "average pooling by function": lambda x: F.avg_pool2d(x, 2, padding=1),
    "upsampling": lambda x: F.interpolate(x, scale_factor=2),
    "product with a number": lambda x: 2 * x - 1,
    "quotient of itself": lambda x: x / (x + 1),
    "added by keyword": lambda x: torch.add(x, other=x * 2),
    "clamp": lambda x: x.clamp(-1, 1),
    "permuted and back": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "transposed and back": lambda x: x.transpose(1, -1).transpose(-1, 1),
    "mean with negative dimensions": lambda x: x.mean((-1, -2), keepdim=True) + x,
    "flattened by a view": lambda x: F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1),
    "flattened by a reshape": lambda x: F.adaptive_avg_pool2d(x, 1).reshape((x.shape[0], -1)),
    "squeezed": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze((2, 3)),
    "concatenated with negative dimension": lambda x: torch.cat([x, x], -3),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_an_operation_on_each_channel_is_followed(name: str) -> None:
    assert sizes(couple_and_cut(FOLLOWED[name])) == {"stem.0": 6, "after": 5}


class InLastPlace(nn.Module):
    """Something that works on height and width, given width and channels."""

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


WRITTEN_ODDLY: dict[str, Callable[[Tensor], Tensor]] = {
    "pooling where channels come last": InLastPlace(nn.AvgPool2d(2)),
    "pooling by function where channels come last": InLastPlace(lambda x: F.max_pool2d(x, 2)),
    "padding where channels come last": InLastPlace(nn.ZeroPad2d(1)),
    "upsampling where channels come last": InLastPlace(lambda x: F.interpolate(x, scale_factor=2)),
    "a slope each where channels come last": InLastPlace(nn.PReLU(8)),
    "squeezed one by one": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "a view that splits the batch": lambda x: x.view(x.size(0) * 2, -1).view(x.size(0), -1),
    "a term given by keyword": lambda x: torch.add(x, other=torch.flip(x, (1,))),
    "a factor given by keyword": lambda x: torch.mul(input=x, other=torch.flip(x, (1,))),
    "keywords for permute": lambda x: torch.permute(x, dims=(0, 1, 2, 3)),
    "keywords for transpose": lambda x: torch.transpose(x, dim0=1, dim1=1),
    "keywords for cat": lambda x: torch.cat(tensors=[x, x], dim=1),
    "keywords for reshape": lambda x: torch.reshape(F.adaptive_avg_pool2d(x, 1), shape=(-1, 6)),
    "keywords for flatten": lambda x: torch.flatten(input=x, start_dim=1),
    "flattened from a negative dimension": lambda x: torch.flatten(x, -3),
    "keywords for a function": lambda x: F.relu(input=x),
    "a constant": lambda x: x * torch.arange(6.0).view(6, 1, 1),
    "concatenation with a constant": lambda x: torch.cat([x, torch.ones_like(x)], 1)[:, 3:],
    "broadcast over the batch": lambda x: x * x[:1],
    "a spread number of the image": lambda x: x * x.mean((1, 2, 3), keepdim=True),
    "a product with itself transposed": lambda x: x[..., :6, :6] * x[..., :6, :6].transpose(1, 2),
}


@pytest.mark.parametrize("name", WRITTEN_ODDLY)
def test_what_is_written_in_an_unusual_way_is_never_cut_wrongly(name: str) -> None:
    """Followed or blocked: both are right, a wrong cut and a crash are not."""
    assert sizes(couple_and_cut(WRITTEN_ODDLY[name]))["after"] == 5


def test_two_parameters_may_meet_each_other_first() -> None:
    class TwoGains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.rand(6, 1, 1)), nn.Parameter(torch.rand(6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.first * self.second)

    assert sizes(couple_and_cut(TwoGains()))["after"] == 5


class Standardised(nn.Conv2d):
    """A convolution whose own forward normalises its weight over the input channels."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


def test_a_layer_with_a_forward_of_its_own_is_not_taken_for_its_base() -> None:
    coupling = couple_and_cut(Standardised(6, 4, 3, padding=1))
    assert coupling.groups["stem.0"].blocked is not None


def test_where_only_single_units_are_left_the_error_says_so() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only, self.head = conv(3, 1), nn.Linear(1, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.only(x).mean((2, 3)))

    with pytest.raises(CutError, match=r"last unit of a layer.*only\.0"):
        couple(traced(Narrow())).free_groups()


def test_a_parameter_that_is_also_read_in_another_way_stays_whole() -> None:
    class ReadTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.rand(6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain + self.gain.sum()

    assert couple_and_cut(ReadTwice()).groups["stem.0"].blocked is not None


def test_a_layer_that_is_called_in_a_way_that_is_not_followed_stays_whole() -> None:
    class CalledTwice(nn.Module):
        """Once on maps of channels, and once on channels that come in another place."""

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)[..., :6]
            return self.norm(x.permute(0, 3, 2, 1))

    assert couple_and_cut(CalledTwice()).groups["stem.0"].blocked is not None


PARTLY_FOLLOWED = ["cait_xxs24_224", "halonet26t", "edgenext_xx_small", "nf_regnet_b0"]


@pytest.mark.parametrize("name", PARTLY_FOLLOWED)
def test_networks_with_layers_that_are_not_followed_are_cut_elsewhere(name: str) -> None:
    size = {"size": (3, 64, 64)} if name in ("edgenext_xx_small", "nf_regnet_b0") else {}
    base = load_model(f"timm:{name}", classes=10, pretrained=False, **size)
    graph = traced(base.module, base.spec.preprocessing)
    coupling = couple(graph)
    assert len(coupling.free_groups()) > 10
    keep = random_keep(coupling)
    smaller = slice_graph(graph, coupling, keep)
    verify(graph, coupling, keep, smaller, torch.randn(2, *base.spec.preprocessing.size))


def test_repeat_is_the_size_of_the_map() -> None:
    coupling = couple(traced(Chain()))
    shape = (5, 4, 4)
    assert coupling.values["flatten"].repeat == math.prod(shape[1:])
    assert len(coupling.values["flatten"].units) == shape[0]
