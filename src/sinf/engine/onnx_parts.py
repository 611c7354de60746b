"""Parts of a bundle as ONNX graphs: plain operators, a batch of any size, norms folded into convolutions."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sinf.engine.parts import bare, is_bare
from sinf.engine.torch_engine import TorchEngine
from sinf.errors import DependencyError, ModelError
from sinf.graph.trace import RUNNING, TRACING
from sinf.routing.router import BASE, FIRST, FRONT, FULL_TAIL

if TYPE_CHECKING:
    import onnx

_EXAMPLE = 2  # images: with one, torch would take the batch for a constant


def signature(part: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of a part's inputs and outputs, in order (see :mod:`sinf.routing.router`)."""
    if is_bare(part):
        return (("images",), ("features",)) if part == bare(FRONT) else (("features",), ("logits",))
    if part == FRONT:
        return ("images",), ("features", "log_clusters", "route", "confidence")
    if part == FIRST:
        return ("images",), ("features", "logits", "confidence")
    if part in (BASE, FULL_TAIL):
        return ("images",) if part == BASE else ("features",), ("logits",)
    return ("features", "log_clusters"), ("logits", "confidence")


def part_to_onnx(engine: TorchEngine, part: str) -> onnx.ModelProto:
    """One part of a bundle; weights have the names that they have in torch.

    Raises:
        ModelError: the model has an operation that ONNX has not.
        DependencyError: onnx or onnxscript is missing.
    """
    _require_packages()
    inputs, outputs = signature(part)
    images = torch.zeros(_EXAMPLE, *engine.bundle.spec.preprocessing.size)
    given = (images,) if inputs == ("images",) else engine.run(FRONT, images)[: len(inputs)]
    # In the order of channels_last torch would export the strides of its own pools, as gathers.
    example = tuple(x.contiguous() for x in given)
    batches = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    return _exported(engine.module(part), example, f"the part {part}", inputs, outputs, batches)


def network_to_onnx(module: nn.Module, size: tuple[int, int, int]) -> onnx.ModelProto:
    """A classifier for batches of any size: ``images`` (B, C, H, W) -> ``logits`` (B, classes).

    Raises: as :func:`part_to_onnx`.
    """
    _require_packages()
    # Other runtimes lay out weights themselves; of channels_last torch would export the strides of its own pools.
    module = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    batches = ({0: torch.export.Dim("batch")},)
    return _exported(module, (torch.zeros(_EXAMPLE, *size),), "the network", ("images",), ("logits",), batches)


def _exported(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    what: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    batches: tuple[Any, ...] | None,
) -> onnx.ModelProto:
    """The graph of a module; with ``batches`` for any size of the dimensions that these name."""
    try:
        with TRACING, RUNNING.none(), _quiet():
            program = torch.onnx.export(
                module.eval(),
                example,
                dynamo=True,
                verbose=False,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=batches,
            )
    except Exception as error:  # the exporter raises whatever torch, onnxscript and the model do
        raise ModelError(
            f"{what} cannot be written as ONNX",
            got=str(error).strip().splitlines()[0],
            remedy="replace the operation that it names, or run the model in torch",
        ) from error
    return _without_notes(program.model_proto)  # type: ignore[union-attr]


def graph_to_onnx(graph: torch.nn.Module, size: tuple[int, int, int], batch: int) -> onnx.ModelProto:
    """A classifier for batches of this very size: ``images`` (batch, C, H, W) -> ``logits``.

    Raises: as :func:`part_to_onnx`.
    """
    _require_packages()
    return _exported(graph, (torch.zeros(batch, *size),), "the network", ("images",), ("logits",), None)


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise DependencyError("ONNX graphs need packages", got=error.name, remedy="pip install 'sinf[onnx]'") from error


def _without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes, which are long and hold paths of this machine."""
    for noted in (model, model.graph, *model.graph.node, *model.graph.value_info):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says: warnings of its own ageing, and a line for every node that it looks at."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
