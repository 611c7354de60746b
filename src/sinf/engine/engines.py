"""A loaded bundle in the engine of one's choice."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sinf.engine.compiled_engine import CompiledTorchEngine
from sinf.engine.onnx_parts import part_to_onnx
from sinf.engine.onnxruntime_engine import OnnxRuntimeEngine
from sinf.engine.openvino_engine import OpenVinoEngine
from sinf.engine.quantise import Quantiser
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import ConfigError
from sinf.routing.router import Engine, FeatureRouter

#: What each engine computes in, on the processor.
PRECISIONS = {
    "torch": ("f32",),
    "torch-compile": ("f32",),
    "onnxruntime": ("f32", "int8"),
    "openvino": ("f32", "bf16", "int8"),
}
ENGINES = tuple(PRECISIONS)


def open_engine(
    model: SemanticModel,
    engine: str = "onnxruntime",
    *,
    threads: int = 1,
    precision: str = "f32",
    calibration: Tensor | None = None,
) -> FeatureRouter:
    """The same classifier in another engine, with the thresholds that the model has now.

    Parts are exported or compiled when first needed. ``threads`` of torch are those of the whole process.
    ``precision`` is one of :data:`PRECISIONS`, of the base model too; int8 needs ``calibration``: some hundred
    normalised images (N, C, H, W) like the application's.

    Raises:
        ConfigError: there is no such engine, it has no such precision, or calibration images are missing.
        DependencyError: its package is missing.
    """
    require_precision(engine, precision)
    if precision == "int8" and calibration is None:
        raise ConfigError("int8 needs calibration images", got="none", remedy="give some hundred, normalised")
    times = model.bundle.times_of(engine, precision, threads)
    if engine in ("torch", "torch-compile"):
        torch.set_num_threads(threads)
    if engine == "torch":
        model.feature_router.times = times
        return model.feature_router
    routing = model.feature_router

    def over(other: Engine) -> FeatureRouter:
        return FeatureRouter(other, routing.size, routing.threshold, routing.early_threshold, times)

    if engine == "torch-compile":
        return over(CompiledTorchEngine(model.engine))
    quantiser = Quantiser(model.engine, calibration) if precision == "int8" and calibration is not None else None

    def source(part: str) -> bytes:
        graph = part_to_onnx(model.engine, part)
        return (graph if quantiser is None else quantiser.quantise(graph, part)).SerializeToString()

    arithmetic = "f32" if precision == "int8" else precision  # integers are in the graph
    if engine == "onnxruntime":
        return over(OnnxRuntimeEngine(source, threads))
    return over(OpenVinoEngine(source, threads, arithmetic))


def native(engine: str, images: Tensor) -> Tensor | np.ndarray:
    """Images as an engine reads them without a conversion."""
    return images if engine.startswith("torch") else images.numpy()


def require_precision(engine: str, precision: str) -> None:
    """Refuse an engine that there is not, or a precision that it has not."""
    if engine not in PRECISIONS:
        raise ConfigError(f"the engine must be one of {', '.join(ENGINES)}", got=engine)
    if precision not in PRECISIONS[engine]:
        others = [name for name, has in PRECISIONS.items() if precision in has]
        raise ConfigError(
            f"{engine} computes in {' or '.join(PRECISIONS[engine])}",
            got=precision,
            remedy=f"take the engine {' or '.join(others)}" if others else "take one of these",
        )
