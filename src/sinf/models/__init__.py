"""Base models: the reference networks for small images, and loading them or a user's own."""

from sinf.models.load import BaseModel, load_model, load_spec
from sinf.models.spec import REFERENCE_NAMES, ModelSpec
from sinf.models.state import fit_state, read_weights

__all__ = ["REFERENCE_NAMES", "BaseModel", "ModelSpec", "fit_state", "load_model", "load_spec", "read_weights"]
