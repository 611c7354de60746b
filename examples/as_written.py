"""An engine of one's own: networks as they are written, on numpy arrays.

    import as_written                       # registers it
    router = open_engine(model, "as-written")

The engine torch runs prepared networks, with batch norms folded and weights in channels_last. This one does not, and
shows what that brings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from sinf.engine.engines import register
from sinf.engine.runtime import Network, Runtime, Setting
from sinf.engine.torch_engine import TorchEngine, as_tensors
from sinf.graph.trace import RUNNING
from sinf.machine.threads import Once


class AsWritten(Runtime):
    name = "as-written"

    def open_parts(self, parts: TorchEngine, setting: Setting) -> Parts:
        torch.set_num_threads(setting.threads)
        return Parts(parts)

    def open_network(self, module: nn.Module, size: tuple[int, int, int], setting: Setting) -> Network:
        torch.set_num_threads(setting.threads)
        return lambda images: run(module, images)[0]


class Parts:
    """A :class:`sinf.routing.router.Engine`."""

    def __init__(self, parts: TorchEngine) -> None:
        self._modules: Once[str, nn.Module] = Once(lambda part: parts.module(part).eval())

    def run(self, part: str, *inputs: Any) -> tuple[np.ndarray, ...]:
        return run(self._modules[part], *inputs)

    def array(self, values: list[float] | list[bool]) -> np.ndarray:
        return torch.tensor(values).numpy()

    def close(self) -> None:
        self._modules.clear()


@torch.no_grad()
def run(module: nn.Module, *inputs: Any) -> tuple[np.ndarray, ...]:
    with RUNNING:  # not while torch traces or exports something in another thread
        outputs = module(*as_tensors(inputs))
    return tuple(each.numpy() for each in (outputs if isinstance(outputs, tuple) else (outputs,)))


register(AsWritten())
