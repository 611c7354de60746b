"""By what a cascade tells the inputs of which its small tail is unsure, on CIFAR-100: is there better than the margin?

    python benchmarks/deferral.py vgg16 CIFAR100 runs/optimize/vgg16/delivered/onnxruntime-batch-1-f32-0.5-none

What ``sinf optimize`` delivered runs both of its tails on all of test[:50%]. A score orders the images; the least sure
are deferred until of the answers that stand a share of all images at most differs from the full tail's. A better score
defers fewer. Scores of several features are fitted by cross-validation, five folds, to whether both tails agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import typer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_predict
from table import Table

from sinf import edge, load_images
from sinf.routing.router import FIRST, FULL_TAIL

DIFFER = (0.03, 0.02, 0.01, 0.005)  # of all images, answers that may stand and differ from the full tail's
AT_ONCE = 50
COLUMNS = (
    "model", "dataset", "engine", "delivered", "score", "differ_at_most", "deferred", "images", "differ", "device",
    "seed", "date", "versions",
)  # fmt: skip


def tails(export: edge.EdgeModel, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(N, classes)`` twice: logits of the small tail and of the full one, of normalised images (N, C, H, W)."""
    small, full = [], []
    for start in range(0, len(x), AT_ONCE):
        features, logits, _ = export.engine.run(FIRST, x[start : start + AT_ONCE])
        small.append(np.array(logits, np.float64))
        full.append(np.array(export.engine.run(FULL_TAIL, features)[0], np.float64))
    return np.concatenate(small), np.concatenate(full)


def scores(logits: np.ndarray, agree: np.ndarray) -> dict[str, np.ndarray]:
    """``(N,)`` by name, larger where an image is surer; ``agree`` (N,) is what the fitted ones are fitted to."""
    largest = -np.sort(-logits, 1)
    chances = np.exp(logits - largest[:, :1])
    chances /= chances.sum(1, keepdims=True)
    likely = -np.sort(-chances, 1)
    plain = {
        "margin of the logits": largest[:, 0] - largest[:, 1],
        "margin of the probabilities": likely[:, 0] - likely[:, 1],
        "probability of the first class": likely[:, 0],
        "entropy": (chances * np.log(np.maximum(chances, 1e-300))).sum(1),
        "free energy": largest[:, 0] + np.log(np.exp(logits - largest[:, :1]).sum(1)),
    }
    features = np.stack([*plain.values(), *largest[:, :4].T], 1)
    features = (features - features.mean(0)) / features.std(0)
    classes = np.eye(logits.shape[1])[logits.argmax(1)]
    logistic, folds = LogisticRegression(max_iter=2000), KFold(5, shuffle=True, random_state=0)
    fitted: dict[str, tuple[Any, np.ndarray]] = {
        "logistic, all of these and the four largest logits": (logistic, features),
        "logistic, margin and class": (logistic, np.hstack([features[:, :1], classes])),
        "boosted trees, all of these and the four largest logits": (
            HistGradientBoostingClassifier(max_iter=60, learning_rate=0.06, max_leaf_nodes=8, random_state=0), features
        ),
    }  # fmt: skip
    chosen = {
        name: cross_val_predict(model, given, agree, cv=folds, method="predict_proba")[:, 1]
        for name, (model, given) in fitted.items()
    }
    return plain | chosen


def deferred(score: np.ndarray, agree: np.ndarray, at_most: float) -> float:
    """The share of the images, the least sure first, without which answers that stand and differ are so few."""
    differ = ~agree[np.argsort(score, kind="stable")]
    standing = differ.sum() - np.concatenate([[0], np.cumsum(differ)])
    return float(np.argmax(standing <= at_most * len(agree)) / len(agree))


def main(name: str, data: Path, delivered: Path, engine: str = "onnxruntime") -> None:
    export, images = edge.load(delivered / engine), load_images(data, "test[:50%]")
    if not isinstance(export, edge.EdgeModel) or len(export.clusters) > 1:
        raise typer.BadParameter(f"{delivered} must be a cascade")
    table = Table(
        f"deferral_{name}.csv", COLUMNS, ("score", "differ_at_most"), model=name, dataset="cifar100", engine=engine,
        delivered=delivered.name, seed=0,
    )  # fmt: skip
    small, full = tails(export, images.inputs(export.preprocessing)[:].numpy())
    agree = small.argmax(1) == full.argmax(1)
    for score, values in scores(small, agree).items():
        for at_most in DIFFER:
            share = deferred(values, agree, at_most)
            table.add(
                score=score, differ_at_most=at_most, deferred=share, images=len(agree), differ=float((~agree).mean())
            )
            print(f"{score}: {100 * at_most:g} % may differ, {100 * share:.1f} % deferred", flush=True)


if __name__ == "__main__":
    typer.run(main)
