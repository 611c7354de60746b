"""Tensors that lie in files where they are too large: the same numbers, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sinf.errors import StorageError
from sinf.storage.shelf import Shelf


@pytest.mark.parametrize("most", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_written_is_read(most: int, dtype: torch.dtype, tmp_path: Path) -> None:
    shelf, numbers = Shelf(tmp_path, most), torch.randn(50, 3, 4, 4).to(dtype)
    tensor = shelf.empty(*numbers.shape, dtype=dtype)
    for row in range(0, 50, 7):
        tensor[row : row + 7] = numbers[row : row + 7]
        shelf.forget()
    assert torch.equal(tensor, numbers)
    order = torch.randperm(50)
    assert torch.equal(tensor[order], numbers[order])
    assert list(tmp_path.iterdir()) == []


def test_a_large_tensor_takes_no_memory_of_the_process(tmp_path: Path) -> None:
    def mine() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if "RssFile" in line)

    shelf = Shelf(tmp_path, 0)
    before = mine()
    tensor = shelf.empty(1000, 10_000)  # 40 MB
    for row in range(1000):
        tensor[row] = row
    assert mine() > before + 30_000
    shelf.forget()
    assert mine() < before + 5_000
    assert torch.equal(tensor[:, 0], torch.arange(1000.0))


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"room for 0\.0 GB of features"):
        Shelf(tmp_path, 0).empty(10)
