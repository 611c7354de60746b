"""Write docs/reproduce.md and its pictures from benchmarks/results and published.csv: python reproduce/page.py"""

from __future__ import annotations

import clusters
import compaction
import overlap
import peers
import recipes
import static
import tradeoff
import variants
from common import DOCS, HERE

import criteria

SCRIPTS = (tradeoff, criteria, peers, static, clusters, overlap, variants, compaction, recipes)


def main() -> None:
    parts = [
        "# The paper's tables, again",
        "<!-- written by reproduce/page.py from benchmarks/results and reproduce/published.csv: do not edit -->",
        "Semantic Inference ([arXiv 2310.01259](https://arxiv.org/abs/2310.01259)) on the networks that are at "
        "hand; [which are not, and why](#the-papers-networks-trained). What the "
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
    page = DOCS / "reproduce.md"
    page.write_text("\n\n".join(parts) + "\n")
    print(page.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
