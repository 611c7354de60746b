"""Make the embedded default: a subset of CIFAR-100 and the float16 weights of the small network.

    sinf train vgg13 --width 0.5 --data CIFAR100 --out runs/vgg13 --epochs 30 --bf16 --threads 1 --half
    python benchmarks/embed.py CIFAR100 runs/vgg13/model-half.safetensors

Scoring images come from the train split, calibration images from the first half of the test split, test images from the
second: disjoint, and balanced over the 100 classes. Images are stored without loss, as WebP, which is smaller than PNG.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import datasets
from PIL import Image

from sinf.data.images import load_images

ASSETS = Path(__file__).parent.parent / "src" / "sinf" / "assets"
COUNTS = {"scoring": ("train", 2200), "calibration": ("test[:50%]", 1200), "test": ("test[50%:]", 1200)}


def subset(source: str, split: str, count: int) -> datasets.Dataset:
    """``count`` images, equally many of every class, with both label columns."""
    images = load_images(source, split)
    table = datasets.load_dataset(source, split=split).cast_column("img", datasets.Image(decode=False))
    rows = images.sample_rows(count)
    return table.select(rows).map(_as_webp)


def _as_webp(row: dict) -> dict:
    stream = io.BytesIO()
    Image.open(io.BytesIO(row["img"]["bytes"])).save(stream, "WEBP", lossless=True, quality=100, method=6, exact=True)
    return row | {"img": {"bytes": stream.getvalue(), "path": None}}


def main(source: str, weights: str) -> None:
    folder = ASSETS / "cifar100_subset"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, (split, count) in COUNTS.items():
        table = subset(source, split, count).cast_column("img", datasets.Image())
        table.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    shutil.copy(weights, ASSETS / "vgg13_cifar100.safetensors")
    for path in sorted(ASSETS.rglob("*.*")):
        print(f"{path.relative_to(ASSETS)}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
