"""The result of a build as one picture: time, the trade-off between loss and time, and where some images went."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sinf.data import LabelledImages
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import DependencyError
from sinf.measure import Costs, Evaluation, observe
from sinf.risk import NEVER
from sinf.timing import Latency

_BASE, _OURS, _GREY = "#9aa5b1", "#0b7285", "#495057"


class Point(NamedTuple):
    """The model at one threshold: loss in points, fraction of MACs saved, fallback share."""

    threshold: float
    loss: float
    macs_saved: float
    fallback: float


def require() -> None:
    """Say how to install what drawing needs, if it is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise DependencyError("drawing needs matplotlib", got="not installed", remedy='run: pip install "sinf[plot]"')


def curve(
    model: SemanticModel, images: LabelledImages, progress: Callable[[int, int], None] | None = None
) -> list[Point]:
    """Loss and MACs saved at several thresholds, from always routing to never."""
    costs, seen, bundle = Costs.of(model), observe(model, images, progress), model.bundle
    calibration = seen.calibration(bundle.deferral, 0.0 if bundle.threshold is None else bundle.threshold.early)
    points = []
    for threshold in (0.0, *torch.linspace(0.3, 0.99, 12).tolist(), NEVER):
        loss = 100 * float(calibration.losses(threshold).mean())
        saved = 1 - seen.mean_cost(costs.macs, calibration, threshold) / costs.base_macs
        fallback = 1 - float(calibration.routed(threshold).float().mean())
        points.append(Point(threshold, loss, saved, fallback))
    return points


def draw(
    model: SemanticModel,
    images: LabelledImages,
    result: Evaluation,
    times: Latency,
    points: list[Point],
    path: str | Path,
) -> Path:
    """Write the picture and return its path."""
    require()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(12, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.1, 1))  # type: ignore[misc]
    left, right = top.subplots(1, 2, width_ratios=(1, 1.2))
    bars = left.barh(["ours", "base model"], [times.mean, times.base_mean], color=[_OURS, _BASE], height=0.6)
    left.bar_label(bars, [f"{times.mean:.2f} ms", f"{times.base_mean:.2f} ms"], padding=4, color=_GREY)
    left.set_xlim(0, times.base_mean * 1.25)
    left.set_xlabel("mean time of one image")
    left.set_title(
        f"{100 * times.time_saved:.0f} % less time, {100 * result.macs_saved:.0f} % fewer MACs, "
        f"{result.loss:+.2f} points lost",
        loc="left",
    )
    ordered = sorted(points, key=lambda p: p.macs_saved)
    right.plot(
        [100 * p.macs_saved for p in ordered], [p.loss for p in ordered], "o-", color=_OURS, label="other thresholds"
    )
    right.plot(100 * result.macs_saved, result.loss, "D", color="#d9480f", markersize=9, label="calibrated threshold")
    right.axhline(0, color=_BASE, linewidth=1)
    right.set_xlabel("MACs saved, %")
    right.set_ylabel("loss against the base model, points")
    right.set_title(f"the trade-off on {result.images} test images", loc="left")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    _gallery(bottom, model, images)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _gallery(figure: object, model: SemanticModel, images: LabelledImages, count: int = 8) -> None:
    """Some images with route and answer."""
    preprocessing = model.bundle.spec.preprocessing
    sample = images.sample(count, seed=3)
    pixels = sample.pixels(preprocessing)
    routed = model.route(preprocessing.normalise(pixels))
    names, clusters = model.bundle.class_names, model.bundle.clusters.names
    answers: Tensor = routed.logits.argmax(1)
    axes = figure.subplots(1, count)  # type: ignore[attr-defined]
    for i, axis in enumerate(axes):
        axis.imshow(pixels[i].numpy(), interpolation="bicubic")
        axis.set_xticks([])
        axis.set_yticks([])
        route = "full tail" if routed.fell_back[i] else clusters[int(routed.route[i])].replace("_", " ")
        right = int(answers[i]) == int(sample.labels[i])
        axis.set_title(names[int(answers[i])].replace("_", " "), fontsize=10, color=_OURS if right else "#c92a2a")
        axis.set_xlabel(f"via {route}\n{float(routed.confidence[i]):.2f}", fontsize=7, color=_GREY, wrap=True)
    figure.suptitle(  # type: ignore[attr-defined]
        "where images go: answer (red: wrong), subgraph, confidence in the route",
        fontsize=10,
        x=0.01,
        ha="left",
    )
