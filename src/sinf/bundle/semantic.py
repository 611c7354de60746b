"""What is saved and loaded: a folder with the base weights once, and for every subgraph only what differs.

    config.json             format, method, classes, clusters, cut point, deferral, thresholds, provenance, sha256 of
                            the others, model, digest
    model.safetensors       the base model's weights
    subgraphs.safetensors   PART.kept.GROUP (kept channels, base coordinates) and PART.mix.LAYER (C, k) for every part;
                            PART.whole.PARAMETER where whole weights differ
    router.safetensors      the route predictor
    times.json              what tails cost on the machines where sinf tune measured it, if it did
    README.md               a model card

It is written to a temporary folder and renamed, so that a kill or a full disk leaves what was there. No pickle.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from sinf.bundle.folder import consistent, map_tensors, require_fit, require_tensor, spec_of
from sinf.bundle.records import ClusterList, ThresholdValue, Weight, cluster_list
from sinf.bundle.times import read_times, write_times
from sinf.bundle.writing import Payload, bundle_card, write_folder
from sinf.data.clusters import Clusters
from sinf.errors import BundleError
from sinf.graph.delta import LayerDelta, groups_of
from sinf.graph.network import Part, PartedNetwork
from sinf.graph.trace import trace
from sinf.machine.memory import weight_bytes
from sinf.models import ModelSpec, fit_state, load_spec
from sinf.routing.deferral import Deferral
from sinf.routing.grouping import TailTimes
from sinf.routing.predictor import RoutePredictor, RouterConfig, make_predictor
from sinf.routing.router import FULL_TAIL, part_name
from sinf.routing.threshold import Threshold
from sinf.storage.config import CARD, ConfigRecord, read_config, require_readable
from sinf.storage.schema import Name, Share, record_of

_FILES = ("model.safetensors", "subgraphs.safetensors", "router.safetensors", CARD)
_MOST_ROOM = 1 << 30  # bytes
_NOTHING = "extractor.kept.none"  # a file of tensors must hold one

#: Fields without a line here have the bounds of :func:`sinf.storage.schema.record_of`.
_DEFERRAL = record_of(Deferral, intercept=Weight, route=Weight, energy=Weight, within=Weight, margin=Weight)
_THRESHOLD = record_of(
    Threshold,
    value=ThresholdValue,
    early=Share,
    max_loss=Share,
    loss=Annotated[float, Field(ge=-1, le=1)],
    fallback=Share,
    subgraph_ran=Share,
    confidence=Share | None,
    images=Annotated[int, Field(ge=1, le=1 << 40)],
    choices=Annotated[int, Field(ge=1, le=1 << 40)],
)


class _Config(ConfigRecord):
    method: str = "semantic"
    clusters: ClusterList
    cut: Name
    deferral: _DEFERRAL  # type: ignore[valid-type]
    threshold: _THRESHOLD | None  # type: ignore[valid-type]
    router: record_of(RouterConfig)  # type: ignore[valid-type]


@dataclass(frozen=True)
class Bundle:
    """A trained classifier with its semantic subgraphs; see :class:`sinf.SemanticModel` for running it."""

    spec: ModelSpec
    class_names: tuple[str, ...]
    clusters: Clusters
    cut: str
    deferral: Deferral
    threshold: Threshold | None
    parts: dict[str, Part]
    base_state: dict[str, Tensor]
    router: RoutePredictor
    router_config: RouterConfig
    provenance: dict[str, str]
    times: tuple[TailTimes, ...] = ()

    @property
    def cascade(self) -> bool:
        """Whether one cluster holds all classes."""
        return len(self.clusters) == 1

    def times_of(self, engine: str, precision: str, threads: int) -> TailTimes | None:
        """What tails cost in an engine, as far as it was measured."""
        return next((each for each in self.times if each.setting == (engine, precision, threads)), None)

    def network(self) -> PartedNetwork:
        """The base model taken apart, with this bundle's weights (not copied)."""
        return _network(self.spec, self.base_state, self.cut)

    def tail_bytes(self, network: PartedNetwork) -> int:
        """Bytes of the weights of all subgraphs, at most: none is larger than its share of the channels of the tail of
        the base model's ``network``."""
        tail = weight_bytes(network.parts.tail)
        return sum(int(tail * float(part.keep.float().mean())) for part in self.parts.values())

    # ---- saving

    def save(self, folder: str | Path, *, key: bytes | None = None) -> None:
        """Write the bundle; one that is there is replaced, anything else is refused. With a ``key`` (16 bytes at
        least) it is signed.

        Raises:
            BundleError: the folder holds something else, or cannot be written; what was there stays.
        """
        write_folder(Path(folder), self._payload(key), key)

    def _payload(self, key: bytes | None) -> Payload:
        _require_room(self.clusters)
        network_coupling = self.network().coupling
        tensors: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            tensors |= part.to_tensors(network_coupling, f"{name}.")
        if not tensors:
            tensors = {_NOTHING: torch.zeros(0, dtype=torch.int32)}
        content = {
            "clusters": cluster_list(self.clusters.names, self.clusters.members),
            "cut": self.cut,
            "deferral": asdict(self.deferral),
            "threshold": None if self.threshold is None else asdict(self.threshold),
            "router": asdict(self.router_config),
        }
        files = {
            "model.safetensors": self.base_state,
            "subgraphs.safetensors": tensors,
            "router.safetensors": self.router.state_dict(),
        }

        def finish(folder: Path, written: dict[str, Any]) -> None:
            require_readable(written, _Config)
            if self.times:
                write_times(self.times, folder, key)

        return Payload("semantic", self.spec, self.class_names, self.provenance, content, files, self._card(), finish)

    def _card(self) -> str:
        lines = [
            f"{len(self.class_names)} classes in {len(self.clusters)} semantic clusters; cut after `{self.cut}`.",
            "",
        ]
        if self.threshold is not None:
            t = self.threshold
            lines += [
                "| on the calibration images | |",
                "|---|---|",
                f"| loss against the base model | {100 * t.loss:.2f} points (limit {100 * t.max_loss:g}) |",
                f"| a subgraph runs | {100 * t.subgraph_ran:.1f} % |",
                f"| fallback to the full tail | {100 * t.fallback:.1f} % |",
                "",
                t.promise(),
                "",
            ]
        return bundle_card("semantic inference", lines, self.provenance, self.spec)

    # ---- loading

    @staticmethod
    def load(folder: str | Path, *, allow_factory: bool = False, key: bytes | None = None) -> Bundle:
        """Read a bundle; tensors are memory-mapped.

        ``allow_factory`` permits a model of the user's own code (``package.module:factory``), which is imported and
        run. With a ``key``, what is not signed with it is refused.

        Raises:
            BundleError: not a bundle, another format, or a file that is missing, damaged, changed or contradicts the
                others.
        """
        folder = Path(folder)
        config = read_config(folder, _Config, _FILES, key)
        with consistent(f"in {folder}"):
            spec = spec_of(config, allow_factory)
            clusters = Clusters(
                tuple(each.name for each in config.clusters), tuple(each.classes for each in config.clusters)
            )
            _require_room(clusters)
            if clusters.classes != spec.classes:
                raise BundleError("clusters must cover the model's classes", got=f"{clusters.classes} classes")
            base_state = map_tensors(folder / "model.safetensors")
            network = _network(spec, base_state, config.cut)
            parts = _read_parts(folder / "subgraphs.safetensors", network, clusters)
            return Bundle(
                spec=spec,
                class_names=config.classes,
                clusters=clusters,
                cut=config.cut,
                deferral=config.deferral,
                threshold=config.threshold,
                parts=parts,
                base_state=base_state,
                router=_read_router(folder, network.feature_shape(parts["extractor"]), len(clusters), config.router),
                router_config=config.router,
                provenance=config.provenance,
                times=read_times(folder, key),
            )


