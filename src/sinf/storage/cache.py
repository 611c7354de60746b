"""The folder of what may be thrown away at any time, and is measured or made again then: one a user."""

from __future__ import annotations

import os
from pathlib import Path

#: Names another folder; set to nothing, nothing is kept.
CACHE = "SINF_CACHE"


def cache_folder() -> Path | None:
    """``$SINF_CACHE``, else ``sinf`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``, where torch and huggingface_hub have
    theirs; None where ``SINF_CACHE`` is set to nothing, or there is no home. It need not be there yet."""
    own = os.environ.get(CACHE)
    if own is not None:
        return Path(os.path.abspath(os.path.expanduser(own))) if own else None
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(shared):  # the XDG specification: to be ignored
        shared = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(shared) / "sinf" if os.path.isabs(shared) else None
