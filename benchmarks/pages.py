"""Write the tables of README.md and docs from benchmarks/results: python benchmarks/pages.py"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from shown import dynamic, engines, limits, networks, optimized, trust

_NAMES = ("README.md", "docs/results.md", "docs/engines.md", "docs/dynamic.md", "docs/trust.md")
PAGES = tuple(Path(__file__).parents[1] / name for name in _NAMES)
TABLES: dict[str, Callable[[], str]] = {
    "first line": optimized.first_line,
    "optimized": optimized.optimized,
    "optimized elsewhere": lambda: optimized.optimized(False),
    "budgets": networks.budgets,
    "newcomer": networks.newcomer,
    "elsewhere": networks.elsewhere,
    "compact": networks.compact,
    "as saved": networks.as_saved,
    "compact losses": networks.compact_losses,
    "compact spectra": networks.compact_spectra,
    "grouped": networks.grouped,
    "headline": limits.headline,
    "headline details": limits.headline_details,
    "cascades": limits.cascades,
    "head to head vgg16": lambda: limits.head_to_head("vgg16"),
    "deferral vgg16": lambda: limits.deferral("vgg16"),
    "curve vgg16": lambda: limits.curve("vgg16"),
    "curve resnet56": lambda: limits.curve("resnet56"),
    "branches resnet56": lambda: limits.of_branches("resnet56"),
    "forms vgg16": lambda: limits.forms("vgg16"),
    "compared vgg16": lambda: limits.compared("vgg16"),
    "compared resnet56": lambda: limits.compared("resnet56"),
    "points vgg16": lambda: limits.points("vgg16"),
    "points resnet56": lambda: limits.points("resnet56"),
    "resources": engines.resources,
    "engines vgg16": lambda: engines.engines("vgg16"),
    "engines resnet56": lambda: engines.engines("resnet56"),
    "engines resnet18": lambda: engines.engines("torchvision_resnet18"),
    "stages vgg16": lambda: engines.stages("vgg16"),
    "exports vgg16": lambda: engines.exports("vgg16"),
    "dynamic time": dynamic.time,
    "dynamic train": dynamic.train,
    "dynamic static": dynamic.static,
    "dynamic curve": dynamic.curve,
    "dynamic ablation": dynamic.ablation,
    "promise": trust.promise,
    "promise of optimize": trust.promise_of_optimize,
    "corruption": trust.corruption,
    "mutation": trust.mutation,
}


def written(text: str) -> str:
    """A page with its tables as the results say."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, t=table: m[1] + t() + "\n" + m[2], text, flags=re.DOTALL)
    return text


def main() -> None:
    for page in PAGES:
        page.write_text(written(page.read_text()))
        print(page.name)


if __name__ == "__main__":
    main()
