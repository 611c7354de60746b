"""Weights travel as names and tensors: what torch keeps beside them must not be missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sinf.bundle.semantic import Bundle
from sinf.errors import ModelError
from sinf.models import ModelSpec, fit_state, load_model, load_spec, read_weights
from sinf.models.load import PLAIN
from tiny import COLOUR


class Versioned(nn.Module):
    """As MNASNet: it loads nothing that does not say by which version it was written."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean((2, 3)))

    def _load_from_state_dict(self, state: Any, prefix: str, local_metadata: dict, *more: Any) -> None:
        if local_metadata.get("version") not in (1, 2):
            raise ValueError("version should be set")
        super()._load_from_state_dict(state, prefix, local_metadata, *more)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Versioned()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize("kind", [Versioned, Outer])
@pytest.mark.parametrize("assign", [False, True])
def test_versions_of_modules_survive_safetensors(tmp_path: Path, kind: type[nn.Module], assign: bool) -> None:
    written, read = kind(), kind()
    save_file(written.state_dict(), tmp_path / "w.safetensors")
    state = read_weights(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="version"):
        read.load_state_dict(state)
    fit_state(read, state, "it", assign=assign)
    assert all(torch.equal(value, read.state_dict()[key]) for key, value in written.state_dict().items())


def test_mnasnet_with_weights(tmp_path: Path) -> None:
    """With --weights, and as the base of a bundle, whose module has no memory when weights come."""
    base = load_model("torchvision:mnasnet0_5", classes=4, size=(3, 32, 32), pretrained=False)
    state = {key: value.contiguous() for key, value in base.module.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    again = load_model("torchvision:mnasnet0_5", weights=tmp_path / "w.safetensors", classes=4, size=(3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.module(x), base.module(x))
    bundle = Bundle.__new__(Bundle)
    for name, value in {"spec": base.spec, "base_state": state, "cut": "layers.10"}.items():
        object.__setattr__(bundle, name, value)
    graph = bundle.network().graph
    with torch.no_grad():
        torch.testing.assert_close(graph(x), base.module(x))


def test_all_or_nothing_is_loaded() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    wrong = {key: torch.zeros_like(value) for key, value in before.items()} | {"1.weight": torch.zeros(3, 3)}
    with pytest.raises(ModelError, match=r"1\.weight \(3, 3\) instead of \(2, 2\)"):
        fit_state(module, wrong, "it")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


LAYER = {"type": "Linear", "args": {"in_features": 3, "out_features": 10**9}}


@pytest.mark.parametrize(
    ("name", "options"),
    [("vgg16", {"width": 16}), (f"{PLAIN}vgg16", {"layers": {"fc": LAYER}, "tensors": {}, "steps": []})],
)
def test_a_spec_that_is_larger_than_its_weights_takes_no_memory(name: str, options: dict[str, Any]) -> None:
    """15 GB and 12 GB."""
    with pytest.raises(ModelError):
        load_spec(ModelSpec(name, 100, COLOUR, options), {"features.0.weight": torch.zeros(8, 3, 3, 3)})