def _require_room(clusters: Clusters) -> None:
    """Refuse clusters whose answers (:class:`sinf.engine.parts.DeferralHead`, a matrix each) would take gigabytes,
    which a file of some megabytes could ask for."""
    count, sizes = len(clusters), [len(classes) for classes in clusters.members]
    room = sum(4 * (count + 2 * size + 1) * (count + size + 1) for size in sizes)
    if room > _MOST_ROOM:
        got = f"{room >> 20} MB for {count} clusters of up to {max(sizes)} classes"
        raise BundleError(
            f"answers of clusters must fit in {_MOST_ROOM >> 20} MB", got=got, remedy="take fewer, or smaller"
        )


def _network(spec: ModelSpec, state: dict[str, Tensor], cut: str) -> PartedNetwork:
    """A model of a spec with weights that are not copied. Nothing is allocated before it is known that they fit."""
    with torch.device("meta"):
        module = load_spec(spec)
    require_fit(state, module.state_dict(), "model.safetensors")
    fit_state(module, state, spec.name, assign=True)
    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            raise BundleError("every buffer of the model must be in its weights", got=name)
    return PartedNetwork(trace(module.requires_grad_(False), spec.preprocessing), cut)


def _read_parts(path: Path, network: PartedNetwork, clusters: Clusters) -> dict[str, Part]:
    names = ["extractor", FULL_TAIL, *(part_name(cluster) for cluster in range(len(clusters)))]
    by_part: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for key, tensor in map_tensors(path).items():
        name, _, rest = key.partition(".")
        if key == _NOTHING:
            continue
        if name not in by_part:
            raise BundleError("tensors must be those of the bundle's parts", got=key[:100], remedy="build it again")
        by_part[name][rest] = tensor
    parts = {name: _read_part(name, tensors, network) for name, tensors in by_part.items()}
    features, output = network.features_slot, network.coupling.output
    for cluster, (name, part) in enumerate(parts.items(), -2):
        classes = list(range(clusters.classes)) if cluster < 0 else list(clusters.members[cluster])
        if output is None or output.index(part.keep).tolist() != classes:
            raise BundleError("a part must answer with the classes of its cluster", got=name, remedy="build it again")
        if not torch.equal(features.index(part.keep), features.index(parts["extractor"].keep)):
            raise BundleError("a part must read the features that are extracted", got=name, remedy="build it again")
    return parts


