"""Measure again what is in benchmarks/results: make bench [SHARED=folder with data/cifar100 and weights]"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def random_resnet18(folder: Path) -> Path:
    """Weights of torchvision's, of which only times can be measured."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = folder / "resnet18.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(torchvision.models.resnet18(num_classes=100).state_dict(), path)
    return path


def main(shared: Path) -> int:
    data, weights = shared / "data" / "cifar100", shared / "weights"
    if not data.is_dir() or not weights.is_dir():
        print(f"no CIFAR-100 and weights in {shared}: nothing measured. make bench SHARED=folder names another place.")
        return 0
    work, vgg16 = HERE.parent / "runs", weights / "vgg16_cifar100.safetensors"
    resnet56 = weights / "resnet56_cifar100.safetensors"
    bundle, steps = work / "resources" / "bundle", work / "resources" / "steps"
    larger, other, wide = work / "limit1.5", work / "resnet56", work / "resnet18"
    split = ("--data", data, "--calibrate", "test[:50%]")

    def python(script: str, *arguments: object) -> None:
        subprocess.run([sys.executable, str(HERE / script), *map(str, arguments)], check=True)

    def sinf(*arguments: object) -> None:
        subprocess.run([str(Path(sys.executable).with_name("sinf")), *map(str, arguments)], check=True)

    python("resources.py", vgg16, data, work / "resources")
    # Its steps are those of the first row of the next.
    python("tradeoff.py", "vgg16", vgg16, data, "--work", steps)
    python("tradeoff.py", "resnet56", resnet56, data, "--work", work / "tradeoff56")

    common = ("vgg16", "--weights", vgg16, *split, "--cut", "features.23", "--macs", 0.12, "--common", 0.75)
    sinf("build", *common, "--max-loss", 1.5, "--work", steps, "--out", larger)
    cut = ("--cut", "layer2", "--extractor", 0.95, "--macs", 0.5, "--max-loss", 1.5)
    sinf("build", "resnet56", "--weights", resnet56, *split, *cut, "--work", work / "tradeoff56", "--out", other)
    few = ("--score", "train[:2000]", "--route", "train[:2000]", "--route-draws", 2000, "--max-loss", 5)
    size = ("--classes", 100, "--size", "3,64,64", "--common", 0.75, "--macs", 0.3)
    sinf("build", "torchvision:resnet18", "--weights", random_resnet18(work), *split, *few, *size, "--out", wide)
    for each in (bundle, larger, other, wide):
        for engine in ("torch", "onnxruntime", "openvino"):
            sinf("tune", each, "--engine", engine, "--threads", 1)
    python("engines.py", bundle, data)
    for each, name in ((larger, "vgg16_limit1.5"), (other, "resnet56"), (wide, "torchvision_resnet18")):
        table = HERE / "results" / f"engines_{name}_cpu.csv"
        python("engines.py", each, data, "--only", "f32", "--batch", 1, "--batch", 32, "--out", table)

    python("static.py", "vgg16", vgg16, data, "--work", work / "static")
    for name, path in (("vgg16", vgg16), ("resnet56", resnet56)):
        python("cuts.py", name, path, data)
        python("criteria.py", name, path, data, "--minutes", 240)
    python("dcs.py", "vgg16", vgg16, data)
    python("scoring.py", "vgg16", vgg16, data)
    python("../reproduce/overlap.py", "vgg16", vgg16, data)
    # CIFAR-10 and its weights are not shared: see docs/dynamic.md for its table.
    for name, path in (("vgg16", vgg16), ("resnet56", resnet56)):
        python("dynamic.py", "train", "cifar100", name, path, data, work / "dynamic")
        python("dynamic.py", "time", name, data, "--weights", path)
    python("dynamic.py", "time", "torchvision:resnet18", data, "--size", 224, "--pairs", 100)
    for script in ("plot.py", "pages.py", "../reproduce/page.py"):
        python(script)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent.parent / "shared")))
