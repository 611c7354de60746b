"""Running a bundle in torch: a module that sends every input to its subgraph and keeps the order of the batch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from sinf.bundle.classifier import Classifier
from sinf.bundle.folder import folder_of
from sinf.bundle.semantic import Bundle
from sinf.data.images import BATCH, Preprocessing
from sinf.engine.constant import ConstantModule
from sinf.engine.memory import release
from sinf.engine.parts import CascadeHead, First, Front, Specialist, bare, dressed, is_bare, make_deferral_head
from sinf.errors import ConfigError
from sinf.graph.network import Part, PartedNetwork
from sinf.graph.prepare import prepare
from sinf.graph.trace import RUNNING
from sinf.machine.threads import Lock, Once
from sinf.models import BaseModel, fit_state, load_spec
from sinf.routing.deferral import margin_of
from sinf.routing.grouping import TailTimes
from sinf.routing.router import BASE, FIRST, FRONT, FULL_TAIL, Engine, FeatureRouter, Routed, part_name


class Routes(NamedTuple):
    """Every route taken for N inputs, with nothing falling back: its cluster, log-probability, what its subgraph says
    (log-sum-exp of its logits, log-probability of its first class, margin between its first two), and whether that is
    right."""

    route: Tensor
    log_route: Tensor
    energy: Tensor
    log_within: Tensor
    right: Tensor
    margin: Tensor

    @property
    def one(self) -> bool:
        """Whether there is one route for all, that of a cascade: its probability is 1."""
        return bool((self.log_route == 0).all())


class TorchEngine:
    """The parts of a bundle as torch runs them; numpy arrays are taken too, tensors come out.

    Subgraphs are made when first needed and forgotten, least recently used first, beyond ``memory_budget`` bytes (None:
    none is forgotten). Many threads may run one engine; a subgraph that a thread runs stays until it is done, beyond
    the budget if need be.
    """

    def __init__(self, bundle: Bundle, memory_budget: int | None = None) -> None:
        if memory_budget is not None and memory_budget < 0:
            raise ConfigError("memory_budget must not be negative", got=memory_budget, remedy="give a number of bytes")
        self.bundle, self.memory_budget = bundle, memory_budget
        self.network = bundle.network()
        self.tails = TailStore(self.network, bundle.parts, memory_budget)
        self.extractor = self.tails.ready(self.network.extractor(bundle.parts["extractor"]))
        self.deferral_heads = {
            part_name(cluster): make_deferral_head(bundle.clusters, cluster, bundle.deferral)
            for cluster in range(len(bundle.clusters))
        }
        self._whole: Once[str, Any] = Once(self._make)

    @property
    def front(self) -> Front:
        """Extractor and route predictor; made when first used, because a build calibrates the predictor before that."""
        return self._whole[FRONT]

    @property
    def base(self) -> fx.GraphModule:
        """The base model, prepared as the parts are."""
        return self._whole[BASE]

    def _make(self, part: str) -> nn.Module:
        if part == BASE:
            return prepare(self.network.graph)
        front = self._front(self.extractor)
        front.router.to(memory_format=torch.channels_last)  # the router alone: an extractor may share the base's layers
        return front

    def _front(self, extractor: nn.Module) -> Front:
        return Front(extractor, copy.deepcopy(self.bundle.router).folded())

    @torch.no_grad()
    def run(self, part: str, *inputs: Any) -> tuple[Tensor, ...]:
        inputs = as_tensors(inputs)
        with RUNNING:
            if part == FRONT:
                return self.front(*inputs)
            if part == FIRST:
                features = self.extractor(*inputs)
                logits = self.tails.get(part_name(0))(features)
                return features, logits, self._cascade_head.confidence(logits)
            if part == BASE:
                return (self.base(*inputs),)
            if part == FULL_TAIL:
                return (self.tails.get(FULL_TAIL)(*inputs),)
            if is_bare(part):
                return (self._bare(part)(*inputs),)
            features, log_clusters = inputs
            return self.deferral_heads[part](self.tails.get(part)(features), log_clusters)

    def array(self, values: list[float] | list[bool] | list[int]) -> Tensor:
        return torch.tensor(values)

    def _bare(self, part: str) -> nn.Module:
        """A bare part, prepared as the part is."""
        return self.extractor if part == bare(FRONT) else self.tails.get(dressed(part))

    def module(self, part: str) -> nn.Module:
        """A part, bare ones too, as one module of its own, such as is exported, not prepared for torch."""
        if part == bare(FRONT):
            return self.network.extractor(self.bundle.parts["extractor"])
        if is_bare(part):
            return self.network.tail(self.bundle.parts[dressed(part)])
        if part == FRONT:
            return self._front(self.network.extractor(self.bundle.parts["extractor"]))
        if part == FIRST:
            return First(self.module(bare(FRONT)), self.module(bare(part_name(0))), self._cascade_head)
        if part == BASE:
            return self.network.graph
        tail = self.network.tail(self.bundle.parts[part])
        return tail if part == FULL_TAIL else Specialist(tail, self.deferral_heads[part])

    @property
    def _cascade_head(self) -> CascadeHead:
        head = self.deferral_heads[part_name(0)]
        if not isinstance(head, CascadeHead):
            raise ConfigError(
                f"the part {FIRST} is of bundles with one cluster", got=len(self.deferral_heads), remedy=f"run {FRONT}"
            )
        return head

    def close(self) -> None:
        self.tails.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchEngine, (self.bundle, self.memory_budget)

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchEngine:
        return TorchEngine(self.bundle, self.memory_budget)


def as_tensors(arrays: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Tensors in float32: as they are where they can be, numpy arrays shared where they may be written to."""
    return tuple(
        torch.as_tensor(x if isinstance(x, Tensor) or x.flags.writeable else x.copy(), dtype=torch.float32)
        for x in arrays
    )


