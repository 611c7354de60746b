"""Measure again what is in benchmarks/results: make bench [SHARED=folder with data/cifar100 and weights]"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(shared: Path) -> int:
    data, weights = shared / "data" / "cifar100", shared / "weights"
    if not data.is_dir() or not weights.is_dir():
        print(f"no CIFAR-100 and weights in {shared}: nothing measured. make bench SHARED=folder names another place.")
        return 0
    work = HERE.parent / "runs"
    for script, *arguments in (
        ("resources.py", weights / "vgg16_cifar100.safetensors", data, work / "resources"),
        # Its steps are those of the first row of the next.
        ("tradeoff.py", "vgg16", weights / "vgg16_cifar100.safetensors", data, "--work", work / "resources" / "steps"),
        ("tradeoff.py", "resnet56", weights / "resnet56_cifar100.safetensors", data, "--work", work / "tradeoff56"),
        ("engines.py", work / "resources" / "bundle", data),
        ("criteria.py", "vgg16", weights / "vgg16_cifar100.safetensors", data, "--minutes", "240"),
        ("criteria.py", "resnet56", weights / "resnet56_cifar100.safetensors", data, "--minutes", "240"),
        ("dcs.py", "vgg16", weights / "vgg16_cifar100.safetensors", data),
        ("scoring.py", "vgg16", weights / "vgg16_cifar100.safetensors", data),
        ("../reproduce/overlap.py", "vgg16", weights / "vgg16_cifar100.safetensors", data),
        ("plot.py",),
        ("pages.py",),
        ("../reproduce/page.py",),
    ):
        subprocess.run([sys.executable, str(HERE / script), *map(str, arguments)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent.parent / "shared")))
