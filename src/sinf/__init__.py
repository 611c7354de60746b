"""sinf: trained image classifiers made faster, where they run, for a loss that the user names.

The rooms, in the order in which data flows:

    data -> graph -> statistics -> compress -> routing -> bundle -> engine -> measure

``prune`` makes one smaller network for all classes. ``build`` makes a bundle, and :class:`SemanticModel` of it a
classifier that sends every input to a small subgraph, or to the full tail when it is unsure.
"""

from __future__ import annotations

import lazy_loader

# The names are those of __init__.pyi, each imported when it is first used: importing sinf does not import torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
