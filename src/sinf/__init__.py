"""sinf: trained image classifiers made faster, where they run, for a loss that the user names.

``load_model`` and ``load_images`` give what the others read. ``optimize`` finds the fastest network within a limit of
the loss, in an engine. ``prune`` makes one smaller network for all classes, ``build`` a bundle, which sends every input
to a small subgraph, or to the full tail when that is unsure. ``from_pretrained`` opens what they wrote as a model of
torch, ``edge.load`` what they wrote for another engine, without torch. docs/guide.md explains each.

Data flows through the packages in this order: data -> graph -> statistics -> compress -> routing -> bundle -> engine ->
measure (CONTRIBUTING.md).
"""

from __future__ import annotations

import lazy_loader

# The names are those of __init__.pyi, each imported when it is first used: importing sinf does not import torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
