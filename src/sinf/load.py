"""Any bundle as a model: its ``config.json`` says by which method it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinf.bundle import folder_of

if TYPE_CHECKING:
    from sinf.dynamic.model import DynamicModel
    from sinf.engine.torch_engine import SemanticModel


def method_of(source: str | Path) -> str:
    """``semantic`` or ``dynamic``; what is no bundle counts as semantic, and is refused when it is opened."""
    try:
        config: Any = json.loads((folder_of(source) / "config.json").read_text())
    except (OSError, ValueError):
        return "semantic"
    return str(config.get("method", "semantic")) if isinstance(config, dict) else "semantic"


def from_pretrained(source: str | Path, *, allow_factory: bool = False) -> SemanticModel | DynamicModel:
    """Load a bundle of either method from a folder, or from the hub when there is no such folder."""
    from sinf.dynamic.model import DynamicModel
    from sinf.engine.torch_engine import SemanticModel

    kind = DynamicModel if method_of(source) == "dynamic" else SemanticModel
    return kind.from_pretrained(source, allow_factory=allow_factory)
