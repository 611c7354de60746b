"""Any bundle as a model: its ``config.json`` says by which method it was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sinf import bundle_files
from sinf.bundle_files import folder_of

if TYPE_CHECKING:
    from sinf.dynamic.model import DynamicModel
    from sinf.engine.torch_engine import SemanticModel


def method_of(source: str | Path) -> str:
    """``semantic`` or ``dynamic``; what is no bundle counts as semantic, and is refused when it is opened."""
    return bundle_files.method_of(folder_of(source))


def from_pretrained(
    source: str | Path, *, allow_factory: bool = False, key: bytes | None = None
) -> SemanticModel | DynamicModel:
    """Load a bundle of either method from a folder, or from the hub when there is no such folder; the options are
    those of :meth:`sinf.bundle.Bundle.load`."""
    from sinf.dynamic.model import DynamicModel
    from sinf.engine.torch_engine import SemanticModel

    kind = DynamicModel if method_of(source) == "dynamic" else SemanticModel
    return kind.from_pretrained(source, allow_factory=allow_factory, key=key)
