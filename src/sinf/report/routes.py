"""Clusters of a bundle in a report: their classes and images, the tree of classes, and which routes are mistaken."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from markupsafe import Markup

from sinf.data.preprocessing import Preprocessing
from sinf.pipelines.findings import Findings
from sinf.report import charts, dendrogram
from sinf.report.pictures import Picture, one_of_each, pictures, readable

_EXAMPLES, _MISTAKES = 6, 10
_MOST = 60  # clusters in a matrix


@dataclass(frozen=True)
class ClusterRow:
    """One cluster on the images of its classes; shares of 1, None without images."""

    name: str
    number: int
    classes: tuple[str, ...]
    images: int
    before: float | None
    after: float | None
    routed: float | None
    fallback: float | None
    colour: str
    examples: tuple[Picture, ...]


@dataclass(frozen=True)
class Mistake:
    """Images of a cluster that were sent to the route of another; ``caught`` is the share of them that fell back."""

    true: str
    routed: str
    images: int
    share: float
    caught: float


@dataclass(frozen=True)
class Routes:
    """``accuracy`` is the share of images whose route is their cluster; ``leaves`` says what the tree's are."""

    clusters: tuple[ClusterRow, ...]
    accuracy: float
    matrix: Markup | None
    mistakes: tuple[Mistake, ...]
    tree: Markup | None
    leaves: str


def routes(findings: Findings, feed: Preprocessing) -> Routes | None:
    """Of a bundle with several clusters, else None."""
    went = findings.routing
    if went is None or went.cascade:
        return None
    clusters, count = went.clusters, len(went.clusters)
    true = clusters.of_class()[findings.images.labels]
    counts = torch.bincount(true * count + went.route, minlength=count * count).view(count, count)
    shares = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    names = [readable(name) for name in clusters.names]
    drawn = None
    if count <= _MOST:
        label = f"Share of the images of each of {count} clusters (rows) by the route that they took (columns)."
        rows = [f"{number} {name}" for number, name in enumerate(names, 1)]
        drawn = charts.matrix(rows, [str(number + 1) for number in range(count)], shares.tolist(), label)
    tree, leaves = _tree(findings)
    return Routes(
        tuple(_cluster(findings, feed, number, true == number) for number in range(count)),
        float((went.route == true).double().mean()),
        drawn,
        _mistakes(findings, counts, shares, true),
        tree,
        leaves,
    )


def _cluster(findings: Findings, feed: Preprocessing, number: int, mine: torch.Tensor) -> ClusterRow:
    went = findings.routing
    if went is None:
        raise ValueError("a plain model has no clusters")
    members = went.clusters.members[number]
    rows = one_of_each(findings.images.labels, members, _EXAMPLES)
    before = findings.base_right

    def mean(values: torch.Tensor | None) -> float | None:
        return None if values is None or not bool(mine.any()) else float(values[mine].double().mean())

    return ClusterRow(
        readable(went.clusters.names[number]), number + 1, tuple(readable(findings.class_names[c]) for c in members),
        int(mine.sum()), mean(before), mean(findings.right), mean(went.route == number), mean(went.fell_back),
        dendrogram.colour(number, len(went.clusters)),
        pictures(findings.images, feed, rows, [None] * len(rows), [""] * len(rows)),
    )  # fmt: skip


def _mistakes(
    findings: Findings, counts: torch.Tensor, shares: torch.Tensor, true: torch.Tensor
) -> tuple[Mistake, ...]:
    went = findings.routing
    if went is None:
        return ()
    wrong = counts.clone()
    wrong.fill_diagonal_(0)
    names, made = [readable(name) for name in went.clusters.names], []
    for place in wrong.flatten().argsort(descending=True, stable=True)[:_MISTAKES].tolist():
        of, to = divmod(place, len(names))
        if int(wrong[of, to]):
            mine = (true == of) & (went.route == to)
            caught = float(went.fell_back[mine].double().mean())
            made.append(Mistake(names[of], names[to], int(wrong[of, to]), float(shares[of, to]), caught))
    return tuple(made)


def _tree(findings: Findings) -> tuple[Markup | None, str]:
    went, apart = findings.routing, findings.apart
    if went is None or apart is None:
        return None, ""
    names, groups = [readable(name) for name in findings.class_names], went.clusters.of_class().tolist()
    leaves = "class"
    if len(names) > dendrogram.MOST_LEAVES:
        apart, leaves = dendrogram.of_groups(apart, went.clusters.members), "cluster"
        names, groups = [readable(name) for name in went.clusters.names], list(range(len(went.clusters)))
    label = f"Tree of {len(names)} {'classes' if leaves == 'class' else 'clusters'} by what the base model confuses."
    return dendrogram.dendrogram(apart, names, groups, label), leaves
