"""Tiny bundles, and edits of JSON files of ours with their seal made again: what a check of digests does not see."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sinf.bundle.semantic import Bundle
from sinf.data.clusters import Clusters
from sinf.engine.torch_engine import SemanticModel
from sinf.graph.delta import Mix
from sinf.graph.network import Part, PartedNetwork
from sinf.models import ModelSpec
from sinf.models.load import PLAIN
from sinf.models.to_plain import to_plain
from sinf.routing.deferral import Deferral
from sinf.routing.grouping import TailTimes
from sinf.routing.predictor import RoutePredictor, RouterConfig
from sinf.routing.router import part_name
from sinf.routing.threshold import Threshold
from sinf.storage.files import sha256
from sinf.storage.seal import DIGEST, sealed
from tiny import CLASSES, COLOUR, Chain, traced

TIMES = TailTimes("torch", "f32", 1, "a processor", (1, 4), (0.1, 0.2), (0.3, 0.9), 0.25)
THRESHOLD = {
    "value": 0.25,
    "early": 0.4,
    "max_loss": 0.01,
    "loss": 0.0,
    "fallback": 0.5,
    "subgraph_ran": 0.75,
    "images": 100,
}


def tiny_bundle(
    names: tuple[str, ...] = ("warm", "leaf", "cold"),
    members: tuple[tuple[int, ...], ...] = ((0, 1), (2, 3), (4, 5)),
) -> Bundle:
    """A bundle without a build: random weights, of a model that is stored as data; every cluster's subgraph keeps other
    channels and mixes them."""
    torch.manual_seed(0)
    graph = traced(Chain())
    description, state = to_plain(graph)
    network = PartedNetwork(graph, "first")
    parts = {"extractor": Part(network.coupling.keep_all()), "full_tail": Part(network.coupling.keep_all())}
    group = next(group for group in network.groups_after() if "second" in group.name)
    for cluster, classes in enumerate(members):
        keep = network.with_classes(network.coupling.keep_all(), list(classes))
        keep[group.units[cluster % group.size]] = False
        size = int(keep[network.coupling.reads["head"].units].sum())
        mix = torch.eye(size + 1)[:, torch.arange(size + 1) != cluster % group.size] + 0.1 * torch.randn(size + 1, size)
        parts[part_name(cluster)] = Part(keep, {"head": Mix(mix.half())})
    config = RouterConfig(hidden=8, channels=6)
    router = RoutePredictor(network.feature_shape(parts["extractor"]), len(members), config)
    router.head.weight.data *= 10  # so that not all inputs take one route
    return Bundle(
        spec=ModelSpec(PLAIN + "chain", CLASSES, COLOUR, description),
        class_names=tuple(f"class {number}" for number in range(CLASSES)),
        clusters=Clusters(names, members),
        cut="first",
        deferral=Deferral(0.1, 1.0, 0.05, 0.2),
        threshold=Threshold(**THRESHOLD, confidence=None),
        parts=parts,
        base_state=state,
        router=router.eval().requires_grad_(False),
        router_config=config,
        provenance={"made by": "a test"},
        times=(TIMES,),
    )


@torch.no_grad()
def answers(model: SemanticModel) -> list[torch.Tensor]:
    """All that a model says of some images, at its threshold and where every route is taken, and what its parts say."""
    x = torch.randn(16, *model.bundle.spec.preprocessing.size, generator=torch.Generator().manual_seed(0))
    said = [each.float() for each in model.route(x)]
    model.threshold = 0.0
    said += [each.float() for each in model.route(x)]
    features = model.extractor(x)
    clusters = range(len(model.bundle.clusters))
    return [*said, model.run_full_tail(features), *(model.run_subgraph(cluster, features) for cluster in clusters)]


def same(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(ours) == len(expected) and all(map(torch.equal, ours, expected))


# ---- edits


def rewrite(path: Path, change: dict[str, Any], key: bytes | None = None) -> None:
    """Change some keys of a file and seal it again."""
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | change, key)))


def rewrite_digests(path: Path) -> None:
    """Seal again a config or manifest whose files were changed."""
    names = json.loads(path.read_text())["sha256"]
    rewrite(path, {"sha256": {name: sha256(path.parent / name) for name in names}})


def forge(record: Any) -> str:
    """Any record, NaN and all, with the digest that it should have."""
    if not isinstance(record, dict):
        return json.dumps(record)
    content = {name: value for name, value in record.items() if name != DIGEST}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {DIGEST: hashlib.sha256(canonical.encode()).hexdigest()})


def _deep() -> Any:
    value: Any = 1
    for _ in range(60):
        value = [value]
    return value


VALUES = {
    "null": None,
    "true": True,
    "text": "other",
    "empty text": "",
    "long text": "x" * 1_000_000,
    "zero": 0,
    "negative": -1,
    "half": 0.5,
    "three": 3,
    "huge": 10**30,
    "2**31": 2**31,
    "1e308": 1e308,
    "nan": float("nan"),
    "infinite": float("inf"),
    "empty list": [],
    "list": [0, 1],
    "long list": [0] * 200_000,
    "empty object": {},
    "object": {"a": 1},
    "deep": _deep(),
}
Place = tuple[str | int, ...]


def positions(value: Any, above: Place = ()) -> Iterator[Place]:
    """Every value of a record, by the way to it."""
    if above:
        yield above
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from positions(each, (*above, key))


def _twice(owner: Any, key: Any) -> None:
    if isinstance(owner, list):
        owner.append(owner[key])
    else:
        owner[f"{key} again"] = owner[key]


def _reverse(owner: Any, key: Any) -> None:
    if isinstance(owner[key], list):
        owner[key].reverse()


def _put(value: Any) -> Callable[[Any, Any], None]:
    return lambda owner, key: owner.__setitem__(key, value)


#: Everything that is done to a value, by name: it gets the owner of the value, and its key there.
EDITS = {name: _put(value) for name, value in VALUES.items()}
EDITS |= {"gone": lambda owner, key: owner.pop(key), "twice": _twice, "reversed": _reverse}


def edited(record: Any, place: Place, edit: str) -> Any:
    """A record in which one value is edited; it is left as it is."""
    copy = json.loads(json.dumps(record))
    owner = copy
    for key in place[:-1]:
        owner = owner[key]
    EDITS[edit](owner, place[-1])
    return copy
