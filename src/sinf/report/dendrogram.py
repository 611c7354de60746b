"""A tree of classes by what the base model confuses (average linkage), drawn with the leaves one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from sinf.report import svg

_ROW, _NAME, _LETTERS = 15.0, 150.0, 22
MOST_LEAVES = 150  # classes; above it the leaves are clusters


@dataclass(frozen=True)
class Tree:
    """``merges[i]`` joins two nodes to node ``leaves + i`` at ``heights[i]``; ``order`` are the leaves from top to
    bottom, without crossings."""

    merges: tuple[tuple[int, int], ...]
    heights: tuple[float, ...]
    order: tuple[int, ...]


def tree(apart: np.ndarray) -> Tree:
    """The tree of two or more leaves by their distances (leaves, leaves)."""
    from sklearn.cluster import AgglomerativeClustering

    made = AgglomerativeClustering(
        None, distance_threshold=0.0, metric="precomputed", linkage="average", compute_distances=True
    ).fit(apart)
    merges = tuple((int(a), int(b)) for a, b in made.children_)
    leaves = len(apart)
    below: dict[int, tuple[int, ...]] = {leaf: (leaf,) for leaf in range(leaves)}
    for number, (a, b) in enumerate(merges):
        below[leaves + number] = below.pop(a) + below.pop(b)
    return Tree(merges, tuple(float(height) for height in made.distances_), below[2 * leaves - 2])


def of_groups(apart: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean distances between groups of leaves, (groups, groups)."""
    means = np.array([[apart[np.ix_(a, b)].mean() for b in groups] for a in groups])
    np.fill_diagonal(means, 0)
    return means


def dendrogram(apart: np.ndarray, names: Sequence[str], groups: Sequence[int], label: str) -> Markup:
    """A drawing of the tree; ``groups`` is the cluster of every leaf, which gives the mark beside it its colour."""
    made = tree(apart)
    place = {leaf: number for number, leaf in enumerate(made.order)}
    highest = max(made.heights) or 1.0
    x = svg.Scale(0.0, highest, svg.WIDTH - _NAME - 14, 6.0)
    where = {leaf: (x(0.0), _ROW * (place[leaf] + 0.5)) for leaf in range(len(names))}
    parts = []
    for number, ((a, b), height) in enumerate(zip(made.merges, made.heights, strict=True)):
        (xa, ya), (xb, yb), joint = where[a], where[b], x(height)
        path = f"M{xa:.1f} {ya:.1f}H{joint:.1f}V{yb:.1f}H{xb:.1f}"
        parts.append(svg.element("path", d=path, class_="branch"))
        where[len(names) + number] = joint, (ya + yb) / 2
    count = max(groups) + 1
    for leaf, name in enumerate(names):
        left, y = where[leaf]
        short = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
        parts.append(
            svg.element("rect", x=left + 3, y=y - 4.5, width=9, height=9, rx=2, fill=colour(groups[leaf], count))
        )
        parts.append(svg.text(left + 16, y + 4, short, class_="small"))
    return svg.drawing(_ROW * len(names) + 2, label, parts)


def colour(group: int, count: int) -> str:
    """A hue for each of ``count`` groups; neighbours differ in lightness, too."""
    return f"hsl({360 * group / max(1, count):.0f} 65% {(38, 52, 64)[group % 3]}%)"
