"""How well early features tell the clusters of a partition: what share of images would fall back, before any build.

A build trains a route predictor and specialises subgraphs, which takes minutes. Here a linear discriminant stands in
for the predictor, and subgraphs are taken to answer as the base model limited to their classes. An image then loses
its answer when the base model's answer is in another cluster than its route. Routes that are doubted fall back: the
doubt above which they do is the largest that keeps the limit of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sinf.errors import DataError

LEAST = 20  # images: a half fits, the other is estimated
_TINY = 1e-12


@dataclass(frozen=True)
class Observed:
    """What the base model makes of images: logits (N, classes), pooled features at the cut point (N, channels), true
    labels (N,) or None, and the half (N,) bool that every image belongs to, drawn by its content."""

    logits: Tensor
    features: Tensor
    labels: Tensor | None
    half: Tensor

    def require_halves(self, name: str) -> None:
        """Refuse images of which a half is too small to fit or to estimate anything."""
        least = min(int(self.half.sum()), int((~self.half).sum()))
        if len(self.half) < LEAST or least < LEAST // 4:
            raise DataError(
                f"finding clusters needs at least {LEAST} different images",
                got=f"{len(self.half)} in {name}",
                remedy="name more",
            )


@dataclass(frozen=True)
class Routability:
    """What routing by a partition would do with images. Shares are fractions of 1.

    Attributes:
        clusters: how many there are; ``largest`` is the number of classes of the largest.
        base_right: share of images whose true cluster is that of the base model's answer; None without labels.
        mimic: share whose route is the cluster of the base model's answer.
        fallback: share that falls back at the limit of the loss.
        loss: share that loses its answer all the same, on images that did not set the threshold.
        classes: mean number of classes that an image's tail tells apart: those of its cluster, or all after a fallback.
        by_cluster: for every cluster, the share of images whose answer by the base model is in it, and of these the
            share right (None without labels), with the same route, and falling back.
    """

    images: int
    clusters: int
    largest: int
    base_right: float | None
    mimic: float
    fallback: float
    loss: float
    classes: float
    by_cluster: tuple[tuple[float, float | None, float, float], ...]


@dataclass(frozen=True)
class Discriminant:
    """Features (N, channels) -> probabilities of the classes (N, classes), linear in the features."""

    weight: Tensor
    bias: Tensor

    @staticmethod
    def fit(features: Tensor, probabilities: Tensor) -> Discriminant:
        """Linear discriminant analysis (Fisher, 1936) with the base model's softmax (N, classes) for labels, so that
        every class has a mean, also one of which there is no image. The covariance of what the means leave is shrunk as
        Ledoit and Wolf say (Journal of Multivariate Analysis, 2004)."""
        from sklearn.covariance import ledoit_wolf

        features, probabilities = features.double(), probabilities.double()
        mass = probabilities.sum(0).clamp_min(_TINY)
        means = (probabilities.T @ features) / mass[:, None]
        covariance, _ = ledoit_wolf((features - probabilities @ means).numpy(), assume_centered=True)
        inner = torch.from_numpy(np.asarray(covariance))
        inner = inner + _TINY * (1 + inner.diagonal().mean()) * torch.eye(len(inner), dtype=inner.dtype)
        weight = torch.linalg.solve(inner, means.T)
        return Discriminant(weight, (mass / mass.sum()).log() - (means * weight.T).sum(1) / 2)

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() @ self.weight + self.bias).softmax(1)


def early_probabilities(fitted: Observed, observed: Observed | None = None) -> Tensor:
    """Probabilities (N, classes) that early features give to the classes: of ``observed`` by a fit to ``fitted``; of
    ``fitted`` itself without it, each half by a fit to the other."""
    softmax = fitted.logits.softmax(1)
    if observed is not None:
        return Discriminant.fit(fitted.features, softmax)(observed.features)
    result = torch.zeros(softmax.shape, dtype=torch.float64)
    for half in (fitted.half, ~fitted.half):
        result[~half] = Discriminant.fit(fitted.features[half], softmax[half])(fitted.features[~half])
    return result


def estimate(early: Tensor, observed: Observed, of_class: Tensor, max_loss: float) -> Routability:
    """What routing by the partition ``of_class`` (classes,) would do with ``observed``, whose classes early features
    give the probabilities ``early`` (N, classes). ``max_loss`` is a fraction of the images; each half of the images
    sets the threshold of the other."""
    clusters = int(of_class.max()) + 1
    onto = torch.nn.functional.one_hot(of_class, clusters).double()
    routes = early @ onto
    route = routes.argmax(1)
    # The sum of the other clusters, not 1 minus the route's: most are far below the rounding of 1.
    doubt = routes.scatter(1, route[:, None], 0).sum(1)
    answer = observed.logits.argmax(1)
    own = of_class[answer]
    harmed = route != own
    if observed.labels is not None:
        harmed &= answer == observed.labels
    fell_back = torch.zeros(len(route), dtype=torch.bool)
    for half in (observed.half, ~observed.half):
        fell_back[~half] = doubt[~half] > _largest_doubt(doubt[half], harmed[half], max_loss)
    sizes = torch.bincount(of_class, minlength=clusters)
    classes = torch.where(fell_back, len(of_class), sizes[route])
    right = None if observed.labels is None else of_class[observed.labels] == own

    def mean(values: Tensor | None, rows: Tensor | None = None) -> float:
        chosen = values if rows is None or values is None else values[rows]
        return float("nan") if chosen is None or not len(chosen) else float(chosen.double().mean())

    return Routability(
        images=len(route),
        clusters=clusters,
        largest=int(sizes.max()),
        base_right=None if right is None else mean(right),
        mimic=mean(route == own),
        fallback=mean(fell_back),
        loss=mean(harmed & ~fell_back),
        classes=mean(classes),
        by_cluster=tuple(
            (
                mean(own == cluster),
                None if right is None else mean(right, own == cluster),
                mean(route == own, own == cluster),
                mean(fell_back, own == cluster),
            )
            for cluster in range(clusters)
        ),
    )


def _largest_doubt(doubt: Tensor, harmed: Tensor, max_loss: float) -> float:
    """The largest doubt (N,) up to which routing all loses at most ``max_loss`` of the images, -1 if none."""
    ordered = doubt.sort()
    lost = harmed[ordered.indices].double().cumsum(0) / len(doubt)
    last = torch.cat([ordered.values[1:] > ordered.values[:-1], torch.ones(1, dtype=torch.bool)])  # of equal doubts
    allowed = torch.nonzero(last & (lost <= max_loss)).flatten()
    return float(ordered.values[allowed[-1]]) if len(allowed) else -1.0
