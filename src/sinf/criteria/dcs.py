"""Discriminative Capability Score (Semantic Inference, arXiv 2310.01259, section on subgraph extraction).

Pool every channel to p x p, put the channels side by side, standardise, and fit a linear classifier of the cluster's
classes; a channel's score is the norm of its block of the classifier's weights, as a share of the sum over all
channels. The paper leaves open what the classifier minimises: here ridge regression to one-hot labels, which has a
closed form in sums that one pass over the images adds up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinf.criteria.base import SiteCriterion
from sinf.errors import ConfigError
from sinf.statistics import SiteStatistics


class DCS(SiteCriterion):
    """``ridge`` is the penalty relative to the number of images, on standardised features."""

    name = "dcs"

    def __init__(self, ridge: float = 0.1) -> None:
        if not ridge > 0:
            raise ConfigError("ridge must be positive", got=ridge, remedy="take 0.1")
        self.ridge = ridge

    def score_channels(self, site: SiteStatistics) -> Tensor:
        present = site.class_counts > 0
        images = float(site.class_counts.sum())
        sums = site.class_sums[present].double()  # (K, D)
        counts = site.class_counts[present].double()
        mean = sums.sum(0) / images
        covariance = site.pooled_gram.double() / images - torch.outer(mean, mean)  # (D, D)
        deviation = torch.diagonal(covariance).clamp(min=0).sqrt()
        alive = deviation > 1e-8 * deviation.max().clamp(min=1e-30)
        scale = torch.where(alive, 1 / deviation.clamp(min=1e-30), 0.0)  # a constant feature discriminates nothing
        correlation = covariance * torch.outer(scale, scale)
        # F'Y with centred columns of Y: counts (class mean - mean)
        target = (sums - counts[:, None] * mean) * scale / images  # (K, D)
        eye = torch.eye(len(scale), dtype=torch.float64)
        weights = torch.linalg.solve(correlation + self.ridge * eye, target.T).T  # (K, D)
        channels = site.gram.shape[0]
        norms = weights.reshape(len(sums), channels, -1).square().sum((0, 2)).sqrt()
        return norms / norms.sum().clamp(min=1e-30)
