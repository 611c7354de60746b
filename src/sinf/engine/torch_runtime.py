"""The engine torch: parts and networks as they are, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sinf.engine.runtime import Network, Runtime, Setting
from sinf.engine.torch_engine import TorchEngine, as_tensors


class Torch(Runtime):
    """Threads are those of the whole process."""

    name = "torch"
    eager = True

    def open_parts(self, parts: TorchEngine, setting: Setting) -> TorchEngine:
        """The parts that the model has, since they are constant."""
        torch.set_num_threads(setting.threads)
        return parts

    def open_network(self, module: nn.Module, size: tuple[int, int, int], setting: Setting) -> Network:
        torch.set_num_threads(setting.threads)
        return _Eager(module)

    def native(self, images: Tensor) -> Tensor:
        return images


class _Eager:
    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @torch.no_grad()
    def __call__(self, images: Any) -> Tensor:
        return self._module(*as_tensors((images,)))
