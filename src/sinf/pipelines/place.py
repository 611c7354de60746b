"""Where candidates run: what was opened in an engine stays open, as much of it as memory allows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar, cast

from torch import Tensor, fx

from sinf.data.images import LabelledImages
from sinf.data.preprocessing import Preprocessing
from sinf.engine.memory import release
from sinf.engine.runtime import Keep
from sinf.machine.memory import activations, weight_bytes
from sinf.storage.files import replacing

RANGES = 200  # images that set the ranges of int8
_COPIES = 3  # of weights, while a network is open: its own, an engine's, and these in the engine's order

Opened = TypeVar("Opened")
Other = TypeVar("Other")


def open_bytes(graph: fx.GraphModule, more: int = 0) -> int:
    """Bytes that a network takes while it is open, with ``more`` of weights than ``graph`` has."""
    return _COPIES * (weight_bytes(graph) + more) + activations(graph).forward


def ranges_of(images: LabelledImages, preprocessing: Preprocessing, seed: int) -> Tensor:
    """``(N, C, H, W)`` normalised images that set the ranges of int8, :data:`RANGES` of them."""
    return images.sample(RANGES, seed).inputs(preprocessing)[:]


class Running(Generic[Opened]):
    """A network in an engine, opened when it is first asked for, and again after its place closed it. ``bytes`` is what
    it takes while it is open."""

    def __init__(self, place: Place, open_it: Callable[[], Opened], bytes: int) -> None:
        self.place, self.bytes, self._open = place, bytes, open_it
        self._made: dict[Any, Any] = {}

    @property
    def open(self) -> bool:
        return bool(self._made)

    def get(self) -> Opened:
        return self.made("", self._let_in)

    def made(self, name: Any, make: Callable[[], Other]) -> Other:
        """What is made of it, once as long as it is open: it goes with it."""
        if name not in self._made:
            self._made[name] = make()
        return cast(Other, self._made[name])

    def close(self) -> None:
        self._tell("close")
        self._made.clear()

    def rest(self) -> None:
        """Give back what running many inputs took."""
        self._tell("give_back")

    def _tell(self, what: str) -> None:
        """Call that of a router's engine, or of a network's own, where it has it."""
        opened = self._made.get("")
        method = getattr(getattr(opened, "engine", opened), what, None)
        if method is not None:
            method()
            release(())

    def _let_in(self) -> Opened:
        return self.place.let_in(self, self._open)


@dataclass(frozen=True)
class Place:
    """Where networks will run: engine, threads, and normalised images (N, C, H, W) that set the ranges of int8.

    What was opened there stays open, by its name and a hash of what it is: networks of one place come from one base
    model. Where that takes more than ``memory`` bytes, None for no limit, what was opened first is closed, and opened
    again when it runs.
    """

    engine: str
    threads: int
    ranges: Tensor
    memory: int | None = None
    results: dict[tuple[str, str], Any] = field(default_factory=dict, compare=False)
    _open: list[Running[Any]] = field(default_factory=list, init=False, compare=False)

    def once(self, name: str, precision: str, compute: Callable[[], Other]) -> Other:
        """What ``compute`` returned for that name, in that precision."""
        if (name, precision) not in self.results:
            self.results[name, precision] = compute()
        return cast(Other, self.results[name, precision])

    def keep(self, name: str, precision: str) -> Keep | None:
        """Where a network's graphs in integers are kept while the place is there: rounding their weights takes longer
        than all else of opening it again. Other graphs are larger and made in a moment."""
        if precision != "int8":
            return None
        files = self.once("graphs", "", lambda: TemporaryDirectory(prefix="sinf-graphs-"))

        def kept(part: str, make: Callable[[], bytes]) -> Path:
            path = Path(files.name, hashlib.sha256(f"{name}\n{part}".encode()).hexdigest() + ".onnx")
            if not path.exists():
                with replacing(path) as partial:
                    partial.write_bytes(make())
            return path

        return kept

    def close(self) -> None:
        """Close all that is open, and forget it, with the files of graphs."""
        while self._open:
            self._open.pop().close()
        if ("graphs", "") in self.results:
            self.results["graphs", ""].cleanup()
        self.results.clear()

    def let_in(self, running: Running[Any], open_it: Callable[[], Opened]) -> Opened:
        """Open it, and close what was opened first where both do not fit."""
        while self._open and not self._fit([*self._open, running]):
            self._open.pop(0).close()
        opened = open_it()
        self._open.append(running)
        return opened

    def together(self, always: Running[Any], others: Iterable[Running[Any]]) -> Iterator[list[Running[Any]]]:
        """The others in groups that may be open at once, each with the one that ``always`` is; one group at least."""
        group: list[Running[Any]] = []
        for running in dict.fromkeys(others):
            if group and not self._fit({always: None, **dict.fromkeys(group), running: None}):
                yield group
                group = []
            group.append(running)
        yield group

    def _fit(self, some: Iterable[Running[Any]]) -> bool:
        return self.memory is None or sum(running.bytes for running in some) <= self.memory