class SemanticModel(Classifier, ConstantModule):
    """A semantic-inference bundle as a plain classifier: ``(B, C, H, W)`` normalised images -> ``(B, classes)`` logits.

    ``threshold`` may be changed at any time; ``memory_budget`` is that of :class:`TorchEngine`. Many threads may call
    one model. A copy, by ``copy.deepcopy`` or in another process, opens the bundle anew, with the thresholds of now.
    """

    def __init__(self, bundle: Bundle, memory_budget: int | None = None) -> None:
        super().__init__()
        self.bundle = bundle
        self.engine = TorchEngine(bundle, memory_budget)
        self.network, self.tails = self.engine.network, self.engine.tails
        self.extractor, self.router = self.engine.extractor, bundle.router
        self.feature_router = calibrated_router(bundle, self.engine)
        self.training = False

    def __reduce__(self) -> tuple[Any, ...]:
        router = self.feature_router
        state = (router.threshold, router.early_threshold, router.times)
        return _reopened, (type(self), self.bundle, self.engine.memory_budget, *state)

    def __deepcopy__(self, memo: dict[int, Any]) -> SemanticModel:
        reopen, arguments = self.__reduce__()
        return reopen(*arguments)  # the bundle itself never changes

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        memory_budget: int | None = None,
        allow_factory: bool = False,
        key: bytes | None = None,
    ) -> SemanticModel:
        """Load a bundle from a folder, or from the hub when there is no such folder; see :meth:`Bundle.load`."""
        return cls(Bundle.load(folder_of(source), allow_factory=allow_factory, key=key), memory_budget)

    def save_pretrained(self, folder: str | Path, *, key: bytes | None = None) -> None:
        """Write the bundle to a folder, signed where there is a key."""
        self.bundle.save(folder, key=key)

    def held(self) -> dict[str, nn.Module]:
        """The base model and the route predictor; subgraphs are made of the base model when they are needed."""
        return {"base": self.network.graph, "router": self.router}

    @property
    def details_of_a_prediction(self) -> dict[str, type]:
        return {"route": str, "confidence": float, "fell_back": bool}

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.bundle.class_names

    @property
    def clusters(self) -> dict[str, list[int]]:
        """As of :mod:`sinf.edge`: the classes of every semantic cluster, by its name."""
        clusters = self.bundle.clusters
        return {name: list(members) for name, members in zip(clusters.names, clusters.members, strict=True)}

    @property
    def preprocessing(self) -> Preprocessing:
        return self.bundle.spec.preprocessing

    def _answer(self, images: Tensor) -> tuple[Tensor, Routed]:
        routed = self.feature_router.one_by_one().route(images)
        return routed.logits, routed

    def _details(self, images: Tensor, answer: Routed) -> list[dict[str, Any]]:
        names = self.bundle.clusters.names
        rows = zip(answer.route.tolist(), answer.confidence.tolist(), answer.fell_back.tolist(), strict=True)
        return [{"route": names[route], "confidence": value, "fell_back": fell} for route, value, fell in rows]

    def base_model(self) -> BaseModel:
        spec, state = self.bundle.spec, self.bundle.base_state
        module = load_spec(spec, state)
        fit_state(module, state, spec.name)
        return BaseModel(module.requires_grad_(False).eval(), spec)

    @property
    def threshold(self) -> float:
        """Confidence below which an input falls back to the full tail: how likely its route loses nothing."""
        return self.feature_router.threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self.feature_router.threshold = value

    def forward(self, images: Tensor) -> Tensor:
        return self.feature_router(images)

    def route(self, images: Tensor) -> Routed:
        """Logits and where every input went."""
        return self.feature_router.route(images)

    def run_full_tail(self, features: Tensor) -> Tensor:
        """Logits of the full tail."""
        with RUNNING:
            return self.tails.get(FULL_TAIL)(features)

    def run_subgraph(self, cluster: int, features: Tensor) -> Tensor:
        """``(B, classes of the cluster)`` logits of one cluster's subgraph."""
        with RUNNING:
            return self.tails.get(part_name(cluster))(features)

    @torch.no_grad()
    def route_all(self, features: Tensor, labels: Tensor, batch: int = BATCH) -> Routes:
        """What every route comes to, of extracted features (N, C, H, W) of images with ``labels`` (N,)."""
        predict = self.engine.front.router
        log_clusters = torch.cat([predict(part).log_softmax(1) for part in features.split(batch)])
        log_route, route = log_clusters.max(1)
        energy, log_within = torch.zeros(len(features)), torch.zeros(len(features))
        margin, right = torch.zeros(len(features)), torch.zeros(len(features), dtype=torch.bool)
        for where in route.unique().tolist():
            head = self.engine.deferral_heads[part_name(where)]
            for rows in torch.nonzero(route == where).flatten().split(batch):
                said = self.run_subgraph(where, features[rows])
                energy[rows] = said.logsumexp(1)
                log_within[rows] = said.log_softmax(1).amax(1)
                margin[rows] = margin_of(said)
                logits, _ = head(said, log_clusters[rows])
                right[rows] = logits.argmax(1) == labels[rows]
        return Routes(route, log_route, energy, log_within, right, margin)


