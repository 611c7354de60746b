"""The engine of torch.compile, without compiling: which part is compiled, how often, and what is said when it fails.
(That what is compiled answers as it should is in the conformance suite, marked slow.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sinf.engine.compiled_engine import CompiledTorchEngine
from sinf.engine.parts import bare
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import DependencyError, ModelError, SinfError
from sinf.routing.router import BASE, FRONT, FULL_TAIL, part_name


def test_every_part_is_compiled_once_for_one_input_and_once_for_more(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    def compile(module: torch.nn.Module, *, dynamic: bool) -> torch.nn.Module:
        calls.append(dynamic)
        return module

    monkeypatch.setattr(torch, "compile", compile)
    model = SemanticModel.from_pretrained(built)
    engine, cluster = CompiledTorchEngine(model.engine), part_name(1)
    x = torch.randn(7, *model.bundle.spec.preprocessing.size)
    for count in (1, 7, 3, 1):
        features, log_clusters, *rest = engine.run(FRONT, x[:count])
        for found, expected in zip((features, log_clusters, *rest), model.engine.run(FRONT, x[:count]), strict=True):
            torch.testing.assert_close(found, expected)
        for part, given in ((BASE, (x[:count],)), (FULL_TAIL, (features,)), (cluster, (features, log_clusters))):
            for found, expected in zip(engine.run(part, *given), model.engine.run(part, *given), strict=True):
                torch.testing.assert_close(found, expected)
        torch.testing.assert_close(engine.run(bare(FRONT), x[:count].numpy())[0], features)
        (bare_logits,) = engine.run(bare(cluster), features)
        torch.testing.assert_close(bare_logits, model.run_subgraph(1, features))
    assert sorted(calls) == 6 * [False] + 6 * [True]
    engine.close()
    engine.run(BASE, x)
    assert len(calls) == 13


@pytest.mark.parametrize(
    ("of", "reason", "kind", "says"),
    [
        ("InductorError", "InvalidCxxCompiler: none found", DependencyError, "install g++"),
        ("InductorError", "LoweringException: no such operator", ModelError, f"the part {FRONT} cannot be compiled"),
        ("Unsupported", "a call that dynamo cannot follow", ModelError, f"the part {FRONT} cannot be compiled"),
    ],
)
def test_what_cannot_be_compiled_is_said(
    built: Path, monkeypatch: pytest.MonkeyPatch, of: str, reason: str, kind: type[SinfError], says: str
) -> None:
    """Whether inductor says so, which writes the code, or dynamo, which reads the network."""
    import torch._dynamo.exc
    import torch._inductor.exc

    parent: Any = getattr(torch._inductor.exc, of, None) or getattr(torch._dynamo.exc, of)

    class Broken(parent):
        def __init__(self) -> None:
            Exception.__init__(self, reason)

    def compile(module: torch.nn.Module, *, dynamic: bool) -> Any:
        def run(*inputs: Any) -> Any:
            raise Broken

        return run

    monkeypatch.setattr(torch, "compile", compile)
    model = SemanticModel.from_pretrained(built)
    with pytest.raises(kind, match=says) as found:
        CompiledTorchEngine(model.engine).run(FRONT, torch.randn(1, *model.bundle.spec.preprocessing.size))
    assert reason in str(found.value)
