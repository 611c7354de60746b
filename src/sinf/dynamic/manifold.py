"""What training made of sub-networks: do hard inputs keep more, and do similar inputs keep similar channels? ManiDP
(arXiv 2103.05861) asks for both. Measured on labelled images, with gates as they are and as they were before
training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sinf.data.images import LabelledImages
from sinf.dynamic.model import DynamicModel
from sinf.dynamic.network import GatedNetwork, attach
from sinf.errors import DataError


@dataclass(frozen=True)
class Similarity:
    """Of pairs of inputs (P,): cosine of their features and of the sets of channels that they keep, mean over sites."""

    features: Tensor
    kept: Tensor

    @property
    def correlation(self) -> float:
        """Pearson's; 0 where all inputs keep the same."""
        both = torch.stack([self.features, self.kept])
        return float(torch.corrcoef(both)[0, 1]) if bool((both.std(1) > 1e-9).all()) else 0.0


@dataclass(frozen=True)
class Manifold:
    """``cross_entropy`` (N,) of the base model, ``macs`` (N,) as shares of the base model's, ``remaining`` (classes,
    sites) the share of channels that stays on average, NaN for a class without images; similarities before and after
    training."""

    cross_entropy: Tensor
    macs: Tensor
    remaining: Tensor
    sites: list[str]
    before: Similarity
    after: Similarity


@torch.no_grad()
def explore(model: DynamicModel, images: LabelledImages, *, pairs: int = 20_000, seed: int = 0) -> Manifold:
    """Run ``images`` through the base model, the bundle, and the base model with gates that were not trained and keep
    as many channels of every layer.

    Raises:
        DataError: there are fewer than two images.
    """
    if len(images) < 2:
        raise DataError("similarity needs two images", got=len(images), remedy="give more")
    preprocessing = model.bundle.spec.preprocessing
    generator = torch.Generator().manual_seed(seed)
    one = torch.randint(len(images), (pairs,), generator=generator)
    other = (one + torch.randint(1, len(images), (pairs,), generator=generator)) % len(images)
    losses, rows = [], []
    for x, y in images.batches(preprocessing):
        losses.append(F.cross_entropy(model.base(x), y, reduction="none"))
        chosen = model.choose(x)
        rows.append(torch.cat([chosen.macs[:, None] / model.network.base_macs, chosen.remaining], 1))
    macs, remaining = torch.cat(rows).split([1, len(model.network.sites)], 1)
    by_class = torch.stack([remaining[images.labels == c].mean(0) for c in range(images.classes)])
    untrained = _untrained(model, images, remaining.mean(0), seed)
    return Manifold(
        torch.cat(losses),
        macs[:, 0],
        by_class,
        [site.name for site in model.network.sites],
        _similarity(untrained, model, images, one, other),
        _similarity(model.network, model, images, one, other),
    )


def _untrained(model: DynamicModel, images: LabelledImages, remaining: Tensor, seed: int) -> GatedNetwork:
    """The base model with new gates whose thresholds leave as much of every layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = attach(model.bundle.base(), model.bundle.gates).eval()
    for _ in range(2):  # thresholds change what later gates see
        sums: list[Tensor] = []
        for x, _ in images.batches(model.bundle.spec.preprocessing):
            parts = [s.sum(0) for s in network.observe(x)[1].saliencies]
            sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        for index, total in enumerate(sums):
            network.gate(index).set_remaining(float(remaining[index]), total / len(images))
    return network


def _similarity(
    network: GatedNetwork, model: DynamicModel, images: LabelledImages, one: Tensor, other: Tensor
) -> Similarity:
    features: list[list[Tensor]] = [[] for _ in network.sites]
    kept: list[list[Tensor]] = [[] for _ in network.sites]
    wanted, network.wants_features = network.wants_features, True
    for x, _ in images.batches(model.bundle.spec.preprocessing):
        _, observed = network.observe(x)
        for index, saliency in enumerate(observed.saliencies):
            features[index].append(observed.features[index])
            kept[index].append(network.gate(index).keep(saliency).float())
    network.wants_features = wanted

    def cosine(parts: list[list[Tensor]]) -> Tensor:
        unit = [F.normalize(torch.cat(rows), dim=1) for rows in parts]
        return torch.stack([(rows[one] * rows[other]).sum(1) for rows in unit]).mean(0)

    return Similarity(cosine(features), cosine(kept))
