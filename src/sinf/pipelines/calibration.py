"""From what a bundle does with calibration images to its deferral and thresholds.

The images are parted at random: some fit the temperature, the deferral, the early threshold and the candidates of the
threshold; the threshold that carries the limit of the loss is set on the others, which nothing else reads.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sinf.data.images import LabelledImages
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import DataError
from sinf.measure.accuracy import Observation
from sinf.routing.deferral import Deferral, fit_deferral, fit_margin
from sinf.routing.router import FULL_TAIL
from sinf.routing.threshold import (
    NEVER,
    Calibration,
    Threshold,
    candidate_thresholds,
    choose_early_threshold,
    choose_threshold,
)

FITTING = 0.25  # share of the calibration images that fits
LEAST = 8
CALL_COST = 1e6  # MACs that calling an operation counts for: some 15 microseconds on one thread of a server processor


def part_images(images: LabelledImages, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the images that fit, and of those that set the threshold.

    The share is drawn at random, not equally per class: what sets the threshold must be drawn as the images were, or a
    rare class is missing there.
    """
    if len(images) < LEAST:
        raise DataError(
            f"calibration needs at least {LEAST} images", got=f"{len(images)} in {images.name}", remedy="name more"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return order.tensor_split([max(1, round(FITTING * len(images)))])  # type: ignore[return-value]


def set_thresholds(
    fitting: Observation,
    rest: Observation,
    max_loss: float,
    confidence: float | None,
    tail_costs: tuple[float, float],
    *,
    choices: int = 1,
) -> tuple[Deferral, Threshold]:
    """Deferral and thresholds for one limit of the loss (a fraction). ``tail_costs`` are those of a subgraph and of the
    full tail; ``choices`` are those of :func:`sinf.routing.threshold.choose_threshold`."""
    deferral, fitted = _fitted(fitting, max_loss, tail_costs)
    candidates = candidate_thresholds(fitted.confidence)
    chosen = choose_threshold(
        rest.calibration(deferral, fitted.early_threshold), candidates, max_loss, confidence, choices=choices
    )
    return deferral, chosen


def without_threshold(
    fitting: Observation, max_loss: float, tail_costs: tuple[float, float]
) -> tuple[Deferral, Threshold]:
    """The deferral and the early threshold alone, for those who set the other one themselves: with it, no answer of a
    subgraph counts."""
    deferral, fitted = _fitted(fitting, max_loss, tail_costs)
    loss, ran = (float(values.double().mean()) for values in (fitted.losses(NEVER), fitted.subgraph_ran(NEVER)))
    images = len(fitted.confidence)
    return deferral, Threshold(NEVER, fitted.early_threshold, max_loss, loss, 1.0, ran, None, images)


def _fitted(fitting: Observation, max_loss: float, tail_costs: tuple[float, float]) -> tuple[Deferral, Calibration]:
    """The deferral, and the images that it was fitted to with their early threshold."""
    routes = fitting.routes
    harmless = routes.right | ~fitting.base_right
    if routes.one:
        deferral = fit_margin(routes.margin, harmless)
    else:
        deferral = fit_deferral(routes.log_route, routes.energy, routes.log_within, harmless)
    fitted = fitting.calibration(deferral)
    early = choose_early_threshold(fitted, max_loss, *tail_costs)
    return deferral, replace(fitted, early_threshold=early)


def tail_costs(model: SemanticModel, weight_cost: float) -> tuple[float, float]:
    """What a subgraph (in the mean) and the full tail cost at batch 1: MACs, with ``weight_cost`` more for every weight
    and ``CALL_COST`` more for every operation."""
    network = model.network
    costs = {}
    for name, part in model.bundle.parts.items():
        if name != "extractor":
            tail = network.tail(part)
            calls = sum(node.op.startswith("call") for node in tail.graph.nodes)
            costs[name] = CALL_COST * calls + network.cost_of(tail, weight_cost)
    subgraphs = [cost for name, cost in costs.items() if name != FULL_TAIL]
    return sum(subgraphs) / len(subgraphs), costs[FULL_TAIL]
