"""Write docs/reproduce.md and its pictures from benchmarks/results and published.csv: python reproduce/page.py"""

from __future__ import annotations

import clusters
import compaction
import overlap
import peers
import static
import tradeoff
import variants
from common import DOCS, HERE

import criteria

SCRIPTS = (tradeoff, criteria, peers, static, clusters, overlap, variants, compaction)


RECIPES = """## Networks without weights at hand

The paper's other networks have to be trained first; then the same scripts measure them, and this page has them too:

```console
sinf train vgg19 --data CIFAR100 --epochs 100 --average 0.3 --bf16 --device cuda --out runs/vgg19
sinf train resnet50 --data CIFAR100 --epochs 150 --average 0.3 --bf16 --device cuda --out runs/resnet50
python benchmarks/tradeoff.py vgg19 runs/vgg19/model.safetensors CIFAR100 --work runs/tradeoff-vgg19
python benchmarks/criteria.py vgg19 runs/vgg19/model.safetensors CIFAR100 --minutes 240
python benchmarks/cuts.py vgg19 runs/vgg19/model.safetensors CIFAR100
python reproduce/overlap.py vgg19 runs/vgg19/model.safetensors CIFAR100
python reproduce/page.py
```

Without an accelerator leave `--device` out, and take 20 epochs: VGG19 then takes a night on two cores, and can be
killed and started again. The recipes have not been run to the end."""


def main() -> None:
    parts = [
        "# The paper's tables, again",
        "<!-- written by reproduce/page.py from benchmarks/results and reproduce/published.csv: do not edit -->",
        "Semantic Inference ([arXiv 2310.01259](https://arxiv.org/abs/2310.01259)) on the networks whose weights are "
        "at hand. What the "
        "paper is quoted with is in [published.csv](../reproduce/published.csv) with its source; where only an "
        "abstract was at hand, "
        "what it does not say is marked as not known. Base models, hardware and data splits are ours, so levels "
        "differ; what can be "
        "compared are differences.",
    ]  # fmt: skip
    for script in SCRIPTS:
        section = script.section()
        source = f"[reproduce/{script.__name__}.py](../reproduce/{script.__name__}.py)"
        parts += [f"## {section.title}", f"{section.text}", f"({source})"]
    parts.append(RECIPES)
    page = DOCS / "reproduce.md"
    page.write_text("\n\n".join(parts) + "\n")
    print(page.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
