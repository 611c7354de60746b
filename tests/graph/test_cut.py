"""Feature extractor and tail: where a network can be cut, and that both parts together are the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from sinf.errors import CutError
from sinf.graph.cut import CutPoint, cut_points, find_cut, partition
from sinf.graph.trace import trace
from sinf.models import load_model
from tiny import CLASSES, COLOUR, NETWORKS, Chain, Residual, conv, traced


def assert_parts_are_the_whole(graph: fx.GraphModule, inputs: Tensor) -> None:
    points = cut_points(graph)
    assert points
    with torch.no_grad():
        whole = graph(inputs.clone())
        for point in points:
            parts = partition(graph, point)
            features = parts.extractor(inputs.clone())
            assert features.shape[1:] == point.shape
            torch.testing.assert_close(parts.tail(features), whole, rtol=0, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_both_parts_together_are_the_network(name: str) -> None:
    assert_parts_are_the_whole(traced(NETWORKS[name]()), torch.randn(3, *COLOUR.size))


@pytest.mark.parametrize("name", ["vgg11", "resnet20", "resnet50", "torchvision:densenet121", "timm:regnetx_002"])
def test_both_parts_of_a_real_network_together_are_the_network(name: str) -> None:
    options = {} if ":" in name else {"width": 0.125}
    base = load_model(name, options=options, pretrained=False, size=(3, 32, 32), classes=10)
    assert_parts_are_the_whole(traced(base.module, base.spec.preprocessing), torch.randn(2, 3, 32, 32))


def test_a_chain_is_cut_at_the_end_of_each_run() -> None:
    points = cut_points(traced(Chain()))
    assert points == [CutPoint("first", "first_2", (6, 8, 8)), CutPoint("pool", "pool", (5, 4, 4))]


def test_a_residual_block_is_not_cut_inside() -> None:
    nodes = [point.node for point in cut_points(traced(Residual()))]
    assert not any(node.startswith("inner") for node in nodes)


def test_cut_points_of_a_residual_network_are_its_blocks() -> None:
    base = load_model("resnet20")
    names = [point.name for point in cut_points(trace(base.module, base.spec.preprocessing))]
    assert names == ["relu", "layer1.0", "layer1.1", "layer1", "layer2.0", "layer2.1", "layer2", "layer3.0", "layer3.1",
                     "avgpool"]  # fmt: skip


def test_names_of_cut_points_are_unique() -> None:
    for name in ("vgg16", "resnet56", "torchvision:mobilenet_v3_small", "torchvision:densenet121"):
        base = load_model(name, pretrained=False, size=(3, 32, 32))
        points = cut_points(trace(base.module, base.spec.preprocessing))
        assert len({point.name for point in points}) == len(points) > 4


def test_names_of_cut_points_are_unique_where_an_activation_is_called_again() -> None:
    class OneActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(i, 4, 3, padding=1) for i in (3, 4, 4))
            self.relu, self.head = nn.ReLU(), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.second(self.relu(self.first(x))))
            return self.head(self.relu(self.third(x)).mean((2, 3)))

    graph = traced(OneActivation())
    points = cut_points(graph)
    assert len({point.name for point in points}) == len(points) == 3
    assert [find_cut(graph, point.name) for point in points] == points


def test_features_are_maps_with_height_and_width() -> None:
    for network in NETWORKS.values():
        assert all(len(point.shape) == 3 for point in cut_points(traced(network())))


def test_cuts_are_found_by_name_of_module_and_of_node() -> None:
    graph = traced(Chain())
    assert find_cut(graph, "first") == find_cut(graph, "first_2") == cut_points(graph)[0]


def test_unknown_cut_lists_the_known() -> None:
    with pytest.raises(CutError, match=r"no cut point 'nowhere'.*first, pool"):
        find_cut(traced(Chain()), "nowhere")


def test_a_network_without_cut_points_says_so() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.flatten(x, 1))

    graph = traced(Flat())
    assert cut_points(graph) == []
    with pytest.raises(CutError, match="none"):
        find_cut(graph, "head")


def test_parts_share_the_layers_of_the_network() -> None:
    graph = traced(Chain())
    parts = partition(graph, find_cut(graph, "first"))
    assert parts.extractor.get_submodule("first.0") is graph.get_submodule("first.0")
    assert parts.tail.get_submodule("head") is graph.get_submodule("head")


def test_each_part_holds_its_own_layers_only() -> None:
    graph = traced(Chain())
    parts = partition(graph, find_cut(graph, "first"))
    extractor, tail = (dict(part.named_parameters()) for part in (parts.extractor, parts.tail))
    assert extractor.keys().isdisjoint(tail.keys())
    assert extractor.keys() | tail.keys() == dict(graph.named_parameters()).keys()


def test_parts_keep_shapes_and_places() -> None:
    graph = traced(Chain())
    parts = partition(graph, find_cut(graph, "first"))
    nodes = {node.name: node for node in parts.tail.graph.nodes}
    assert nodes["features"].meta["shape"] == (1, 6, 8, 8)
    assert nodes["pool"].meta["shape"] == (1, 5, 4, 4)
    assert nodes["pool"].meta["module_path"] == "pool"


def test_a_network_that_reads_its_batch_size_first_can_be_cut() -> None:
    class ReadsSize(nn.Module):
        """As many networks are written: the size of the batch is read where the images come in."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = conv(3, 4), conv(4, 5), nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            batch = x.shape[0]
            x = self.second(self.first(x))
            return self.head(nn.functional.adaptive_avg_pool2d(x, 1).view(batch, -1))

    graph = traced(ReadsSize())
    assert "first" in [point.name for point in cut_points(graph)]
    assert_parts_are_the_whole(graph, torch.randn(3, *COLOUR.size))


def test_a_network_that_reads_its_batch_size_midway_can_be_cut_before_and_after() -> None:
    class ReadsSizeMidway(nn.Module):
        """The batch size is read from the images and from a map, after the first layers."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third, self.head = conv(3, 4), conv(4, 5), conv(5, 5), nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            y = self.second(self.first(x))
            images, maps = x.shape[0], y.size()[0]
            z = nn.functional.adaptive_avg_pool2d(self.third(y), 1).view(images, -1)
            return self.head(z.view(maps, -1))

    graph = traced(ReadsSizeMidway())
    assert {"first", "second", "adaptive_avg_pool2d"} <= {point.name for point in cut_points(graph)}
    assert_parts_are_the_whole(graph, torch.randn(3, *COLOUR.size))


def test_the_number_of_windows_is_not_taken_for_the_number_of_images() -> None:
    class Windows(nn.Module):
        """Images are parted into four windows each, and put together again."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last, self.head = (conv(3, 4), conv(4, 4), conv(4, 5), nn.Linear(5, CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            windows = x.reshape(-1, 4, 4, 4)
            count = windows.shape[0]
            windows = self.second(windows)
            x = self.last(windows.reshape(count // 4, 4, 8, 8))
            return self.head(x.mean((2, 3)))

    graph = traced(Windows())
    assert [point.name for point in cut_points(graph)] == ["first", "reshape_1", "last"]
    assert_parts_are_the_whole(graph, torch.randn(3, *COLOUR.size))


def test_a_scale_that_is_used_on_both_sides() -> None:
    class SharedScale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = conv(3, 4), conv(4, 4), nn.Linear(4, CLASSES)
            self.scale = nn.Parameter(torch.rand(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.second(self.first(x) * self.scale) * self.scale).mean((2, 3)))

    graph = traced(SharedScale())
    assert len(cut_points(graph)) >= 2
    assert_parts_are_the_whole(graph, torch.randn(3, *COLOUR.size))
