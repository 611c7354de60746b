"""Semantic clusters found in the base model itself, for data without superclasses.

Classes that the base model hardly tells apart belong together: a route between them would often be wrong. How similar
two classes are comes from one of ``SOURCES``, the groups from one of ``METHODS``, both of scikit-learn. No labels are
needed for either: every class is described by all images, weighted by the softmax that the base model gives it.

How many clusters: the number at which the mean image has the fewest classes left to tell apart, when an image that
falls back counts with all classes (see :mod:`sinf.routing.routability`). More clusters are smaller, but harder to route
to.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinf.data.clusters import Clusters, from_column, to_file
from sinf.data.images import BATCH, LabelledImages
from sinf.errors import ConfigError, DataError, DataWarning
from sinf.graph.network import PartedNetwork
from sinf.graph.prepare import prepare_teacher
from sinf.graph.trace import trace
from sinf.machine.memory import DEFAULT, Memory, Notice, activations, equation_bytes, weight_bytes
from sinf.models import BaseModel
from sinf.routing.predictor import RouterConfig, predictor_macs
from sinf.routing.routability import Observed, Routability, early_probabilities, estimate

SOURCES = ("confusion", "logits", "features")
METHODS = ("agglomerative", "spectral")
FEW = 5  # images
TEMPERATURE = 2.0  # of the softmax in which confusions are read: on images that it was trained on, a model has few
_POOLED = 2048  # channels times positions of a pooled feature
_TINY = 1e-12
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FoundClusters:
    """Clusters and what routing by them would do.

    Attributes:
        clusters: the partition of the classes.
        class_names: names of all classes.
        source, method, cut: how it was found, and the cut point whose features tell the routes.
        classes_by_count: for every number of clusters that was compared, the mean number of classes that an image's
            tail tells apart; the least of them is the number that was taken, unless one was given.
        few: names of the classes of which there were fewer than ``FEW`` images.
        held_out: whether the figures are of images apart; otherwise each half of the same images checks the other.
        found: what routing by these clusters would do.
        given: the same of the clusters that the data has, and ``agreement`` the adjusted Rand index between the two;
            None where the data has none.
    """

    clusters: Clusters
    class_names: tuple[str, ...]
    source: str
    method: str
    cut: str
    classes_by_count: dict[int, float]
    few: tuple[str, ...]
    held_out: bool
    found: Routability
    given: Routability | None
    agreement: float | None

    def save(self, path: str | Path) -> None:
        """Write the partition as ``sinf build --clusters`` and :func:`sinf.data.clusters.from_file` read it."""
        to_file(self.clusters, list(self.class_names), path)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find_clusters(
    model: BaseModel,
    images: LabelledImages,
    *,
    check: LabelledImages | None = None,
    source: str = "confusion",
    method: str = "agglomerative",
    count: int | None = None,
    cut: str | None = None,
    cut_at: float = 0.6,
    max_loss: float = 0.01,
    labels: bool = True,
    memory: int = DEFAULT,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> FoundClusters:
    """Group the classes of a base model by what it makes of ``images``.

    Args:
        check: images that the figures are of, and that choose nothing; None to part ``images`` in two by their content.
        source: ``confusion``, what the softmax of images of one class gives to another; ``logits``, the correlation of
            the classes' mean logits; ``features``, that of their mean features at the cut point.
        method: ``agglomerative`` (average linkage) or ``spectral``.
        count: how many clusters, or None for the number with the fewest classes an image (see the module).
        cut, cut_at: the cut point, as in a build.
        max_loss: limit of the loss, as a fraction, at which the share that falls back is estimated.
        labels: whether to use the labels of the images, if all have some; without, the base model's answers count as
            right.
        memory: bytes that may be taken; batches are made smaller.
        notice: called with how much memory it will take, before it begins.

    Raises:
        ConfigError: no such source or method, a number of clusters that cannot be, or too little memory.
        DataError: the images have other classes than the model, or are too few.
    """
    classes = model.spec.classes
    labels = labels and images.labelled and (check is None or check.labelled)
    parts = [images] if check is None else [images, check]
    _check(model, parts, source, method, count, max_loss)
    progress = progress or (lambda step, done, total: None)
    network = PartedNetwork(
        trace(model.module, model.spec.preprocessing),
        cut,
        cut_at,
        lambda shape: predictor_macs(shape, count or math.isqrt(classes), RouterConfig()),  # the cut of a build
    )
    budget = Memory(memory)
    _fit(network, model, parts, budget)
    if notice is not None:
        notice(budget.summary())
    observed = _observe(network, model, images, labels, lambda done, total: progress("classes", done, total))
    observed.require_halves(images.name)
    few = _warn_of_few(images, observed, labels)
    similarities = similarity(observed, source)
    early = early_probabilities(observed)
    partitions, classes_by_count = {}, {}
    for number in [count] if count is not None else counts(classes):
        partitions[number] = partition(similarities, number, method)
        classes_by_count[number] = estimate(early, observed, partitions[number], max_loss).classes
        progress("clusters", len(classes_by_count), 1 if count is not None else len(counts(classes)))
    best = min(classes_by_count, key=lambda number: (classes_by_count[number], number))
    checked = observed
    if check is not None:
        checked = _observe(network, model, check, labels, lambda done, total: progress("check", done, total))
        checked.require_halves(check.name)
        early = early_probabilities(observed, checked)
    clusters = named(partitions[best], similarities, images.class_names)
    superclasses = _superclasses(images)
    return FoundClusters(
        clusters=clusters,
        class_names=tuple(images.class_names),
        source=source,
        method=method,
        cut=network.cut.name,
        classes_by_count=classes_by_count,
        few=few,
        held_out=check is not None,
        found=estimate(early, checked, clusters.of_class(), max_loss),
        given=None if superclasses is None else estimate(early, checked, superclasses, max_loss),
        agreement=None if superclasses is None else _agreement(clusters.of_class(), superclasses),
    )


def _check(
    model: BaseModel, parts: list[LabelledImages], source: str, method: str, count: int | None, max_loss: float
) -> None:
    classes = model.spec.classes
    for what, value, choices in (("source", source, SOURCES), ("method", method, METHODS)):
        if value not in choices:
            raise ConfigError(f"the {what} must be one of {', '.join(choices)}", got=value, remedy=f"take {choices[0]}")
    if classes < 3:
        raise ConfigError("clusters need at least 3 classes", got=classes, remedy="build without clusters")
    if count is not None and not 2 <= count < classes:
        raise ConfigError(f"the number of clusters must be in 2..{classes - 1}", got=count, remedy="leave it out")
    if not 0 <= max_loss <= 1:
        raise ConfigError("max_loss must be a fraction in 0..1", got=max_loss, remedy="take 0.01")
    for part in parts:
        if part.classes != classes:
            raise DataError(
                f"{part.name}: the data must have the model's classes",
                got=f"{part.classes} instead of {classes}",
                remedy="name another label column, or another model",
            )


def _fit(network: PartedNetwork, model: BaseModel, parts: list[LabelledImages], memory: Memory) -> None:
    """Give images in batches that fit beside the weights, decoded images, and what is kept of every image."""
    values, classes = network.cut.shape[0] * _side(network) ** 2, model.spec.classes
    fixed = equation_bytes(values, classes) + 2 * weight_bytes(network.graph)
    fixed += memory.decoded(model.spec.preprocessing.size, *parts)
    fixed += sum(map(len, parts)) * (4 * 8 * values + 3 * 8 * classes)
    batch = memory.batch("classes", activations(network.graph).forward, BATCH, fixed=fixed)
    for part in parts:
        part.limit(memory.cache, batch)


def _side(network: PartedNetwork) -> int:
    """Height and width of pooled features."""
    channels, height, width = network.cut.shape
    return max(1, min(math.isqrt(_POOLED // channels), height, width))


@torch.no_grad()
def _observe(
    network: PartedNetwork,
    model: BaseModel,
    images: LabelledImages,
    labels: bool,
    progress: Callable[[int, int], None],
) -> Observed:
    """One pass: logits, features pooled to at most ``_POOLED`` values, and halves by the content of the images, so that
    neither their order nor copies of an image matter."""
    extractor, tail = prepare_teacher(network.parts.extractor), prepare_teacher(network.parts.tail)
    side, batch = _side(network), images.batch
    logits, features = [], []
    for x, _ in images.batches(model.spec.preprocessing):
        maps = extractor(x)
        logits.append(tail(maps).double())
        features.append(torch.nn.functional.adaptive_avg_pool2d(maps, side).flatten(1))
        progress(min(len(logits) * batch, len(images)), len(images))
    half = torch.tensor([digest[0] < 128 for digest in images.digests()])
    return Observed(torch.cat(logits), torch.cat(features), images.labels if labels else None, half)


def _warn_of_few(images: LabelledImages, observed: Observed, labels: bool) -> tuple[str, ...]:
    """Names of the classes with fewer than ``FEW`` images, by label or else by the base model's answer."""
    of = images.labels if labels else observed.logits.argmax(1)
    numbers = torch.bincount(of, minlength=images.classes)
    few = tuple(name for name, number in zip(images.class_names, numbers.tolist(), strict=True) if number < FEW)
    if few:
        shown = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
        warnings.warn(
            f"{images.name}: {len(few)} of {images.classes} classes have fewer than {FEW} images ({shown}); they are "
            "grouped by what the base model thinks of images of others",
            DataWarning,
            stacklevel=3,
        )
    return few


