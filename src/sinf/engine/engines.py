"""Engines by name, and a loaded bundle in the engine of one's choice. Another engine is a class of
:class:`sinf.engine.runtime.Runtime`, and an entry here."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sinf.engine.compiled_engine import CompiledTorch
from sinf.engine.runtime import Keep, Runtime, Setting
from sinf.engine.session_runtimes import OnnxRuntime, OpenVino
from sinf.engine.torch_engine import SemanticModel
from sinf.engine.torch_runtime import Torch
from sinf.errors import ConfigError
from sinf.registry import Registry
from sinf.routing.router import FeatureRouter

RUNTIMES: Registry[Runtime] = Registry("engine", type)


def register(runtime: Runtime) -> None:
    """Let an engine be opened by its name.

    Raises:
        ConfigError: another one has that name.
    """
    RUNTIMES.register(runtime.name, runtime)


def runtime_of(engine: str) -> Runtime:
    """The engine of that name.

    Raises:
        ConfigError: there is no such engine.
    """
    return RUNTIMES.find(engine)


def require_precision(engine: str, precision: str) -> None:
    """Refuse an engine that there is not, or a precision that it has not."""
    precisions = runtime_of(engine).precisions
    if precision not in precisions:
        others = [name for name, runtime in RUNTIMES.items() if precision in runtime.precisions]
        raise ConfigError(
            f"{engine} computes in {' or '.join(precisions)}",
            got=precision,
            remedy=f"take the engine {' or '.join(others)}" if others else "take one of these",
        )


def native(engine: str, images: Tensor) -> Any:
    """Images as an engine reads them without a conversion."""
    return runtime_of(engine).native(images)


def open_engine(
    model: SemanticModel,
    engine: str = "onnxruntime",
    *,
    threads: int = 1,
    precision: str = "f32",
    calibration: Tensor | None = None,
    keep: Keep | None = None,
) -> FeatureRouter:
    """The same classifier in another engine: a router of its own, with the thresholds that the model has now.

    Parts are exported or compiled when first needed. ``threads`` of torch are those of the whole process.
    ``precision`` is one of the engine's, of the base model too; int8 needs ``calibration``: some hundred normalised
    images (N, C, H, W) like the application's. ``keep`` has graphs that were made before, of the same parts in the same
    setting.

    Raises:
        ConfigError: there is no such engine, it has no such precision, or calibration images are missing.
        DependencyError: its package is missing.
    """
    require_precision(engine, precision)
    parts = runtime_of(engine).open_parts(model.engine, Setting(threads, precision, calibration, keep))
    return model.feature_router.over(parts, model.bundle.times_of(engine, precision, threads))


for each in (Torch(), CompiledTorch(), OnnxRuntime(), OpenVino()):
    register(each)
