"""sinf: trained image classifiers made faster, where they run, for a loss that the user names.

The rooms, in the order in which data flows:

    data -> graph -> statistics -> compress -> routing -> bundle -> engine -> measure

``prune`` makes one smaller network for all classes. ``build`` makes a bundle, and :class:`SemanticModel` of it a
classifier that sends every input to a small subgraph, or to the full tail when it is unsure.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sinf.version import __version__

if TYPE_CHECKING:
    from sinf.bundle.plain import PlainModel
    from sinf.compress.select import Budget, Schedule
    from sinf.data.clusters import Clusters
    from sinf.data.images import LabelledImages, Preprocessing, load_images
    from sinf.dynamic.model import DynamicModel
    from sinf.engine.torch_engine import SemanticModel
    from sinf.errors import SinfError
    from sinf.load import from_pretrained
    from sinf.measure.accuracy import evaluate
    from sinf.measure.timing import latency
    from sinf.models import BaseModel, ModelSpec, load_model
    from sinf.pipelines.build import BuildConfig, Images, build
    from sinf.pipelines.optimize import OptimizeConfig, optimize
    from sinf.pipelines.prune import PruneConfig, prune
    from sinf.routing.clustering import FoundClusters, find_clusters
    from sinf.routing.predictor import RouterConfig
    from sinf.routing.router import Routed

_HOMES = {
    "BaseModel": "sinf.models",
    "Budget": "sinf.compress.select",
    "BuildConfig": "sinf.pipelines.build",
    "Clusters": "sinf.data.clusters",
    "DynamicModel": "sinf.dynamic.model",
    "FoundClusters": "sinf.routing.clustering",
    "Images": "sinf.pipelines.build",
    "OptimizeConfig": "sinf.pipelines.optimize",
    "PlainModel": "sinf.bundle.plain",
    "LabelledImages": "sinf.data.images",
    "ModelSpec": "sinf.models",
    "Preprocessing": "sinf.data.images",
    "PruneConfig": "sinf.pipelines.prune",
    "Routed": "sinf.routing.router",
    "RouterConfig": "sinf.routing.predictor",
    "Schedule": "sinf.compress.select",
    "SemanticModel": "sinf.engine.torch_engine",
    "SinfError": "sinf.errors",
    "build": "sinf.pipelines.build",
    "evaluate": "sinf.measure.accuracy",
    "find_clusters": "sinf.routing.clustering",
    "from_pretrained": "sinf.load",
    "latency": "sinf.measure.timing",
    "load_images": "sinf.data.images",
    "load_model": "sinf.models",
    "optimize": "sinf.pipelines.optimize",
    "prune": "sinf.pipelines.prune",
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
    "OptimizeConfig",
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
    "optimize",
    "prune",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing sinf does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sinf' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
