"""The parts of a bundle as modules: all arithmetic of routing, so that what is exported has it too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sinf.data.clusters import Clusters
from sinf.routing.deferral import Deferral, margin_of_several

_BARE = "bare."


def bare(part: str) -> str:
    """Name of a part without what routing adds to it: of the front the extractor, of a cluster its subgraph. Only
    profiles run these."""
    return _BARE + part


def is_bare(part: str) -> bool:
    """Whether a part is without what routing adds to it."""
    return part.startswith(_BARE)


def dressed(part: str) -> str:
    """Name of the part of which this is the bare one."""
    return part.removeprefix(_BARE)


class Front(nn.Module):
    """Extractor and route predictor: images -> features, log-probabilities of clusters, route, its probability."""

    def __init__(self, extractor: nn.Module, router: nn.Module) -> None:
        super().__init__()
        self.extractor, self.router = extractor, router

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.extractor(images)
        log_clusters = self.router(features).log_softmax(1)
        log_route, route = log_clusters.max(1)
        return features, log_clusters, route, log_route.exp()


class DeferralHead(nn.Module):
    """From what a cluster's subgraph says of its classes to an answer over all classes, and its confidence.

    The cluster's probability is shared out as the subgraph says, the probability of every other cluster evenly among
    its classes. All of that and the score of the confidence (:mod:`sinf.routing.deferral`) are one linear map of
    log-probabilities of the clusters, logits, their log-probabilities and the largest of these: at batch 1 an operation
    costs more than its arithmetic.
    """

    matrix: Tensor
    bias: Tensor
    sources: Tensor

    def __init__(self, clusters: Clusters, cluster: int, deferral: Deferral) -> None:
        super().__init__()
        members = list(clusters.members[cluster])
        count, size = len(clusters), len(members)
        own = torch.arange(size)
        logits, inside, within = count, count + size + own, count + 2 * size  # rows, after those of the clusters
        score = count + size  # columns are clusters, classes of this one, and the score
        matrix, bias = torch.zeros(within + 1, score + 1), torch.zeros(score + 1)
        matrix[range(count), range(count)] = 1
        bias[:count] = -torch.tensor([len(classes) for classes in clusters.members]).log()
        matrix[inside, count + own] = matrix[cluster, count + own] = 1
        matrix[cluster, score], matrix[within, score], bias[score] = deferral.route, deferral.within, deferral.intercept
        # The energy is the difference between any logit and its log-probability.
        matrix[logits, score], matrix[inside[0], score] = deferral.energy, -deferral.energy
        sources = clusters.of_class()
        sources[members] = count + own
        for name, tensor in (("matrix", matrix), ("bias", bias), ("sources", sources)):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, logits: Tensor, log_clusters: Tensor) -> tuple[Tensor, Tensor]:
        """Of logits (N, classes of the cluster) and log-probabilities of the clusters (N, clusters): logits over all
        classes (N, classes), and the probability (N,) that the route loses nothing."""
        inside = logits.log_softmax(1)
        inputs = torch.cat([log_clusters, logits, inside, inside.amax(1, keepdim=True)], 1)
        answer = torch.addmm(self.bias, inputs, self.matrix)
        return answer.index_select(1, self.sources), answer.select(1, -1).sigmoid()


class CascadeHead(nn.Module):
    """The same where one cluster holds all classes: its subgraph's logits are the answer, and their margin is what
    its confidence comes of."""

    def __init__(self, deferral: Deferral) -> None:
        super().__init__()
        self.margin, self.intercept = deferral.margin, deferral.intercept

    def forward(self, logits: Tensor, log_clusters: Tensor) -> tuple[Tensor, Tensor]:
        # The log-probability of the one cluster is 0. It is added because runtimes drop an input that nobody reads.
        return logits, (self._score(logits) + log_clusters.select(1, 0)).sigmoid()

    def confidence(self, logits: Tensor) -> Tensor:
        """``(N,)`` of logits (N, classes)."""
        return self._score(logits).sigmoid()

    def _score(self, logits: Tensor) -> Tensor:
        return margin_of_several(logits) * self.margin + self.intercept


def make_deferral_head(clusters: Clusters, cluster: int, deferral: Deferral) -> DeferralHead | CascadeHead:
    """What gives the answers of a cluster's subgraph their confidence."""
    return CascadeHead(deferral) if len(clusters) == 1 else DeferralHead(clusters, cluster, deferral)


class First(nn.Module):
    """What runs for every input of a cascade, as one part: images -> features, logits of the small tail, confidence."""

    def __init__(self, extractor: nn.Module, tail: nn.Module, head: CascadeHead) -> None:
        super().__init__()
        self.extractor, self.tail, self.head = extractor, tail, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.extractor(images)
        logits = self.tail(features)
        return features, logits, self.head.confidence(logits)


class Specialist(nn.Module):
    """A subgraph with its deferral head, as one part: features, log-probabilities of clusters -> logits, confidence."""

    def __init__(self, tail: nn.Module, head: DeferralHead | CascadeHead) -> None:
        super().__init__()
        self.tail, self.head = tail, head

    def forward(self, features: Tensor, log_clusters: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.tail(features), log_clusters)
