"""Images on which times are taken: where what an input costs depends on how hard it is, as many of them must be hard as
of all."""

from __future__ import annotations

import torch
from torch import Tensor

from sinf.data.images import LabelledImages
from sinf.data.preprocessing import Preprocessing

_MOST = 512  # which are in memory


def timed_images(
    images: LabelledImages, margins: Tensor, preprocessing: Preprocessing, *, batch: int, pairs: int, seed: int = 0
) -> Tensor:
    """``(N, C, H, W)`` normalised, for as many ``pairs`` of a ``batch``, in an order that the ``seed`` draws; fewer
    than there are in these where memory would not hold them.

    They are a systematic sample by the ``margins`` (N,) of the base model's answers: of a hundred drawn at random, some
    more or fewer than of all would fall back to the full tail, which is most of a cascade's time.
    """
    rows = spread(margins, min(batch * pairs, max(batch, _MOST)), seed)
    return images.select(rows).inputs(preprocessing)[:]


def spread(values: Tensor, count: int, seed: int) -> Tensor:
    """``(count,)`` rows of ``values`` (N,), or all: equally many from each part of their range, in random order."""
    count = min(count, len(values))
    generator = torch.Generator().manual_seed(seed)
    steps = (torch.arange(count, dtype=torch.float64) + torch.rand(1, generator=generator, dtype=torch.float64)) / count
    rows = values.argsort(stable=True)[(steps * len(values)).long().clamp(max=len(values) - 1)]
    return rows[torch.randperm(count, generator=generator)]
