"""What a bundle answers in the engine where it runs: every tail, for every image, so for every threshold at once.

Answers of other arithmetic are other answers: a threshold that was set by those of torch in f32 promises nothing of a
bundle in 8-bit integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinf.data.images import LabelledImages
from sinf.data.preprocessing import Preprocessing
from sinf.engine.engines import native
from sinf.measure.timing import Progress
from sinf.routing.router import FIRST, FRONT, FULL_TAIL, FeatureRouter, early_floor, part_name


@dataclass(frozen=True)
class TailAnswers:
    """Of images (N,): the classes that the subgraph of their route and the full tail answer, the confidence once the
    subgraph has run, and the one before it."""

    subgraph: Tensor
    full: Tensor
    confidence: Tensor
    early: Tensor

    def subgraph_ran(self, threshold: float, early_threshold: float = 0.0) -> Tensor:
        """``(N,)`` whether the subgraph runs."""
        return self.early >= early_floor(early_threshold, threshold)

    def routed(self, threshold: float, early_threshold: float = 0.0) -> Tensor:
        """``(N,)`` whether the subgraph's answer stands."""
        return self.subgraph_ran(threshold, early_threshold) & (self.confidence >= threshold)

    def shares(self, threshold: float, early_threshold: float = 0.0) -> tuple[float, float]:
        """Of the images, as fractions: those that fall back, and those whose subgraph runs."""
        routed, ran = self.routed(threshold, early_threshold), self.subgraph_ran(threshold, early_threshold)
        return 1 - float(routed.double().mean()), float(ran.double().mean())

    def at(self, threshold: float, early_threshold: float = 0.0) -> Tensor:
        """``(N,)`` the classes that the bundle answers with a threshold."""
        return torch.where(self.routed(threshold, early_threshold), self.subgraph, self.full)


@torch.no_grad()
def tail_answers(
    router: FeatureRouter,
    engine: str,
    images: LabelledImages,
    preprocessing: Preprocessing,
    progress: Progress | None = None,
) -> TailAnswers:
    """Run every image through its subgraph and the full tail in an ``engine``, whose router this is."""
    batches: list[tuple[Tensor, ...]] = []
    done = 0
    for x, _ in images.batches(preprocessing):
        batches.append(_of_batch(router, native(engine, x)))
        done += len(x)
        if progress is not None:
            progress(done, len(images))
    return TailAnswers(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _of_batch(router: FeatureRouter, x: Any) -> tuple[Tensor, ...]:
    run = router.engine.run
    if router.cascade:
        features, logits, sure = run(FIRST, x)
        (full,) = run(FULL_TAIL, features)
        answers = (torch.as_tensor(each).argmax(1) for each in (logits, full))
        return *answers, torch.as_tensor(sure).clone(), torch.full((len(x),), torch.inf)  # it always runs
    features, log_clusters, route, early = run(FRONT, x)
    subgraph, confidence = torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(x))
    routes = torch.as_tensor(route)
    for cluster in routes.unique().tolist():
        rows = torch.nonzero(routes == cluster).flatten()
        logits, after = run(part_name(cluster), features[rows.tolist()], log_clusters[rows.tolist()])
        subgraph[rows], confidence[rows] = torch.as_tensor(logits).argmax(1), torch.as_tensor(after).float()
    (full,) = run(FULL_TAIL, features)
    return subgraph, torch.as_tensor(full).argmax(1), confidence, torch.as_tensor(early).clone()
