"""What a route predictor learns from: views of the routing images, their features, and what the base model thinks of
their clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sinf.compress.compressor import Progress
from sinf.data.augmentation import augment, join_pairs
from sinf.data.clusters import Clusters
from sinf.data.images import BATCH, LabelledImages
from sinf.graph.network import Part, PartedNetwork
from sinf.graph.prepare import prepare, prepare_teacher
from sinf.machine.precision import teaching
from sinf.models import BaseModel
from sinf.storage.steps import Tensors

_MOST_PASSES = 10
_PLAIN_PASSES = 5  # over the images; with more, they are joined in pairs


@dataclass
class RouteImages:
    """Views of ``images``, in as many passes as come nearest to ``draws`` of them."""

    base: BaseModel
    network: PartedNetwork
    images: LabelledImages
    clusters: Clusters
    draws: int
    seed: int
    progress: Progress

    @property
    def passes(self) -> int:
        return min(_MOST_PASSES, max(1, round(self.draws / len(self.images))))

    @torch.no_grad()
    def targets(self, see: Callable[[Tensor], None]) -> Tensors:
        """``targets`` (views, clusters): what the base model thinks of the clusters; ``see`` is given its features."""
        onto = torch.nn.functional.one_hot(self.clusters.of_class(), len(self.clusters)).float()
        extractor, tail = prepare(self.network.parts.extractor), prepare(self.network.parts.tail)
        answers = []
        for x in self._views("route targets"):
            with teaching():
                features = extractor(x)
                see(features)
                logits = tail(features)
            answers.append(logits.float().softmax(1) @ onto)
        return {"targets": torch.cat(answers)}

    @torch.no_grad()
    def features(self, extractor: Part, see: Callable[[Tensor], None]) -> None:
        """Give ``see`` the features of a smaller extractor, batch by batch."""
        run = prepare_teacher(self.network.extractor(extractor))
        for x in self._views("route features"):
            see(run(x))

    def _views(self, step: str) -> Iterator[Tensor]:
        """Cropped and flipped images. The base model has seen them in training, as a rule; new views are nearer to what
        the router will meet. Where images are few and seen often, they are joined in pairs: the base model says of what
        it sees whatever that is."""
        images, preprocessing = self.images, self.base.spec.preprocessing
        generator = torch.Generator().manual_seed(self.seed)
        for number in range(self.passes):
            for start in range(0, len(images), BATCH):
                self.progress(step, number * len(images) + start, self.passes * len(images))
                views = augment(images.pixels(preprocessing, start, start + BATCH), generator)
                x = preprocessing.normalise(views)
                x = join_pairs(x, generator) if self.passes > _PLAIN_PASSES else x
                yield from x.split(images.batch)  # views are drawn for a whole batch, whatever runs at once
        self.progress(step, self.passes * len(images), self.passes * len(images))
