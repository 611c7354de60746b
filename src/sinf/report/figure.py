"""A comparison as one picture: time, the trade-off between loss and MACs, and, of a bundle, where some images went."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sinf.data.images import LabelledImages
from sinf.engine.torch_engine import SemanticModel
from sinf.errors import DependencyError
from sinf.measure.accuracy import Costs, observe
from sinf.report.candidates import Comparison, Row
from sinf.routing.threshold import NEVER

_BASE, _OURS, _GREY = "#9aa5b1", "#0b7285", "#495057"


class Point(NamedTuple):
    """The model at one threshold: loss in points and fraction of MACs saved, against the base model; fallback share."""

    threshold: float
    loss: float
    macs_saved: float
    fallback: float


def require() -> None:
    """Say how to install what drawing needs, if it is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise DependencyError("drawing needs matplotlib", got="not installed", remedy='run: pip install "sinf[plot]"')


def curve(
    model: SemanticModel, images: LabelledImages, base: Row, progress: Callable[[int, int], None] | None = None
) -> list[Point]:
    """Loss and MACs saved at several thresholds, from always routing to never, against the row of a base model on the
    same images (which need not be the network that the model routes)."""
    costs, seen, bundle = Costs.of(model), observe(model, images, progress), model.bundle
    calibration = seen.calibration(bundle.deferral, 0.0 if bundle.threshold is None else bundle.threshold.early)
    before = 100 * (base.top1 - float(seen.base_right.double().mean()))  # what the routed network has lost
    points = []
    for threshold in (0.0, *torch.linspace(0.3, 0.99, 12).tolist(), NEVER):
        loss = before + 100 * float(calibration.losses(threshold).double().mean())
        saved = 1 - seen.mean_cost(costs.macs, calibration, threshold) / base.macs
        fallback = 1 - float(calibration.routed(threshold).float().mean())
        points.append(Point(threshold, loss, saved, fallback))
    return points


class Routing(NamedTuple):
    """A bundle for the picture: it at several thresholds, and images whose routes are shown."""

    model: SemanticModel
    points: list[Point]
    images: LabelledImages


def draw(comparison: Comparison, chosen: str, images: int, path: str | Path, routing: Routing | None = None) -> Path:
    """Write the picture of a comparison on so many ``images`` and return its path. ``chosen`` is shown first; of
    ``routing`` the trade-off and a gallery are drawn too."""
    require()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(12, 4.1 if routing is None else 6.6), layout="constrained")
    top: Any = figure
    if routing is not None:
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.6, 1))  # type: ignore[misc]
        _gallery(bottom, routing.model, routing.images)
    left, right = top.subplots(1, 2, width_ratios=(1.1, 1))
    _bars(left, comparison, chosen)
    _trade_off(right, comparison, chosen, [] if routing is None else routing.points, images)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _bars(axis: Any, comparison: Comparison, chosen: str) -> None:
    """The mean time of every candidate, the base model first."""
    rows = comparison.rows[::-1]
    milliseconds = [row.time.mean for row in rows]
    bars = axis.barh(
        [row.name for row in rows], milliseconds, color=[_OURS if row.name == chosen else _BASE for row in rows],
        height=0.6,
    )  # fmt: skip
    labels = [f"{row.time.mean:.2f} ms, {row.loss:.2f} points lost" for row in rows[:-1]]
    axis.bar_label(bars, [*labels, f"{milliseconds[-1]:.2f} ms"], padding=4, color=_GREY, fontsize=9)
    axis.set_xlim(0, max(milliseconds) * 1.55)
    axis.set_xlabel("mean time of one image")
    best = comparison.row(chosen)
    saved = f"{100 * best.time.time_saved:.0f} % less time, {best.loss:.2f} points lost"
    axis.set_title(f"{chosen}: {saved if best is not comparison.rows[0] else 'nothing is faster'}", loc="left")


def _trade_off(axis: Any, comparison: Comparison, chosen: str, points: list[Point], images: int) -> None:
    """Loss over MACs saved, of all candidates and, if it is one, of the bundle at other thresholds."""
    whole = comparison.rows[0].macs
    highest = 1.2 * max(1.0, *(row.loss_high for row in comparison.rows))  # what loses more hides the rest
    if points:
        ordered = sorted((p for p in points if p.loss <= highest), key=lambda p: p.macs_saved)
        axis.plot(
            [100 * p.macs_saved for p in ordered], [p.loss for p in ordered], "-", color=_GREY, linewidth=1,
            label="the bundle at other thresholds",
        )  # fmt: skip
        axis.legend(frameon=False, fontsize=8, loc="upper right")
    for number, row in enumerate(comparison.rows[1:]):
        around = [[row.loss - row.loss_low], [row.loss_high - row.loss]]
        x, colour = 100 * (1 - row.macs / whole), _OURS if row.name == chosen else _BASE
        axis.errorbar(x, row.loss, yerr=around, fmt="D", color=colour, markersize=7, linewidth=1)
        axis.annotate(
            row.name, (x, row.loss), (7, 5 if number % 2 else -12), textcoords="offset points", fontsize=8, color=_GREY
        )
    axis.axhline(0, color=_BASE, linewidth=1)
    positions = [100 * (1 - row.macs / whole) for row in comparison.rows]
    least, most = min(positions), max(positions)
    axis.set_xlim(least - 5, most + 0.4 * (most - least) + 5)  # with room for names
    axis.set_xlabel("MACs saved, %")
    axis.set_ylabel("loss against the base model, points")
    axis.set_title(f"on {images} test images, 95 % intervals", loc="left")


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
        "where the bundle sends images: answer (red: wrong), subgraph, confidence in the route",
        fontsize=10,
        x=0.01,
        ha="left",
    )
