"""Base models: the reference networks for small images, and loading them or a user's own."""

from sinf.models.load import REFERENCE_NAMES, BaseModel, ModelSpec, load_model, load_spec, read_weights

__all__ = ["REFERENCE_NAMES", "BaseModel", "ModelSpec", "load_model", "load_spec", "read_weights"]
