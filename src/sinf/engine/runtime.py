"""The interface of runtimes: what opens the parts of a bundle, or one whole network, for :mod:`sinf.engine.engines`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from sinf.engine.torch_engine import TorchEngine
from sinf.errors import ConfigError
from sinf.routing.router import Engine

if TYPE_CHECKING:
    import onnx

#: Normalised images (B, C, H, W) -> logits (B, classes), arrays of the engine's own kind.
Network = Callable[[Any], Any]
#: A file with a part's graph, by the part's name; the bytes are made where it is not there.
Keep = Callable[[str, Callable[[], bytes]], Path]


@dataclass(frozen=True)
class Setting:
    """How something is to run: threads, one of the runtime's precisions, and the normalised images (N, C, H, W) that
    show int8 the ranges of activations. ``keep`` has graphs that were made, for who opens the same again."""

    threads: int = 1
    precision: str = "f32"
    calibration: Tensor | None = None
    keep: Keep | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError("threads must be at least 1", got=self.threads, remedy="give the cores it may use")
        if self.precision == "int8" and self.calibration is None:
            raise ConfigError("int8 needs calibration images", got="none", remedy="give some hundred, normalised")


class Runtime(ABC):
    """One engine, by its name; ``precisions`` are those that it computes in, the usual one first. ``quick`` says
    whether a small network is opened in a moment, so that layers can be timed one by one; ``package`` is what computes.
    Dynamic networks are run by those that are ``eager``, whose networks run as they are written, and those that have
    :meth:`open_graph`.

    What it opens takes torch tensors and numpy arrays, in float32, writable or not; many threads may call it.
    """

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("f32",)
    quick: ClassVar[bool] = True
    package: ClassVar[str] = "torch"
    eager: ClassVar[bool] = False

    @property
    def version(self) -> str:
        """Of the package: measured times are those of one version."""
        try:
            return str(getattr(import_module(self.package), "__version__", "unknown"))
        except ImportError:
            return "missing"

    def together(self, precision: str) -> int:
        """How many channels of a layer are computed together: other widths take as long as the next multiple."""
        return 1

    @abstractmethod
    def open_parts(self, parts: TorchEngine, setting: Setting) -> Engine:
        """The parts of a bundle, and its bare parts (:func:`sinf.engine.parts.bare`), each made when it first runs.

        Raises:
            DependencyError: the runtime's package is missing.
            ConfigError: the setting is not possible here.
        """

    @abstractmethod
    def open_network(self, module: nn.Module, size: tuple[int, int, int], setting: Setting) -> Network:
        """A network for images of ``size`` (C, H, W), given as torch runs it.

        Raises:
            DependencyError: the runtime's package is missing.
            ModelError: the network has an operation that the runtime has not.
        """

    def open_graph(self, graph: Callable[[], onnx.ModelProto], setting: Setting) -> Network:
        """An ONNX ``graph`` for one image, whose weights are computed; it is made when the runtime is known to run it.

        Raises:
            DependencyError: the runtime's package is missing.
            ConfigError: it runs no such graphs.
        """
        raise ConfigError(
            f"the engine {self.name} runs no graphs whose weights are computed",
            got="a dynamic network",
            remedy="take torch or onnxruntime",
        )

    def native(self, images: Tensor) -> Any:
        """Images as they are read without a conversion: numpy arrays, unless a runtime says otherwise."""
        return images.numpy()
