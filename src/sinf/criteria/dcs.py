"""Discriminative Capability Score (Semantic Inference, arXiv 2310.01259, section on subgraph extraction).

Pool every channel to p x p, put the channels side by side, standardise, and fit a linear classifier of the cluster's
classes; a channel's score is the norm of its block of the classifier's weights, as a share of the sum over all
channels:

    s_j = ||W_j|| / sum_i ||W_i||,   W_j (K, p^2) the block of channel j.

The paper leaves open what the classifier minimises. Ridge regression to one-hot labels has a closed form in sums that
one pass over the images adds up; multinomial logistic regression needs the features themselves, of a sample of images
when there are many (:data:`sinf.statistics.of_reads.SAMPLE`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinf.criteria.base import SiteCriterion
from sinf.errors import ConfigError
from sinf.statistics import PooledGram, Sample, SiteStatistics, Statistic, SumsByClass

_READINGS: dict[str, tuple[type[Statistic], ...]] = {"ridge": (PooledGram, SumsByClass), "logistic": (Sample,)}


class DCS(SiteCriterion):
    """``ridge`` is the penalty relative to the number of images, on standardised features; ``reading`` is what the
    classifier minimises, "ridge" or "logistic"; ``pool`` is p."""

    name = "dcs"

    def __init__(self, ridge: float = 0.1, reading: str = "ridge", pool: int = 1) -> None:
        if not ridge > 0:
            raise ConfigError("ridge must be positive", got=ridge, remedy="take 0.1")
        if reading not in _READINGS:
            raise ConfigError("the reading of DCS must be ridge or logistic", got=reading, remedy="take ridge")
        if pool < 1:
            raise ConfigError("pool must be at least 1", got=pool, remedy="take 1")
        self.ridge, self.reading, self.pool = ridge, reading, pool
        self.needs = _READINGS[reading]

    def score_channels(self, site: SiteStatistics) -> Tensor:
        fit = self._ridge if self.reading == "ridge" else self._logistic
        weights = fit(site)  # (K, D)
        norms = weights.reshape(len(weights), site.channels, -1).square().sum((0, 2)).sqrt()
        return norms / norms.sum().clamp(min=1e-30)

    def _ridge(self, site: SiteStatistics) -> Tensor:
        by_class = site[SumsByClass]
        present = by_class.counts > 0
        images = float(by_class.counts.sum())
        sums = by_class.sums[present].double()  # (K, D)
        counts = by_class.counts[present].double()
        mean = sums.sum(0) / images
        covariance = site[PooledGram].gram.double() / images - torch.outer(mean, mean)  # (D, D)
        scale = _scale(torch.diagonal(covariance).clamp(min=0).sqrt())
        correlation = covariance * torch.outer(scale, scale)
        # F'Y with centred columns of Y: counts (class mean - mean)
        target = (sums - counts[:, None] * mean) * scale / images  # (K, D)
        eye = torch.eye(len(scale), dtype=torch.float64)
        return torch.linalg.solve(correlation + self.ridge * eye, target.T).T

    def _logistic(self, site: SiteStatistics) -> Tensor:
        """Minimise the mean cross entropy + ridge/2 ||W||^2, with intercepts, to convergence."""
        sample = site[Sample]
        x = sample.features.double()
        x = (x - x.mean(0)) * _scale(x.std(0, correction=0))
        labels = sample.labels.unique(return_inverse=True)[1]
        classes = int(labels.max()) + 1
        start = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64)
        solution = start.requires_grad_()
        solver = torch.optim.LBFGS(
            [solution], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def objective() -> Tensor:
            solver.zero_grad()
            weights, intercepts = solution[:, :-1], solution[:, -1]
            loss = torch.nn.functional.cross_entropy(x @ weights.T + intercepts, labels)
            loss = loss + self.ridge / 2 * weights.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            solver.step(objective)
        return solution.detach()[:, :-1]


def _scale(deviation: Tensor) -> Tensor:
    """What a feature is multiplied with; a constant feature discriminates nothing."""
    alive = deviation > 1e-8 * deviation.max().clamp(min=1e-30)
    return torch.where(alive, 1 / deviation.clamp(min=1e-30), 0.0)
