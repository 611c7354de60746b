"""Criteria: rules that give every channel an importance, one published rule a file.

A criterion is made by its name (:func:`make_criterion`), or from its class; :func:`register` makes one of your own
known by its name.
"""

from __future__ import annotations

import lazy_loader

# The names are those of __init__.pyi, each imported when it is first used: none of these modules is until then.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
