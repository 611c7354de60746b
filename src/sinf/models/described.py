"""A model of the user's own code as data, so that what is made from it runs wherever sinf does, without that code."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

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
        made = of_graph(trace(base.module, fed), base.spec)
    except ModelError:
        return base
    x = torch.randn(2, *fed.size, generator=torch.Generator().manual_seed(0))
    if not difference(base.module(x.clone()), made.module(x.clone())) <= _CLOSE:
        return base  # such as a network that draws at random, or remembers
    return replace(base, module=made.module, spec=made.spec)


def of_graph(graph: fx.GraphModule, spec: ModelSpec) -> BaseModel:
    """A traced network as data, with its weights; of ``spec`` it has the name, the classes and what it is fed.

    Raises:
        ModelError: it has something that the description cannot hold; the message names it.
    """
    description, state = to_plain(graph)
    spec = ModelSpec(PLAIN + spec.title, spec.classes, spec.preprocessing, description)
    module = load_spec(spec).requires_grad_(False)
    module.load_state_dict(state)
    return BaseModel(module, spec)


def difference(expected: Tensor, answers: Tensor) -> float:
    """The largest between two answers, as a share of the largest logit."""
    return float((answers - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
