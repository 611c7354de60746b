"""Parts in 8-bit integers, by static quantisation: ranges of activations are those of calibration images.

Every part is quantised by itself: its weights are rounded so that what it writes changes least
(:mod:`sinf.engine.rounding`), and onnxruntime's quantiser makes it plain ``QuantizeLinear`` and ``DequantizeLinear``
around convolutions and products, which ONNX Runtime and OpenVINO both run in integers. What decides about routes stays
in f32, since a route that changes costs more than its rounding: the route predictor, deferral heads, and the last
layer.
"""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sinf.engine.onnx_parts import signature
from sinf.engine.parts import bare
from sinf.engine.rounding import round_weights
from sinf.engine.torch_engine import TorchEngine
from sinf.errors import ConfigError, DependencyError, ModelError
from sinf.routing.router import FRONT, part_name

if TYPE_CHECKING:
    import onnx

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_QUANTISED = (*_PRODUCTS, "Add", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu")
_STEPS, _FEWER_STEPS = 127, 64  # of a weight each way, as onnxruntime has them; fewer are its reduced range
MOST_AT_ONCE, _PIXELS = 16, 8 * 64 * 64  # calibration images, and pixels of all, that run at once
_OF_CLUSTER = 64  # calibration images of a subgraph: those that are most likely its own


def at_once(size: tuple[int, ...]) -> int:
    """How many calibration images of ``size`` (C, H, W) run together. Ranges are the same however many do."""
    return max(1, min(MOST_AT_ONCE, _PIXELS // (size[1] * size[2])))


class Feeds(Sequence[dict[str, Any]]):
    """What a graph reads of calibration images (N, C, H, W), its inputs by name, a few images at a time. Made when it
    is asked for: features of all images are many times these."""

    def __init__(self, images: Tensor, make: Callable[[Tensor], dict[str, Tensor]] | None = None) -> None:
        self._parts = images.split(at_once(tuple(images.shape[1:])))
        self._make = make or (lambda x: {"images": x})

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: Any) -> Any:
        return {name: value.numpy() for name, value in self._make(self._parts[index]).items()}


class Quantiser:
    """Makes the parts of one bundle smaller, each when it is asked for. ``images`` (N, C, H, W) are normalised."""

    def __init__(self, engine: TorchEngine, images: Tensor) -> None:
        self._engine, size = engine, engine.bundle.spec.preprocessing.size
        self._images = require_images(images, size)
        self._log_clusters = torch.cat([engine.run(FRONT, x)[1] for x in self._images.split(at_once(size))])
        self._clusters = {part_name(cluster): cluster for cluster in range(len(engine.bundle.clusters))}

    def quantise(self, model: onnx.ModelProto, part: str) -> onnx.ModelProto:
        """A part's graph in integers; see :func:`quantise_graph`."""
        return quantise_graph(model, self._feeds(part), f"part {part}")

    def _feeds(self, part: str) -> Feeds:
        """Inputs of a part."""
        inputs, _ = signature(part)
        rows = torch.arange(len(self._images))
        cluster = next((c for name, c in self._clusters.items() if part in (name, bare(name))), None)
        if cluster is not None:
            rows = self._log_clusters[:, cluster].topk(min(_OF_CLUSTER, len(rows))).indices

        def make(x: Tensor) -> dict[str, Tensor]:
            if inputs == ("images",):
                return {"images": x}
            return dict(zip(inputs, self._engine.run(FRONT, x), strict=False))

        return Feeds(self._images[rows], make)


def require_images(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Calibration images in float32; others than (N, C, H, W) of ``size`` (C, H, W) are refused."""
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(size) or not len(images):
        raise ConfigError(
            f"int8 needs calibration images of shape (N, {', '.join(map(str, size))})",
            got=tuple(images.shape),
            remedy="give some hundred images like the application's, normalised",
        )
    return torch.as_tensor(images, dtype=torch.float32)


def quantise_graph(model: onnx.ModelProto, feeds: Sequence[dict[str, Any]], what: str) -> onnx.ModelProto:
    """A graph in integers, with ranges of activations from ``feeds``, its inputs by name; one without anything to gain
    stays as it is. ``what`` names it.

    Raises:
        ModelError: it cannot be quantised.
        DependencyError: onnxruntime is missing.
    """
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise DependencyError("int8 needs onnxruntime's quantiser", remedy="pip install onnxruntime") from error
    import onnx

    kept, full = _kept(model), _has_dot_product()
    if not any(node.op_type in _PRODUCTS and node.name not in kept for node in model.graph.node):
        return model
    with tempfile.TemporaryDirectory(prefix="sinf-int8-") as folder, _quiet():
        path = Path(folder, "part.onnx")
        try:
            quantization.quantize_static(
                round_weights(model, feeds, kept, _STEPS if full else _FEWER_STEPS),
                path,
                _reader(feeds),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED),
                nodes_to_exclude=kept,
                per_channel=True,
                reduce_range=not full,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        except Exception as error:  # the quantiser raises whatever its steps do
            raise ModelError(
                f"the {what} cannot be quantised", got=str(error).strip().splitlines()[0], remedy="take f32"
            ) from error
        return onnx.load(path)


def _kept(model: onnx.ModelProto) -> list[str]:
    """Nodes that stay in f32: those of the route predictor, and all from the last product on."""
    nodes = list(model.graph.node)
    for number, node in enumerate(nodes):
        node.name = node.name or f"node{number}"
    products = [number for number, node in enumerate(nodes) if node.op_type in _PRODUCTS]
    last = products[-1] if products else 0
    made = {value.name for value in model.graph.output}
    if "features" in made and "logits" not in made:
        last = len(nodes)  # the front ends with the predictor, and a bare extractor in its features
    tainted: set[str] = set()
    kept = []
    for number, node in enumerate(nodes):
        if number >= last or any(name.startswith("router.") or name in tainted for name in node.input):
            kept.append(node.name)
            tainted |= set(node.output)
    return kept


def _reader(feeds: Sequence[dict[str, Any]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    left = iter(feeds)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return next(left, None)

    return Reader()


def _has_dot_product() -> bool:
    """Whether 8-bit products are added up without overflow: on x86 that takes VNNI; without it weights get 7 bits."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice, which it gives to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
