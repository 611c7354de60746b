"""Deferral: how likely it is that routing an input loses nothing, judged when its subgraph has run.

A route predictor alone is sure of some wrong routes, and those are most of the loss. The subgraph, having run, knows
more: its weights answer as the base model's did, so an input of another cluster shows itself by low logits (its free
energy, Liu et al., arXiv 2010.03759). The judgement is a logistic regression of the event "ours is right, or the base
model is wrong too", the one that counts for the loss (post-hoc deferral, Jitkrittum et al., arXiv 2307.02764), on the
log-probability of the route, the log-sum-exp of the subgraph's logits, and the log-probability of its first class.

Before the subgraph runs, the route predictor's probability is all there is; it orders the inputs as any growing
function of it would, and needs no fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Deferral:
    """Intercept and weights. Without a fit the judgement grows with the route predictor's probability alone."""

    intercept: float = 0.0
    route: float = 1.0
    energy: float = 0.0
    within: float = 0.0

    def confidence(self, log_route: Tensor, energy: Tensor, log_within: Tensor) -> Tensor:
        """``(N,)`` probabilities, of the three features (N,)."""
        score = log_route * self.route + energy * self.energy + log_within * self.within
        return (score + self.intercept).sigmoid()


def fit_deferral(log_route: Tensor, energy: Tensor, log_within: Tensor, harmless: Tensor) -> Deferral:
    """Fit to images (N,) that are used for nothing after it; ``harmless`` is whether routing them loses nothing.

    Where they cannot tell (all are alike, or likelier routes look worse) there is no fit. With one route, that of a
    cascade, the probability of the first class stands for that of the route.
    """
    one_route = bool((log_route == log_route[0]).all())
    likely, without_fit = (log_within, Deferral(within=1.0)) if one_route else (log_route, Deferral())
    if harmless.all() or not harmless.any() or likely[harmless].mean() <= likely[~harmless].mean():
        return without_fit
    from sklearn.linear_model import LogisticRegression

    features = torch.stack([log_route, energy, log_within], 1).double().numpy()
    fit = LogisticRegression(C=10.0, max_iter=1000).fit(features, harmless.numpy())
    return Deferral(float(fit.intercept_[0]), *map(float, fit.coef_[0]))
