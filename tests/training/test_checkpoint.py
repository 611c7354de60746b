"""What a training goes on from is what it wrote, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sinf.errors import ConfigError
from sinf.training.checkpoint import NAME, read_checkpoint, write_checkpoint


def test_no_flipped_bit_gives_other_weights(tmp_path: Path) -> None:
    """Nor another number of epochs: "3" and "2" differ by a bit."""
    tensors = {"weight": torch.linspace(-1, 1, 6).reshape(2, 3), "momentum.weight": torch.ones(2, 3).half()}
    write_checkpoint(tmp_path, tensors, "run", 2)
    path = tmp_path / NAME
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = read_checkpoint(tmp_path, "run")
        except ConfigError:
            refused += 1
            continue
        assert found is not None
        assert found[1] == 2
        assert {name: tensor.tolist() for name, tensor in found[0].items()} == {
            name: tensor.tolist() for name, tensor in tensors.items()
        }
    assert refused > sum(tensor.nbytes for tensor in tensors.values())


def test_another_run_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"weight": torch.ones(2)}, "run", 1)
    with pytest.raises(ConfigError, match="one training run"):
        read_checkpoint(tmp_path, "another")
