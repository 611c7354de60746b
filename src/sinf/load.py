"""Whatever sinf wrote as a model: its ``config.json`` says by which method it was made."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from sinf.bundle.folder import folder_of
from sinf.storage import config

if TYPE_CHECKING:
    from sinf.bundle.plain import PlainModel
    from sinf.dynamic.model import DynamicModel
    from sinf.engine.torch_engine import SemanticModel

#: The class that opens what a method made.
MODELS = {
    "semantic": "sinf.engine.torch_engine:SemanticModel",
    "dynamic": "sinf.dynamic.model:DynamicModel",
    "static": "sinf.bundle.plain:PlainModel",
}


def method_of(source: str | Path) -> str:
    """A key of :data:`MODELS`; what is no artefact counts as semantic, and is refused when it is opened."""
    method = config.method_of(folder_of(source))
    return method if method in MODELS else "semantic"


def from_pretrained(
    source: str | Path, *, allow_factory: bool = False, key: bytes | None = None
) -> SemanticModel | DynamicModel | PlainModel:
    """Load a bundle of any method, or a pruned model, from a folder, or from the hub when there is no such folder; the
    options are those of :meth:`sinf.bundle.semantic.Bundle.load`."""
    module, _, name = MODELS[method_of(source)].partition(":")
    kind = getattr(importlib.import_module(module), name)
    return kind.from_pretrained(source, allow_factory=allow_factory, key=key)
