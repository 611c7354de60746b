"""Deferral: how likely it is that routing an input loses nothing, known when its subgraph has run.

A route predictor alone is sure of some wrong routes, and those are most of the loss. The subgraph, having run, knows
more: its weights answer as the base model's did, so an input of another cluster shows itself by low logits (its free
energy, Liu et al., arXiv 2010.03759). The confidence is a logistic regression of the event "the pipeline is right, or
the base model is wrong too", the one that counts for the loss (post-hoc deferral, Jitkrittum et al., arXiv 2307.02764),
on the log-probability of the route, the log-sum-exp of the subgraph's logits, and the log-probability of its first
class.

The confidence of a cascade, which has one route, comes of the margin between its subgraph's two largest logits: it
needs no route, and orders the inputs better than the probability of the first class.

Before the subgraph runs, the route predictor's probability is all there is; it orders the inputs as any growing
function of it would, and needs no fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Deferral:
    """Intercept and weights. Without a fit the confidence grows with the route predictor's probability alone."""

    intercept: float = 0.0
    route: float = 1.0
    energy: float = 0.0
    within: float = 0.0
    margin: float = 0.0

    def confidence(self, log_route: Tensor, energy: Tensor, log_within: Tensor, margin: Tensor | None = None) -> Tensor:
        """``(N,)`` probabilities, of the features (N,)."""
        score = log_route * self.route + energy * self.energy + log_within * self.within
        if margin is not None:
            score = score + margin * self.margin
        return (score + self.intercept).sigmoid()


def _fitted_to(features: Tensor, harmless: Tensor) -> tuple[Tensor, Tensor] | None:
    """``(n, features)`` and ``(n,)`` of the images whose features are numbers, which no answer that is none has; None
    where they cannot tell: all are the same, or likelier routes, the first feature, look worse."""
    finite = features.isfinite().all(1)
    features, harmless = features[finite], harmless[finite]
    if harmless.all() or not harmless.any() or features[harmless, 0].mean() <= features[~harmless, 0].mean():
        return None
    return features, harmless


def fit_deferral(log_route: Tensor, energy: Tensor, log_within: Tensor, harmless: Tensor) -> Deferral:
    """Fit to images (N,) that are used for nothing after it; ``harmless`` is whether routing them loses nothing.

    Where they cannot tell there is no fit.
    """
    sample = _fitted_to(torch.stack([log_route, energy, log_within], 1), harmless)
    return Deferral() if sample is None else Deferral(*_logistic(*sample))


def fit_margin(margin: Tensor, harmless: Tensor) -> Deferral:
    """The same of a cascade, by the ``margin`` (N,) alone."""
    sample = _fitted_to(margin[:, None], harmless)
    intercept, weight = (0.0, 1.0) if sample is None else _logistic(*sample)
    return Deferral(intercept, route=0.0, margin=weight)


def _logistic(features: Tensor, harmless: Tensor) -> list[float]:
    """Intercept and weights."""
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(C=10.0, max_iter=1000).fit(features.double().numpy(), harmless.numpy())
    return [float(fit.intercept_[0]), *map(float, fit.coef_[0])]


def margin_of(logits: Tensor) -> Tensor:
    """``(N,)`` the difference between the two largest of ``(N, classes)`` logits; 0 where there is one class."""
    return logits[:, 0] * 0 if logits.shape[1] < 2 else margin_of_several(logits)


def margin_of_several(logits: Tensor) -> Tensor:
    """The same of two classes at least, without a branch, so that it can be traced."""
    largest = logits.topk(2, 1).values
    return largest.select(1, 0) - largest.select(1, 1)