def _read_part(name: str, tensors: dict[str, Tensor], network: PartedNetwork) -> Part:
    """A part whose kept channels are some of their groups', and whose tensors have the shapes that these ask for."""
    groups = network.coupling.groups
    for key, tensor in tensors.items():
        kind, _, group = key.partition(".")
        if kind == "kept":
            require_tensor(tensor, torch.int32, (tensor.numel(),), f"{name}.{key}")
            size = groups[group].size if group in groups and groups[group].blocked is None else 0
            kept = tensor.long()
            if not len(kept) or not bool((kept.diff() > 0).all()) or kept[0] < 0 or kept[-1] >= size:
                got = f"{name}.{key}"[:200]
                raise BundleError(
                    "kept channels must be some of a group's, ascending", got=got, remedy="build it again"
                )
    for key, tensor in tensors.items():
        if not key.startswith("kept."):
            require_tensor(tensor, torch.float16, tuple(tensor.shape), f"{name}.{key}")
    part = Part.from_tensors(tensors, network.coupling, "")
    sites = set(network.coupling.with_grouped().mixers.values())
    for target, layer in part.layers.items():
        if target not in sites or not _fits(layer, target, part, network):
            got = f"{name}: {layer.kind} of {target}"[:200]
            raise BundleError("a layer must be one of the network's, in its shape", got=got, remedy="build it again")
    return part


def _fits(layer: LayerDelta, target: str, part: Part, network: PartedNetwork) -> bool:
    base, read = network.graph.get_submodule(target), network.coupling.reads[target]
    written = network.coupling.writes[target]
    out, into = len(written.index(part.keep)), len(read.index(part.keep))
    if groups_of(base) > 1:
        into = base.weight.shape[1]  # whole groups go, or none
    return layer.fits(base, (out, into, *base.weight.shape[2:]), read)


def _read_router(folder: Path, shape: tuple[int, ...], clusters: int, config: RouterConfig) -> RoutePredictor:
    with torch.device("meta"):
        router = make_predictor(shape, clusters, config)
    state = map_tensors(folder / "router.safetensors")
    require_fit(state, router.state_dict(), "router.safetensors")
    if not state["temperature"] > 0 or any((t < 0).any() for name, t in state.items() if name.endswith("running_var")):
        raise BundleError(
            "temperature and variances must be positive", got="router.safetensors", remedy="build it again"
        )
    router.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    return router.eval().requires_grad_(False)
