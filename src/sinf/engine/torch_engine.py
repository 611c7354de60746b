"""Running a bundle in torch: a module that sends every input to its subgraph and keeps the order of the batch."""

from __future__ import annotations

import contextlib
import copy
import ctypes
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from sinf.bundle import Bundle, part_name
from sinf.compact import BATCH
from sinf.errors import ConfigError, DataError
from sinf.network import Network, Part

FALLBACK = "fallback"


class Routed(NamedTuple):
    """What the model says of a batch: logits (B, classes), the cluster of each input's route (B,), the route
    predictor's confidence (B,) and whether the input fell back to the full tail (B,)."""

    logits: Tensor
    route: Tensor
    confidence: Tensor
    fell_back: Tensor


class SemanticModel(nn.Module):
    """A semantic-inference bundle as a plain classifier: ``(B, C, H, W)`` normalised images -> ``(B, classes)`` logits.

    Subgraphs are made when first needed and forgotten, least recently used first, beyond ``memory_budget`` bytes (None:
    none is forgotten). ``threshold`` may be changed at any time.
    """

    def __init__(self, bundle: Bundle, memory_budget: int | None = None) -> None:
        super().__init__()
        if memory_budget is not None and memory_budget < 0:
            raise ConfigError("memory_budget must not be negative", got=memory_budget, remedy="give a number of bytes")
        self.bundle = bundle
        self.network = bundle.network()
        self.extractor = self.network.extractor(bundle.parts["common"])
        self.router = bundle.router
        self._threshold = 0.0 if bundle.threshold is None else bundle.threshold.value
        self.tails = TailStore(self.network, bundle.parts, memory_budget)
        of_class = bundle.clusters.of_class()
        sizes = torch.bincount(of_class, minlength=len(bundle.clusters))
        self.register_buffer("_of_class", of_class, persistent=False)
        self.register_buffer("_log_size", sizes.log()[of_class], persistent=False)
        self._members = [torch.tensor(classes) for classes in bundle.clusters.members]
        self._runnable_router: nn.Module | None = None
        self.eval()

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, memory_budget: int | None = None, allow_factory: bool = False
    ) -> SemanticModel:
        """Load a bundle from a folder, or from the hub when there is no such folder."""
        folder = Path(source)
        if not folder.exists() and str(source).count("/") == 1 and not str(source).startswith((".", "/", "~")):
            from huggingface_hub import snapshot_download

            try:
                folder = Path(snapshot_download(str(source)))
            except Exception as error:  # the hub client raises many types for "cannot be had"
                raise DataError(f"no bundle {source}, in a folder or on the hub", got=type(error).__name__) from error
        return cls(Bundle.load(folder, allow_factory=allow_factory), memory_budget)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the bundle to a folder."""
        self.bundle.save(folder)

    @property
    def threshold(self) -> float:
        """Confidence below which an input falls back to the full tail."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not 0 <= value <= 2:
            raise ConfigError(
                "threshold must be in 0..1 (or 2: always fall back)", got=value, remedy="take the calibrated one"
            )
        self._threshold = value

    def forward(self, images: Tensor) -> Tensor:
        return self.route(images).logits

    @torch.no_grad()
    def route(self, images: Tensor) -> Routed:
        """Logits and where every input went."""
        self._check(images)
        features = self.extractor(images)
        scores = self._router()(features)
        if len(images) == 1:  # the common case on a device: no grouping
            return self._route_one(features, scores)
        probabilities = scores.softmax(1)
        confidence, route = probabilities.max(1)
        fell_back = confidence < self._threshold
        logits = torch.empty(len(images), len(self._of_class))
        destination = torch.where(fell_back, -1, route)
        for where in destination.unique().tolist():
            rows = torch.nonzero(destination == where).flatten()
            part = features if len(rows) == len(features) else features[rows]
            if where < 0:
                logits[rows] = self.run_fallback(part)
            else:
                logits[rows] = self._spread(self.tails.get(part_name(where))(part), scores[rows], where)
        return Routed(logits, route, confidence, fell_back)

    def _route_one(self, features: Tensor, scores: Tensor) -> Routed:
        confidence, route = scores.softmax(1).max(1)
        fell_back = confidence < self._threshold
        if fell_back:
            return Routed(self.run_fallback(features), route, confidence, fell_back)
        where = int(route)
        logits = self._spread(self.tails.get(part_name(where))(features), scores, where)
        return Routed(logits, route, confidence, fell_back)

    def run_fallback(self, features: Tensor) -> Tensor:
        """Logits of the full tail."""
        return self.tails.get(FALLBACK)(features)

    def run_subgraph(self, cluster: int, features: Tensor) -> Tensor:
        """``(B, classes of the cluster)`` logits of one cluster's subgraph."""
        return self.tails.get(part_name(cluster))(features)

    @torch.no_grad()
    def route_all(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Confidence and cluster of every route, and whether the routed subgraph answers right, with no fallback (N,)
        each."""
        scores = torch.cat([self._router()(part) for part in features.split(BATCH)])
        confidence, route = scores.softmax(1).max(1)
        right = torch.zeros(len(features), dtype=torch.bool)
        for where in route.unique().tolist():
            rows = torch.nonzero(route == where).flatten()
            logits = torch.cat([self.run_subgraph(where, part) for part in features[rows].split(BATCH)])
            right[rows] = self._spread(logits, scores[rows], where).argmax(1) == labels[rows]
        return confidence, route, right

    def _spread(self, logits: Tensor, scores: Tensor, cluster: int) -> Tensor:
        """Logits over all classes: the cluster's probability is shared out as the subgraph says, the probability of
        every other cluster evenly among its classes."""
        log_route = scores.log_softmax(1)
        everywhere = log_route.index_select(1, self._of_class).sub_(self._log_size)
        inside = logits.log_softmax(1).add_(log_route[:, cluster, None])
        return everywhere.index_copy_(1, self._members[cluster], inside)

    def _router(self) -> nn.Module:
        if self._runnable_router is None:
            self._runnable_router = copy.deepcopy(self.router).folded()
        return self._runnable_router

    def _check(self, images: Tensor) -> None:
        size = self.bundle.spec.preprocessing.size
        if images.ndim != 4 or tuple(images.shape[1:]) != size:
            raise DataError(
                f"images must be a batch of shape (B, {', '.join(map(str, size))})",
                got=tuple(images.shape),
                remedy="resize and normalise them as bundle.spec.preprocessing says",
            )
        if not images.is_floating_point():
            raise DataError(
                "images must be normalised floats", got=images.dtype, remedy="use bundle.spec.preprocessing"
            )
        if not bool(torch.isfinite(images.sum())):
            raise DataError("images must be finite", got="NaN or infinity", remedy="check the image's decoding")


class TailStore:
    """Tails by name, made when first needed; beyond ``budget`` bytes the least recently used is forgotten.

    Only the tensors that a tail owns count: those it shares with the base model are memory-mapped.
    """

    def __init__(self, network: Network, parts: dict[str, Part], budget: int | None) -> None:
        self.network, self.parts, self.budget = network, parts, budget
        self.made = 0
        self._tails: OrderedDict[str, fx.GraphModule] = OrderedDict()
        self._bytes: dict[str, int] = {}
        self._shared = {t.data_ptr() for t in network.graph.state_dict().values()}

    def get(self, name: str) -> fx.GraphModule:
        tail = self._tails.get(name)
        if tail is None:
            tail = self.network.tail(self.parts[name])
            if self.parts[name].changes:
                # Its graph refers to itself in circles, which would keep a forgotten tail until the collector runs.
                tail.__dict__.pop("_graph", None)
            size = sum(
                t.numel() * t.element_size() for t in tail.state_dict().values() if t.data_ptr() not in self._shared
            )
            self._make_room(size)
            self._tails[name], self._bytes[name] = tail, size
            self.made += 1
            if self.budget is not None:
                _give_back_freed_memory()
        self._tails.move_to_end(name)
        return tail

    @property
    def bytes(self) -> int:
        """Bytes that the tails in memory own."""
        return sum(self._bytes.values())

    def _make_room(self, size: int) -> None:
        while self.budget is not None and self._tails and self.bytes + size > self.budget:
            name, _ = self._tails.popitem(last=False)
            del self._bytes[name]


def _give_back_freed_memory() -> None:
    """glibc keeps what was freed while a tail was made, several times the tail's own size: a budget would mean
    little."""
    with contextlib.suppress(OSError, AttributeError):  # another C library decides for itself
        ctypes.CDLL(None).malloc_trim(0)
