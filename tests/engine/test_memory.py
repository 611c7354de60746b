"""Memory that is given back: mapped pages go and come again with the same values; what was written stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sinf.engine.memory import release
from sinf.engine.network_engine import open_network
from sinf.measure.accuracy import memory_bytes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells what is mapped in /proc")
COUNT = 2**22  # 16 MiB


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    path = tmp_path / "tensors.safetensors"
    save_file({"values": torch.arange(COUNT, dtype=torch.float32)}, path)
    with safe_open(str(path), framework="pt") as file:
        return file.get_tensor("values")


def test_pages_of_a_file_are_given_back_and_read_again(mapped: torch.Tensor) -> None:
    total = float(mapped.double().sum())
    before = memory_bytes("RssFile")
    release([mapped])
    after = memory_bytes("RssFile")
    assert before is not None
    assert after is not None
    assert before - after > 3 * COUNT
    assert float(mapped.double().sum()) == total


def test_what_was_written_stays(mapped: torch.Tensor) -> None:
    mapped[7] = -1.0
    release([mapped])
    assert mapped[6:9].tolist() == [6.0, -1.0, 8.0]


def test_memory_of_no_file_is_left_alone() -> None:
    own = torch.arange(COUNT, dtype=torch.float32)
    release([own, torch.zeros(0)])
    assert torch.equal(own, torch.arange(COUNT, dtype=torch.float32))


class Wide(torch.nn.Module):
    """Maps of two megabytes an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Conv2d(32, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).mean((2, 3))


def test_a_session_gives_back_what_its_largest_batch_took() -> None:
    size = (3, 128, 128)
    network = open_network(Wide().eval(), size, "onnxruntime")
    one, many = torch.randn(1, *size).numpy(), torch.randn(60, *size).numpy()
    expected = network(one)
    release(())
    before = memory_bytes("RssAnon") or 0
    network(many)
    took = (memory_bytes("RssAnon") or 0) - before
    network.give_back()
    release(())
    assert took > 40 * 2**20
    assert (memory_bytes("RssAnon") or 0) - before < took / 3
    assert (network(one) == expected).all()


def test_a_session_that_never_ran_has_nothing_to_give_back() -> None:
    open_network(Wide().eval(), (3, 16, 16), "onnxruntime").give_back()
