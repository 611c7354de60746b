"""What becomes of a delivered network when its images get worse: loss, disagreement and the share deferred.

    python benchmarks/corruption.py vgg16 WEIGHTS CIFAR100 runs/optimize/vgg16/delivered

Images of test[50%:], which chose and tested nothing, with noise, blur or less contrast, at the strengths of CIFAR-10-C
(Hendrycks & Dietterich, arXiv 1903.12261). What lies in the folder, as optimize.py left it, is opened as a user opens
it (sinf.edge), and beside it the base model in f32 in the same engine. All are fed the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from candidates import say
from scipy.ndimage import gaussian_filter
from table import Table
from torch import Tensor

from sinf import edge, load_images, load_model
from sinf.engine.network_engine import open_network
from sinf.errors import ConfigError
from sinf.graph.prepare import prepare
from sinf.graph.trace import trace
from sinf.measure.delivery import ExpectedLoss
from sinf.pipelines.exported import Run, running

AT_ONCE = 50
NONE = "as they are"
#: The parameters of strengths 1 to 5.
NOISE, BLUR, CONTRAST = (0.04, 0.06, 0.08, 0.09, 0.10), (0.4, 0.6, 0.7, 0.8, 1.0), (0.75, 0.5, 0.4, 0.3, 0.15)
COLUMNS = (
    "model", "dataset", "engine", "delivered", "kind", "precision", "corruption", "strength", "images", "base_top1",
    "loss", "loss_low", "loss_high", "disagreement", "deferred", "seed", "date", "versions",
)  # fmt: skip


def noise(pixels: np.ndarray, scale: float) -> np.ndarray:
    """Of a normal distribution, drawn by a seed; ``pixels`` (N, H, W, C) in 0..1, as everywhere here."""
    return pixels + np.random.default_rng(0).normal(scale=scale, size=pixels.shape)


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(pixels, (0, sigma, sigma, 0))


def contrast(pixels: np.ndarray, share: float) -> np.ndarray:
    """What is left of the difference from each channel's mean."""
    mean = pixels.mean((1, 2), keepdims=True)
    return (pixels - mean) * share + mean


CORRUPTIONS: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], tuple[float, ...]]] = {
    "noise": (noise, NOISE), "blur": (blur, BLUR), "contrast": (contrast, CONTRAST),
}  # fmt: skip


def corrupted(pixels: np.ndarray, name: str, strength: int) -> np.ndarray:
    """``(N, H, W, C)`` uint8, of such pixels; strength 0 leaves them as they are."""
    if not strength:
        return pixels
    change, parameters = CORRUPTIONS[name]
    changed = change(pixels.astype(np.float64) / 255, parameters[strength - 1])
    return np.rint(255 * np.clip(changed, 0, 1)).astype(np.uint8)


def answers_of(run: Run, x: np.ndarray, step: str) -> tuple[Tensor, float | None]:
    """``(N,)`` the classes that are answered, and the share of the images that is deferred."""
    classes, deferred = [], []
    for start in range(0, len(x), AT_ONCE):
        logits, back = run(x[start : start + AT_ONCE])
        classes.append(logits.argmax(1))
        deferred += [] if back is None else [back]
        say(step, start, len(x))
    share = float(np.concatenate(deferred).mean()) if deferred else None
    return torch.from_numpy(np.concatenate(classes)), share


def main(
    name: str,
    weights: Path,
    data: Path,
    delivered: Path,
    engine: str = "onnxruntime",
    strengths: Annotated[list[int], typer.Option(help="From 1 to 5; may be repeated.")] = [1, 3, 5],  # noqa: B006
    count: Annotated[int, typer.Option(help="Images, equally many of a class.")] = 2500,
    threads: int = 1,
    only: Annotated[list[str] | None, typer.Option(help="Folders in there; may be repeated [default: all].")] = None,
    keep: Annotated[bool, typer.Option(help="Leave rows that are in the file.")] = False,
) -> None:
    folders = sorted(path.parent for path in delivered.glob(f"*/{engine}") if not only or path.parent.name in only)
    if not folders:
        raise ConfigError("optimize.py must have delivered something", got=delivered, remedy="run it first")
    torch.set_num_threads(threads)
    identity = ("engine", "delivered", "corruption", "strength")
    table = Table(
        f"corruption_{name}.csv", COLUMNS, identity, keep=keep, model=name, dataset="cifar100", engine=engine, seed=0
    )
    base, images = load_model(name, weights=weights), load_images(data, "test[50%:]").sample(count)
    fed = base.spec.preprocessing
    network = prepare(trace(base.module, fed))
    reference = open_network(network, fed.size, engine, threads=threads)
    models = {folder.name: edge.load(folder / engine, threads=threads) for folder in folders}
    pixels = images.pixels(fed, 0, len(images)).numpy()

    for corruption, strength in [(NONE, 0), *((each, s) for each in CORRUPTIONS for s in strengths)]:
        if all(table.has(engine=engine, delivered=d, corruption=corruption, strength=strength) for d in models):
            continue
        what = f"{corruption} {strength}"
        x = next(iter(models.values())).normalise(corrupted(pixels, corruption, strength))
        expected, _ = answers_of(lambda x: (np.asarray(reference(x)), None), x, f"{what}: base model")
        for folder, model in models.items():
            found, deferred = answers_of(running(model), x, f"{what}: {folder}")
            loss = ExpectedLoss.of(expected, found, images.labels)
            kind = "static" if deferred is None else "cascade" if len(model.clusters) == 1 else "semantic"
            table.add(
                delivered=folder, kind=kind, precision=model.precision, corruption=corruption, strength=strength,
                images=loss.images, base_top1=loss.base_top1, loss=loss.points, loss_low=loss.low,
                loss_high=loss.high, disagreement=loss.disagreement, deferred=deferred,
            )  # fmt: skip
            print(f"{what}, {folder}: {loss}, deferred {deferred}", flush=True)
    table.forget_older(engine=engine)


if __name__ == "__main__":
    typer.run(main)