def counts(classes: int) -> list[int]:
    """Numbers of clusters that are compared: each up to 10, then in steps of an eighth, below the number of classes."""
    numbers, number = [], 2
    while number < classes:
        numbers.append(number)
        number += max(1, number // 8)
    return numbers


def similarity(observed: Observed, source: str) -> Tensor:
    """How similar the classes are, (classes, classes) symmetric float64 in 0..1 with ones on the diagonal."""
    weights = observed.logits.softmax(1)
    weights = weights / weights.sum(0).clamp_min(_TINY)
    if source == "confusion":
        return of_confusions(weights.T @ (observed.logits / TEMPERATURE).softmax(1))
    values = observed.logits if source == "logits" else _standardised(observed.features.double())
    means = weights.T @ (values - values.mean(1, keepdim=True) if source == "logits" else values)
    means = means - means.mean(0)
    means = means / means.norm(dim=1, keepdim=True).clamp_min(_TINY)
    return _bounded((1 + means @ means.T) / 2)


def of_confusions(towards: Tensor) -> Tensor:
    """The same, from what images of one class (row) give to each class (column), (classes, classes) float64."""
    similarities = (towards + towards.T) / 2
    similarities.fill_diagonal_(0)
    return _bounded(similarities / similarities.max().clamp_min(_TINY))


def _bounded(similarities: Tensor) -> Tensor:
    similarities = ((similarities + similarities.T) / 2).clamp(_TINY, 1)
    return similarities.fill_diagonal_(1)


def _standardised(features: Tensor) -> Tensor:
    return (features - features.mean(0)) / features.std(0).clamp_min(1e-6)


def distances(similarities: Tensor) -> np.ndarray:
    """How far classes are apart, (classes, classes): of confusions, whose scale is that of probabilities, a logarithm,
    so that no class swallows the others in an average."""
    apart = -similarities.log().numpy()
    np.fill_diagonal(apart, 0)
    return apart


def partition(similarities: Tensor, count: int, method: str) -> Tensor:
    """The cluster of every class (classes,), numbered by the first class of each."""
    from sklearn.cluster import AgglomerativeClustering, SpectralClustering

    if method == "agglomerative":
        labels = AgglomerativeClustering(count, metric="precomputed", linkage="average").fit_predict(
            distances(similarities)
        )
    else:
        made = SpectralClustering(count, affinity="precomputed", assign_labels="cluster_qr", random_state=0)
        labels = made.fit_predict(similarities.numpy())
    first = {cluster: place for place, cluster in reversed(list(enumerate(labels.tolist())))}
    order = {cluster: number for number, cluster in enumerate(sorted(first, key=lambda cluster: first[cluster]))}
    return torch.tensor([order[cluster] for cluster in labels.tolist()])


def named(of_class: Tensor, similarities: Tensor, class_names: list[str], length: int = 60) -> Clusters:
    """Clusters with the names of the two classes that are most like the others of theirs."""
    members = [torch.nonzero(of_class == cluster).flatten().tolist() for cluster in range(int(of_class.max()) + 1)]
    names: list[str] = []
    for classes in members:
        central = sorted(classes, key=lambda c: (-round(float(similarities[c, classes].sum()), 9), c))
        name = ", ".join(class_names[c] for c in central[:2]) + (", ..." if len(classes) > 2 else "")
        name = name if len(name) <= length else name[: length - 3] + "..."
        numbered = (name if number == 1 else f"{name} ({number})" for number in itertools.count(1))
        names.append(next(each for each in numbered if each not in names))
    return Clusters(tuple(names), tuple(tuple(classes) for classes in members))


def _superclasses(images: LabelledImages) -> Tensor | None:
    """The cluster of every class by the data's own column, where it tells that of all classes."""
    if images.cluster_of_class is None or bool((images.cluster_of_class < 0).any()):
        return None
    if len(images.cluster_of_class.unique()) < 2:
        return None
    return from_column(images).of_class()


def _agreement(clusters: Tensor, given: Tensor) -> float:
    """The adjusted Rand index (Hubert and Arabie, Journal of Classification, 1985): 1 for the same partition, 0 for
    chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(given.numpy(), clusters.numpy()))
