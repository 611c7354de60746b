"""What is made once in a run of the tests, by the process that needs it first, and read by all."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from torch import nn

from sinf.engine.parts import dressed
from sinf.engine.torch_engine import TorchEngine
from sinf.graph.delta import to_tensors
from sinf.routing.router import BASE, FIRST, FRONT, FULL_TAIL, part_name
from sinf.storage.files import hash_tensors, replacing_folder

if TYPE_CHECKING:
    import onnx

#: Names the folder to processes that run tests of the same run.
ONCE = "SINF_TESTS_ONCE"


@dataclass(frozen=True)
class Once:
    """``root`` is a folder of this run, which its workers share."""

    root: Path

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder that ``make`` fills. Do not write into it."""
        folder = self.root / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with replacing_folder(folder) as partial:
                    make(partial)
        return folder


def remember_exports(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Export a network, or a part of a bundle, once: torch's exporter takes more than a second, however small it is.

    ``folder`` is where the processes of one run find what another has exported. The exporter's own list of operators,
    made anew for every graph, takes a third of that time.
    """
    from sinf.dynamic import onnx as dynamic
    from sinf.engine import onnx_parts, session_runtimes
    from sinf.export import page, plain, single

    @functools.cache
    def remember_operators() -> None:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        known = functools.cache(ONNXRegistry.from_torchlib)
        monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(known))

    def exported(make: Callable[..., onnx.ModelProto], key: tuple[object, ...], *given: Any) -> onnx.ModelProto:
        onnx_parts._require_packages()
        import onnx

        path = folder / hashlib.sha256(repr(key).encode()).hexdigest()
        if not path.exists():
            remember_operators()
            content = make(*given).SerializeToString()
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            partial.write_bytes(content)
            partial.replace(path)
        return onnx.ModelProto.FromString(path.read_bytes())

    def part_to_onnx(engine: TorchEngine, part: str) -> onnx.ModelProto:
        bundle, whole = engine.bundle, dressed(part)
        key: tuple[object, ...] = (part, bundle.spec, hash_tensors(bundle.base_state))
        names = {BASE: (), FRONT: ("extractor",), FIRST: ("extractor", part_name(0))}.get(whole, (whole,))
        for kept in (bundle.parts[name] for name in names if name in bundle.parts):
            key += (bundle.cut, kept.keep.numpy().tobytes(), hash_tensors(to_tensors(kept.layers)))
        if part == FRONT:
            key += (hash_tensors(bundle.router.state_dict()),)
        elif part not in (BASE, FULL_TAIL):
            key += (bundle.deferral, bundle.clusters.members)
        return exported(onnx_parts.part_to_onnx, key, engine, part)

    def network_to_onnx(module: nn.Module, size: tuple[int, int, int]) -> onnx.ModelProto:
        return exported(onnx_parts.network_to_onnx, (*written(module), size), module, size)

    def graph_to_onnx(graph: nn.Module, size: tuple[int, int, int], batch: int) -> onnx.ModelProto:
        return exported(onnx_parts.graph_to_onnx, (*written(graph), size, batch), graph, size, batch)

    def written(module: nn.Module) -> tuple[object, ...]:
        state = hash_tensors(dict(module.state_dict()))
        return str(module), getattr(module, "code", type(module).__qualname__), state

    for user in (session_runtimes, page, single):
        monkeypatch.setattr(user, "part_to_onnx", part_to_onnx)
    for user in (session_runtimes, plain):
        monkeypatch.setattr(user, "network_to_onnx", network_to_onnx)
    monkeypatch.setattr(dynamic, "graph_to_onnx", graph_to_onnx)
