"""A model of the user's own code as data, so that what is made from it runs wherever sinf does, without that code."""

from __future__ import annotations

from dataclasses import replace

import torch

from sinf.errors import ModelError
from sinf.graph.trace import trace
from sinf.models.load import PLAIN, BaseModel, load_spec
from sinf.models.spec import ModelSpec
from sinf.models.to_plain import to_plain

_CLOSE = 1e-4  # of the largest logit


@torch.no_grad()
def described(base: BaseModel) -> BaseModel:
    """The same network, made from layers and steps that a file can hold, where ``base`` was made by a factory
    (``package.module:factory``). Any other stays as it is, and so does one that has what a file cannot hold: it needs
    its code again."""
    if not base.spec.is_factory:
        return base
    fed = base.spec.preprocessing
    try:
        description, state = to_plain(trace(base.module, fed))
        spec = ModelSpec(PLAIN + base.spec.name, base.spec.classes, fed, description)
        module = load_spec(spec)
        module.load_state_dict(state)
    except ModelError:
        return base
    x = torch.randn(2, *fed.size, generator=torch.Generator().manual_seed(0))
    expected, found = base.module(x), module(x)
    if not (found - expected).abs().max() <= _CLOSE * expected.abs().max():
        return base  # such as a network that draws at random, or remembers
    return replace(base, module=module.requires_grad_(False), spec=spec)