def _reopened(
    kind: type[SemanticModel],
    bundle: Bundle,
    memory_budget: int | None,
    threshold: float,
    early_threshold: float,
    times: TailTimes | None,
) -> SemanticModel:
    """A copy of a model."""
    model = kind(bundle, memory_budget)
    router = model.feature_router
    router.threshold, router.early_threshold, router.times = threshold, early_threshold, times
    return model


def calibrated_router(bundle: Bundle, engine: Engine) -> FeatureRouter:
    """The bundle's calibrated routing over an engine; what is not calibrated never falls back."""
    calibrated = bundle.threshold
    value, early = (0.0, 0.0) if calibrated is None else (calibrated.value, calibrated.early)
    times = bundle.times_of("torch", "f32", torch.get_num_threads())
    return FeatureRouter(engine, bundle.spec.preprocessing.size, value, early, times, bundle.cascade)


class _Tail:
    """A tail in memory, the bytes that it owns, and when it was used last."""

    def __init__(self, graph: fx.GraphModule, size: int) -> None:
        self.graph, self.bytes, self.used = graph, size, 0


class TailStore:
    """Tails by name, made when first needed; beyond ``budget`` bytes the least recently used is forgotten.

    Only the tensors that a tail owns count: those it shares with the base model are memory-mapped. One tail is made at
    a time, which bounds the memory that making takes; a tail that is there is taken without a lock.
    """

    def __init__(self, network: PartedNetwork, parts: dict[str, Part], budget: int | None) -> None:
        self.network, self.parts, self.budget = network, parts, budget
        self.made = 0
        self._tails: dict[str, _Tail] = {}
        self._clock = itertools.count()
        self._lock = Lock()
        self._shared = {t.data_ptr() for t in network.graph.state_dict().values()}

    def get(self, name: str) -> fx.GraphModule:
        tail = self._tails.get(name)
        if tail is None:
            with self._lock:
                tail = self._tails.get(name) or self._add(name)
        tail.used = next(self._clock)
        return tail.graph

    def _add(self, name: str) -> _Tail:
        sliced = self.network.tail(self.parts[name])
        graph = self.ready(sliced)
        # A graph refers to itself in circles, which would keep a forgotten tail until the collector runs.
        for made in (sliced, graph):
            if made is not self.network.parts.tail:
                made.__dict__.pop("_graph", None)
        owned = (t for t in graph.state_dict().values() if t.data_ptr() not in self._shared)
        tail = _Tail(graph, sum(t.numel() * t.element_size() for t in owned))
        self._make_room(tail.bytes)
        self._tails[name] = tail
        self.made += 1
        if self.budget is not None:
            release(self._mapped())
        return tail

    def ready(self, graph: fx.GraphModule) -> fx.GraphModule:
        """A part as it runs. Under a budget it is as it was cut: prepared weights are copies of mapped ones, and what
        oneDNN keeps for each shape in channels_last is more than the subgraphs themselves."""
        return prepare(graph) if self.budget is None else graph

    def clear(self) -> None:
        """Forget all tails."""
        with self._lock:
            self._tails.clear()

    def _mapped(self) -> Iterator[Tensor]:
        """What tails are made from, in files when the bundle was loaded from a folder."""
        yield from self.network.graph.state_dict().values()
        for part in self.parts.values():
            for layer in part.layers.values():
                yield from layer.tensors().values()

    @property
    def bytes(self) -> int:
        """Bytes that the tails in memory own."""
        return sum(tail.bytes for tail in list(self._tails.values()))

    def _make_room(self, size: int) -> None:
        while self.budget is not None and self._tails and self.bytes + size > self.budget:
            oldest = min(self._tails, key=lambda name: self._tails[name].used)
            del self._tails[oldest]
