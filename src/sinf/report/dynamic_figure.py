"""A dynamically pruned network as one picture: what inputs cost, how similar sub-networks are, what classes use."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinf.dynamic.manifold import Manifold, Similarity
from sinf.errors import DependencyError

_BASE, _TRAINED, _GREY = "#9aa5b1", "#0b7285", "#495057"
_BINS, _LEAST = 20, 20


def require() -> None:
    """Say how to install what drawing needs, if it is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise DependencyError("drawing needs matplotlib", got="not installed", remedy='run: pip install "sinf[plot]"')


def draw(manifold: Manifold, class_names: list[str], path: str | Path) -> Path:
    """Write the picture and return its path."""
    require()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    _difficulty(left, manifold)
    for similarity, colour, when in ((manifold.before, _BASE, "before"), (manifold.after, _TRAINED, "after")):
        _similarities(middle, similarity, colour, f"{when} training (r = {similarity.correlation:.2f})")
    middle.set_xlabel("similarity of two inputs' features (cosine)")
    middle.set_ylabel("similarity of the channels that they keep")
    middle.set_title("how similar sub-networks are", loc="left")
    middle.legend(frameon=False)
    _use(figure, right, manifold, class_names)
    for axis in (left, middle):
        axis.spines[["top", "right"]].set_visible(False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def _difficulty(axis: Any, manifold: Manifold) -> None:
    order = manifold.cross_entropy.argsort(stable=True)
    parts = manifold.macs[order].chunk(_BINS)
    x = [100 * (i + 0.5) / len(parts) for i in range(len(parts))]
    low, high = ([100 * float(part.quantile(q)) for part in parts] for q in (0.1, 0.9))
    axis.fill_between(x, low, high, color=_TRAINED, alpha=0.18, linewidth=0, label="80 % of the inputs")
    axis.plot(x, [100 * float(part.mean()) for part in parts], "o-", color=_TRAINED, markersize=4, label="mean")
    axis.set_xlabel("inputs from easy to hard for the base model, %")
    axis.set_ylabel("MACs of the base model, %")
    axis.set_title("what inputs cost", loc="left")
    axis.legend(frameon=False)


def _similarities(axis: Any, similarity: Similarity, colour: str, label: str) -> None:
    """Means and the middle 80 % over equally wide bins of what features have in common."""
    x = similarity.features
    edges = torch.linspace(float(x.quantile(0.01)), float(x.quantile(0.99)), _BINS + 1)
    bins = torch.bucketize(x, edges)
    inside = [b for b in range(1, _BINS + 1) if int((bins == b).sum()) >= min(_LEAST, len(x) // _BINS)]
    centres = [float(edges[b - 1 : b + 1].mean()) for b in inside]

    def each(of: Any) -> list[float]:
        return [float(of(similarity.kept[bins == b])) for b in inside]

    axis.fill_between(
        centres, each(lambda v: v.quantile(0.1)), each(lambda v: v.quantile(0.9)), color=colour, alpha=0.18, linewidth=0
    )
    axis.plot(centres, each(Tensor.mean), "-", color=colour, linewidth=2, label=label)


def _use(figure: Any, axis: Any, manifold: Manifold, class_names: list[str]) -> None:
    """Channels by class and layer, as the difference from the mean of the layer: layers differ more than classes.
    Classes without images are left out."""
    with_images = ~manifold.remaining.isnan().any(1)
    class_names = [name for name, there in zip(class_names, with_images.tolist(), strict=True) if there]
    remaining = manifold.remaining[with_images]
    over = 100 * (remaining - remaining.mean(0))
    most = max(1e-9, float(over.abs().max()))
    picture = axis.imshow(over.numpy(), aspect="auto", cmap="BrBG", vmin=-most, vmax=most, interpolation="nearest")
    few = len(class_names) <= 20
    axis.set_yticks(range(len(class_names)) if few else [], class_names if few else [], fontsize=8)
    axis.set_ylabel("" if few else f"{len(class_names)} classes")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("gated layers, in order")
    axis.set_title("channels kept, points over the layer's mean", loc="left")
    figure.colorbar(picture, ax=axis, shrink=0.9)
