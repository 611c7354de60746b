"""Memory that is given back: mapped pages go and come again with the same values; what was written stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sinf.engine.memory import release
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
