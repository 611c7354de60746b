"""sinf: trained image classifiers made faster by running, for each input, only the part of the network that it needs.

The pipeline, in the order in which data flows:

    data -> statistics -> clusters -> criteria -> subgraph -> router -> risk -> bundle -> engine -> cli

``build`` runs it; :class:`SemanticModel` is what comes out: a classifier that sends every input to the subgraph of its
semantic cluster, or to the full tail when it is unsure.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sinf.version import __version__

if TYPE_CHECKING:
    from sinf.clustering import FoundClusters, find_clusters
    from sinf.clusters import Clusters
    from sinf.data import LabelledImages, Preprocessing, load_images
    from sinf.dynamic.model import DynamicModel
    from sinf.engine.torch_engine import SemanticModel
    from sinf.errors import SinfError
    from sinf.load import from_pretrained
    from sinf.measure import evaluate
    from sinf.models import BaseModel, ModelSpec, load_model
    from sinf.pipeline import BuildConfig, Images, build
    from sinf.plain_model import PlainModel
    from sinf.pruning import PruneConfig, prune
    from sinf.router import RouterConfig
    from sinf.routing import Routed
    from sinf.subgraph.select import Budget, Schedule
    from sinf.timing import latency

_HOMES = {
    "BaseModel": "sinf.models",
    "Budget": "sinf.subgraph.select",
    "BuildConfig": "sinf.pipeline",
    "Clusters": "sinf.clusters",
    "DynamicModel": "sinf.dynamic.model",
    "FoundClusters": "sinf.clustering",
    "Images": "sinf.pipeline",
    "PlainModel": "sinf.plain_model",
    "LabelledImages": "sinf.data",
    "ModelSpec": "sinf.models",
    "Preprocessing": "sinf.data",
    "PruneConfig": "sinf.pruning",
    "Routed": "sinf.routing",
    "RouterConfig": "sinf.router",
    "Schedule": "sinf.subgraph.select",
    "SemanticModel": "sinf.engine.torch_engine",
    "SinfError": "sinf.errors",
    "build": "sinf.pipeline",
    "evaluate": "sinf.measure",
    "find_clusters": "sinf.clustering",
    "from_pretrained": "sinf.load",
    "latency": "sinf.timing",
    "load_images": "sinf.data",
    "load_model": "sinf.models",
    "prune": "sinf.pruning",
}

__all__ = [
    "BaseModel",
    "Budget",
    "BuildConfig",
    "Clusters",
    "DynamicModel",
    "FoundClusters",
    "Images",
    "LabelledImages",
    "ModelSpec",
    "PlainModel",
    "Preprocessing",
    "PruneConfig",
    "Routed",
    "RouterConfig",
    "Schedule",
    "SemanticModel",
    "SinfError",
    "__version__",
    "build",
    "evaluate",
    "find_clusters",
    "from_pretrained",
    "latency",
    "load_images",
    "load_model",
    "prune",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing sinf does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sinf' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
