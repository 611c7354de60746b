"""Two networks side by side: what they read is what they would read alone, in as much memory as is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from sinf.compress.side_by_side import CHUNK, Rows, SideBySide
from tiny import COLOUR, NETWORKS, traced


def read(graph: fx.GraphModule, x: Rows, memory: int | None = None) -> dict[str, Tensor]:
    """By layer that mixes channels, what it reads of all images that have joined by then."""
    pair = SideBySide(graph, graph, x, x, memory)
    found = {}
    for node, twin in pair:
        if node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.Conv2d | nn.Linear):
            values = list(pair.inputs_of(node, twin))
            assert all(torch.equal(a, b) for a, b in values)
            found[str(node.target)] = torch.cat([a.clone() for a, _ in values])
    return found


class Seen(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[str, Tensor] = {}

    def call_module(self, target: str, args: tuple, kwargs: dict) -> Tensor:
        self.found[target] = args[0].clone()
        return super().call_module(target, args, kwargs)


def images(count: int) -> Tensor:
    return torch.randn(count, *COLOUR.size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_read_what_they_read_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinf.compress.side_by_side.CHUNK", 4)
    graph, x = traced(NETWORKS[name]()), images(10)
    alone = Seen(graph)
    with torch.no_grad():
        alone.run(x.clone())
        found = read(graph, x)
    for target, value in found.items():
        torch.testing.assert_close(value, alone.found[target], rtol=1e-4, atol=1e-5)


class Narrowing(nn.Module):
    """Values shrink with depth, by four each time."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 32), (32, 32), (32, 32)))
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.three(self.two(self.one(x)).relu()).relu().mean((2, 3)))


def test_deep_layers_see_more_images_than_memory_allows_early_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinf.compress.side_by_side.CHUNK", 2)
    size = COLOUR.size[-1]
    graph, x = traced(Narrowing()), images(40)
    widest = 4 * 32 * (size // 2) ** 2 * 2  # of one image in both networks
    with torch.no_grad():
        found = read(graph, x, memory=8 * 2 * widest)
    counts = [len(value) for value in found.values()]
    assert counts == sorted(counts)
    assert 2 <= counts[0] <= 16
    assert counts[-1] == 40
    everything = read(graph, x)
    for target, value in found.items():
        torch.testing.assert_close(value, everything[target][: len(value)], rtol=1e-4, atol=1e-5)


def test_one_chunk_is_let_in_however_little_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinf.compress.side_by_side.CHUNK", 2)
    with torch.no_grad():
        assert {len(v) for v in read(traced(Narrowing()), images(10), memory=1).values()} == {2}


def test_chunks_are_as_large_as_memory_allows() -> None:
    graph, x = traced(Narrowing()), images(40)
    widest = 4 * 32 * (COLOUR.size[-1] // 2) ** 2 * 2
    with torch.no_grad():
        pair = SideBySide(graph, graph, x, x, memory=8 * 2 * widest)
        assert 4 <= pair.chunk <= 16
        assert pair.chunk * pair.needs[0] <= 8 * 2 * widest
        assert SideBySide(graph, graph, x, x).chunk == CHUNK
        found, everything = read(graph, x, memory=8 * 2 * widest), read(graph, x)
    for target, value in found.items():
        torch.testing.assert_close(value, everything[target][: len(value)], rtol=1e-4, atol=1e-5)


def test_rows_are_read_when_they_join() -> None:
    """Never more of them than run: all images of a network at 224 pixels do not fit into memory."""

    class Counting:
        def __init__(self, whole: Tensor) -> None:
            self.whole, self.most = whole, 0

        def __len__(self) -> int:
            return len(self.whole)

        def __getitem__(self, rows: slice) -> Tensor:
            part = self.whole[rows]
            self.most = max(self.most, len(part))
            return part

    graph, rows = traced(Narrowing()), Counting(images(600))
    with torch.no_grad():
        found = read(graph, rows, memory=1 << 18)
    assert rows.most < 100
    assert len(found["head"]) == 600
